"""What a POSTed spec may say, and how what is wrong with it is told."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import FlashmeshError, InsecureAddress, MalformedRequest, ValidationError
from flashmesh.gateway.functions.external.addresses import PlainHttp, parse_target
from flashmesh.gateway.functions.external.answers import of_body, of_line, retry_after_s, shown
from flashmesh.gateway.functions.spec import (
    External,
    build_of,
    check,
    parse,
    plan_of,
    response,
)
from flashmesh.kit.ids import BuildId

URL = "http://127.0.0.1:8080"


def spec(**fields: Any) -> External:
    return check(parse(msgspec.json.encode({"name": "f", **fields})))


def test_defaults_are_those_of_the_contract() -> None:
    shown = response(spec(endpointUrl=URL))
    assert shown["timeoutMs"] == 30_000
    assert shown["concurrency"] == 4
    assert shown["queueSize"] == 100
    assert shown["maxRetries"] == 3
    assert shown["effectiveExecutionMode"] == "EXTERNAL"
    plan = plan_of(spec(endpointUrl=URL), BuildId("b"))
    assert (plan.queue_size, plan.execution_timeout_ms, plan.max_retries, plan.retries) == (100, 30_000, 3, 0)


def test_max_retries_counts_for_the_functions_own_failures_only_when_it_was_given() -> None:
    assert plan_of(spec(endpointUrl=URL, maxRetries=3), BuildId("b")).retries == 3
    assert plan_of(spec(endpointUrl=URL), BuildId("b")).retries == 0


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "9lives"}, "name"),
        ({"name": "a" * 64}, "name"),
        ({"name": "line\n"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"timeoutMs": 0}, "timeoutMs"),
        ({"timeoutMs": 10**12}, "timeoutMs"),
        ({"timeoutMs": "30"}, "timeoutMs"),
        ({"concurrency": 0}, "concurrency"),
        ({"queueSize": 0}, "queueSize"),
        ({"maxRetries": -1}, "maxRetries"),
        ({"maxRetries": 1.5}, "maxRetries"),
        ({"colour": "red"}, "colour"),
        ({"scalingConfig": {"minReplica": 1}}, "scalingConfig.minReplica"),
        ({"scalingConfig": {"minReplicas": 3, "maxReplicas": 2}}, "scalingConfig.minReplicas"),
        ({"executionMode": "LOCAL"}, "executionMode"),
        ({"executionMode": "WARM"}, "executionMode"),
        ({"executionMode": "JOB"}, "executionMode"),
        ({"executionMode": "nonsense"}, "executionMode"),
        ({"runtimeMode": "STDIO"}, "runtimeMode"),
        ({"runtimeMode": "GRPC"}, "runtimeMode"),
        ({"endpointUrl": None}, "endpointUrl"),
        ({"endpointUrl": None, "image": "alpine"}, "endpointUrl"),
        ({"command": ["x"]}, "command"),
        ({"endpointUrl": None, "command": "unclosed 'quote"}, "command"),
        ({"endpointUrl": None, "command": [""]}, "command"),
        ({"endpointUrl": None, "command": ["x"], "executionMode": "JOB"}, "executionMode"),
        ({"endpointUrl": "ftp://x"}, "endpointUrl"),
        ({"endpointUrl": "http://user:secret@x/"}, "endpointUrl"),
        ({"endpointUrl": "http://x:99999/"}, "endpointUrl"),
        ({"endpointUrl": "http://x/\r\nhost: y"}, "endpointUrl"),
        ({"env": {"A B": "1"}}, "env.A B"),
        ({"env": {"PORT": "1"}}, "env.PORT"),
    ],
)
def test_what_is_wrong_is_told_by_the_fields_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        spec(**{"endpointUrl": URL, **fields})
    assert refusal.value.field == field
    assert field in str(refusal.value)
    assert refusal.value.status == 422


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"name": NaN}', b'{"name": "f", "env": '])
def test_a_body_that_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(body)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
def test_any_json_is_taken_or_refused_never_a_crash(value: Any) -> None:
    try:
        check(parse(msgspec.json.encode(value)))
    except FlashmeshError:
        pass


def test_aliases_of_the_mode_are_understood() -> None:
    for alias in ("EXTERNAL", "POOL", "DEPLOYMENT"):
        assert spec(endpointUrl=URL, executionMode=alias).mode == "EXTERNAL"
    assert "no containers" in response(spec(endpointUrl=URL, executionMode="DEPLOYMENT"))["degradationReason"]
    for alias in ("JOB", "REMOTE"):
        assert spec(command=["x"], executionMode=alias, runtimeMode="FILE").mode == "JOB"


def test_what_only_a_cluster_needs_is_kept_and_shown() -> None:
    shown = response(
        spec(
            endpointUrl=URL,
            image="registry/x:1",
            resources={"cpu": "250m"},
            imagePullSecrets=["s"],
            scalingConfig={"strategy": "HPA", "metrics": [{"type": "rps", "target": "5"}]},
        )
    )
    assert shown["image"] == "registry/x:1"
    assert shown["resources"] == {"cpu": "250m"}
    assert shown["imagePullSecrets"] == ["s"]
    assert shown["scalingConfig"]["metrics"] == [{"type": "rps", "target": "5"}]


def test_values_of_the_environment_are_never_shown() -> None:
    assert response(spec(command=["x"], env={"KEY": "secret"}))["env"] == {"KEY": "***"}


def test_all_processes_together_never_run_more_calls_than_concurrency() -> None:
    for concurrency in range(1, 12):
        for most in range(1, 12):
            for mode in ("HTTP", "STDIO"):
                found = spec(
                    command=["x"], concurrency=concurrency, runtimeMode=mode, scalingConfig={"maxReplicas": most}
                )
                assert 1 <= found.processes_max * found.calls_per_process <= concurrency


def test_two_registrations_of_one_name_are_two_builds() -> None:
    found = spec(endpointUrl=URL).spec
    assert build_of(found, 1.0) != build_of(found, 2.0)


def test_an_address_without_a_path_means_invoke() -> None:
    assert parse_target("http://h:8080").path == "/invoke"
    assert parse_target("https://h/a?b=c").path == "/a?b=c"
    assert parse_target("https://[::1]/x").authority == "[::1]"


def test_plain_http_is_for_the_loopback_and_the_ranges_that_were_named() -> None:
    loopback, more = PlainHttp(), PlainHttp(["10.0.0.0/8"])
    for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
        assert loopback.permits(address)
    for address in ("10.0.0.1", "169.254.169.254", "0.0.0.0", "::ffff:169.254.169.254", "8.8.8.8"):
        assert not loopback.permits(address)
    assert more.permits("10.255.0.1")
    assert more.choose(parse_target("http://x/"), ["8.8.8.8", "10.0.0.1"]) == ["10.0.0.1"]
    assert loopback.choose(parse_target("https://x/"), ["8.8.8.8"]) == ["8.8.8.8"]
    with pytest.raises(InsecureAddress):
        loopback.choose(parse_target("http://rebound/"), ["169.254.169.254"])


@given(st.text(), st.binary(max_size=200))
def test_any_body_is_an_output_or_an_error(media: str, body: bytes) -> None:
    of_body(media, body)
    of_line(body)
    assert len(shown(body)) <= 500


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("2") == 2.0
    assert retry_after_s("Thu, 01 Jan 1970 00:00:20 GMT", now=10.0) == 10.0
    assert retry_after_s("Thu, 01 Jan 1970 00:00:20 GMT", now=30.0) == 0.0
    for nonsense in (None, "", "soon", "nan", "inf", "-inf"):
        assert retry_after_s(nonsense) is None
