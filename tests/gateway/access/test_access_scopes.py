"""What each path needs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.access.scopes import WITHOUT_TOKEN, permits, required_scope
from flashmesh.gateway.api.operations import METRICS, OPERATIONS
from flashmesh.gateway.state.operations import OPERATIONS as STATE
from flashmesh.wire.tokens import SCOPES

NAMES = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True).filter(lambda name: name not in (".", ".."))
SEGMENTS = st.text(min_size=0, max_size=8)
PATHS = st.lists(st.one_of(NAMES, SEGMENTS), max_size=6).map(lambda parts: "/" + "/".join(parts))
CHANGING = st.sampled_from(["POST", "PUT", "PATCH", "DELETE", "post", "PROPFIND", ""])


@pytest.mark.parametrize(
    ("line", "scope"),
    [
        ("GET /healthz", None),
        ("GET /readyz", None),
        ("GET /metrics", "metrics"),
        ("GET /v1/functions", "call"),
        ("GET /v1/functions/hello", "call"),
        ("GET /v1/functions/hello/replicas", "call"),
        ("POST /v1/functions", "admin"),
        ("PATCH /v1/functions/hello", "admin"),
        ("DELETE /v1/functions/hello", "admin"),
        ("PUT /v1/functions/hello/replicas", "admin"),
        ("POST /v1/functions/hello:invoke", "call"),
        ("POST /v1/functions/longruns.stage1.process:enqueue", "call"),
        ("GET /v1/executions", "call"),
        ("GET /v1/executions/1", "call"),
        ("DELETE /v1/executions/1", "call"),
        ("POST /v1/executions/1:retry", "call"),
        ("POST /v1/internal/executions/1:complete", "call"),
        ("GET /v1/logs", "call"),
        ("GET /v1/admin/runtime-config", "admin"),
        ("GET /v1/builds/abc/artifact", "link"),
        ("POST /v1/builds", "admin"),
        ("GET /v1/builds", "admin"),
        ("PUT /v1/builds/abc/artifact", "admin"),
        ("PUT /v1/uploads/4f2pFv5q1yZx0cK3nB7sW8tR9uM6aEdG", None),
        ("POST /v1/uploads/4f2pFv5q1yZx0cK3nB7sW8tR9uM6aEdG", "admin"),
        ("PUT /v1/uploads/short", "admin"),
        ("POST /v1/deployments", "admin"),
        ("GET /v1/deployments", "admin"),
        ("GET /v1/deployments/1/events", "admin"),
        ("POST /v1/plan", "admin"),
        ("POST /v1/undeploy", "admin"),
        ("GET /manifest", "call"),
        ("POST /v2/hello/run", "call"),
        ("POST /v2/hello/runsync", "call"),
        ("POST /v2/hello/run_sync", "call"),
        ("POST /v2/jobs/echo/run_sync", "call"),
        ("GET /v2/hello/status/1", "call"),
        ("GET /v2/jobs/echo/stream/1", "call"),
        ("POST /v2/hello/cancel/1", "call"),
        ("POST /v2/hello/retry/1", "call"),
        ("POST /v2/hello/purge-queue", "call"),
        ("GET /v2/hello/health", "call"),
        ("POST /v2/hello/redeploy", "admin"),
        ("DELETE /lb/web/orders/1", "call"),
        ("GET /docs", "call"),
        ("GET /openapi.json", "call"),
        ("GET /ui", "call"),
        ("POST /graphql", "call"),
        ("PUT /graphql", "admin"),
        ("POST /graphql/x", "admin"),
        ("GET //v1/builds/abc/artifact", "admin"),
        ("GET /v1/../metrics", "admin"),
        ("GET /graphql", "call"),
        ("GET /graphql/x", "admin"),
    ],
)
def test_every_route_has_its_scope(line: str, scope: str | None) -> None:
    method, path = line.split(" ")
    assert required_scope(method, path) == scope


@given(name=SEGMENTS, method=CHANGING)
def test_every_code_bringing_path_needs_admin(name: str, method: str) -> None:
    assert required_scope("POST", "/v1/functions") == "admin"
    assert required_scope("POST", "/v1/functions/") == "admin"
    one = f"/v1/functions/{name}"
    if method != "POST" or not name.endswith((":invoke", ":enqueue")):
        assert required_scope(method, one) == "admin"
    assert required_scope(method, f"{one}/replicas") == "admin"
    assert required_scope(method, f"/v1/builds/{name}") == "admin"
    assert required_scope(method, f"/v1/environments/{name}") == "admin"
    assert required_scope(method, "/graphql") == ("call" if method == "POST" else "admin")  # mutations: see there


@given(path=PATHS, method=CHANGING)
def test_what_changes_something_and_is_not_known_needs_admin(path: str, method: str) -> None:
    known = ("/healthz", "/readyz", "/lb", "/v2/", "/v1/executions/", "/v1/internal/", "/graphql", "/v1/uploads/")
    calls = method == "POST" and path.startswith("/v1/functions/") and path.endswith((":invoke", ":enqueue"))
    if not calls and not path.startswith(known):
        assert required_scope(method, path) == "admin"


@given(path=PATHS)
def test_what_is_open_without_a_token_changes_nothing_but_calls(path: str) -> None:
    for method in ("PUT", "PATCH"):
        if required_scope(method, path) in (*WITHOUT_TOKEN, None):
            assert path.startswith(("/lb", "/v1/uploads/")) or path in ("/healthz", "/readyz")


@given(name=NAMES, dots=st.sampled_from(["/../", "/./", "//", "/..\\", "/\n", "/x\x00"]))
def test_a_path_that_others_may_read_differently_needs_admin(name: str, dots: str) -> None:
    assert required_scope("POST", f"/v1/functions/x{dots}{name}:invoke") == "admin"
    assert required_scope("POST", f"/v2/{name}{dots}run") == "admin"
    assert required_scope("POST", f"/lb/{name}/../../v1/functions") == "admin"


@given(path=PATHS, method=st.one_of(CHANGING, st.sampled_from(["GET", "HEAD", "OPTIONS"])))
def test_admin_may_everything_and_nobody_else_what_needs_admin(path: str, method: str) -> None:
    assert permits("admin", method, path)
    if required_scope(method, path) == "admin":
        assert [scope for scope in SCOPES if permits(scope, method, path)] == ["admin"]


@given(path=PATHS, method=st.one_of(CHANGING, st.sampled_from(["GET", "HEAD"])))
def test_a_worker_may_less_than_a_caller(path: str, method: str) -> None:
    assert not permits("peer", method, path) or permits("call", method, path)


def test_of_the_documented_routes_those_that_change_what_is_served_need_admin() -> None:
    needed: dict[str | None, set[str]] = {}
    for operation in (*OPERATIONS, METRICS, *STATE):
        scope = required_scope(operation.method, re.sub(r"\{[^}]*\}", "x" * 32, operation.path))
        needed.setdefault(scope, set()).add(operation.id)
    assert needed.pop("admin") == {
        *("create_function", "patch_function", "delete_function", "set_replicas"),
        *("list_builds", "put_artifact"),
    }
    assert needed.pop(None) == {"get_healthz", "get_readyz", "put_upload"}
    assert needed.pop("metrics") == {"get_metrics"}
    assert needed.pop("link") == {"get_artifact"}
    assert list(needed) == ["call"]
