"""Asking a State Manager: what is asked, what is repeated, what an answer means, and who sees the key."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from state_manager_server import Mood, StateManager, state_manager

from flashmesh.routing.addresses import Address, AddressRefused, read_address, rules_of
from flashmesh.routing.keys import Keys
from flashmesh.routing.state_manager import StateManagerClient, StateManagerUnavailable, pause_s, state_manager_url

MANIFEST = {
    "function_registry": {"gpu.train": "gpu"},
    "resources": {"gpu": {"functions": []}},
    "resources_endpoints": {},
}
SECRET = "rp-very-secret"


def client(state: StateManager, pauses: list[float] | None = None, **more: Any) -> StateManagerClient:
    values: dict[str, Any] = {
        "environment_id": "env-1",
        "keys": Keys({"FLASH_STATE_MANAGER_URL": state.url, "FLASH_TOKEN": SECRET}),
        "pause": (pauses if pauses is not None else []).append,
        "jitter": lambda: 0.0,
    }
    return StateManagerClient(state.url, **(values | more))


def test_environment_then_build_then_manifest() -> None:
    """The manifest of the environment's active build, blocking and from a loop, with the key and who asks."""
    with state_manager(MANIFEST) as state:
        asking = client(state, endpoint="cpu-1")
        assert asking.manifest() == MANIFEST
        assert asyncio.run(asking.manifest_async()) == MANIFEST
        assert len(state.requests) == 4
        assert {request["authorization"] for request in state.requests} == {f"Bearer {SECRET}"}
        assert {request["x-flash-endpoint"] for request in state.requests} == {"cpu-1"}


def test_runpods_is_not_asked_for_what_it_does_not_know() -> None:
    """A build is in one environment there; ours may have it in several and is told which one is meant."""
    with state_manager(MANIFEST) as state:
        client(state).manifest()
        assert state.variables == {"flashBuildId": "b1", "flashEnvironmentId": "env-1"}
        client(state, keys=Keys({"RUNPOD_API_BASE_URL": state.url, "RUNPOD_API_KEY": "k"})).manifest()
        assert state.variables == {"flashBuildId": "b1"}
        assert state.requests[-1]["authorization"] == "Bearer k"


def test_a_manifest_as_text_and_the_environments_endpoint_ids() -> None:
    """RunPod's State Manager knows which endpoints an environment has; ours says it in the manifest."""
    with state_manager() as state:
        state.manifest = '{"resources": {"gpu": {}, "cpu": {"endpoint_id": "own"}}}'  # type: ignore[assignment]
        state.endpoints = [{"id": "abc", "name": "gpu"}, {"id": "other", "name": "cpu"}]
        found = client(state).manifest()
        assert found["resources"] == {"gpu": {"endpoint_id": "abc"}, "cpu": {"endpoint_id": "own"}}


@pytest.mark.parametrize("mood", ["500", "garbage", "no object", "half"])
def test_what_may_pass_is_tried_three_times_with_growing_pauses(mood: Mood) -> None:
    with state_manager(MANIFEST) as state:
        state.mood = mood
        pauses: list[float] = []
        with pytest.raises(StateManagerUnavailable, match="did not answer 3 time"):
            client(state, pauses).manifest()
        assert len(state.requests) == 3
        assert pauses == [0.5, 1.0]


def test_an_attempt_that_fails_is_followed_by_one_that_succeeds() -> None:
    with state_manager(MANIFEST) as state:
        state.fails_first = 2
        assert client(state).manifest() == MANIFEST


@pytest.mark.parametrize(("mood", "words"), [("403", "key"), ("error", "no such environment"), ("redirect", "302")])
def test_what_stays_the_same_is_asked_once(mood: Mood, words: str) -> None:
    with state_manager(MANIFEST) as state:
        state.mood = mood
        with pytest.raises(StateManagerUnavailable, match=words):
            client(state).manifest()
        assert len(state.requests) == 1


def test_an_unknown_environment_says_what_to_check() -> None:
    with state_manager(MANIFEST) as state, pytest.raises(StateManagerUnavailable, match="FLASH_ENVIRONMENT_ID"):
        client(state, environment_id="other").manifest()


def test_a_state_manager_that_is_mute_or_gone_costs_its_time_limit() -> None:
    with state_manager(MANIFEST) as state:
        state.mood = "mute"
        with pytest.raises(StateManagerUnavailable):
            client(state, timeout_s=0.1).manifest()
        state.vanish()
        with pytest.raises(StateManagerUnavailable, match="refused"):
            client(state).manifest()


@pytest.mark.parametrize("mood", ["500", "403", "garbage", "error", "redirect", "half"])
def test_the_key_is_in_no_log_and_no_error(mood: Mood, caplog: pytest.LogCaptureFixture) -> None:
    with state_manager(MANIFEST) as state, caplog.at_level(logging.DEBUG):
        state.mood = mood
        with pytest.raises(StateManagerUnavailable) as raised:
            client(state).manifest()
    shown = caplog.text + str(raised.value) + repr(raised.value.__cause__) + repr(raised.value.__context__)
    assert SECRET not in shown


def test_pauses_double_and_differ() -> None:
    assert [pause_s(1, 0), pause_s(2, 0), pause_s(1, 1), pause_s(1, -1)] == [0.5, 1.0, 0.6, 0.4]


@pytest.mark.parametrize("url", ["http://example.com/graphql", "ftp://x", "https://user:pw@example.com/graphql"])
def test_a_state_manager_is_only_asked_over_https_or_at_home(url: str) -> None:
    with pytest.raises(AddressRefused):
        StateManagerClient(url, environment_id="e", keys=Keys({}))


@pytest.mark.parametrize(
    ("environ", "url"),
    [
        ({}, ""),
        ({"FLASH_SERVER": "https://box:7470/"}, "https://box:7470/graphql"),
        ({"FLASH_STATE_MANAGER_URL": "https://x/graphql", "FLASH_SERVER": "https://box"}, "https://x/graphql"),
        ({"RUNPOD_API_KEY": "k"}, "https://api.runpod.io/graphql"),
        ({"RUNPOD_API_KEY": "k", "RUNPOD_API_BASE_URL": "https://eu.example/"}, "https://eu.example/graphql"),
    ],
)
def test_the_environment_says_which_state_manager(environ: Mapping[str, str], url: str) -> None:
    assert state_manager_url(environ) == url
    found = StateManagerClient.of({**environ, "FLASH_ENVIRONMENT_ID": "env-1"})
    assert (found.origin if found else "") == url.removesuffix("/graphql").rstrip("/")
    assert StateManagerClient.of(environ) is None


# --- keys ---

ENVIRON = {
    "FLASH_SERVER": "https://box.lan:7470",
    "FLASH_TOKEN": "flash",
    "RUNPOD_API_KEY": "runpod",
    "RUNPOD_ENDPOINT_BASE_URL": "https://proxy.example/v2",
}


def address(url: str) -> Address:
    return read_address(url, rules_of("10.0.0.0/8"))


@pytest.mark.parametrize(
    ("url", "source", "key"),
    [
        ("https://gpu.lan:9000", "https://box.lan:7470", "flash"),
        ("http://127.0.0.1:9000", "", "flash"),
        ("https://gpu.lan:9000", "https://other.example", ""),
        ("https://api.runpod.ai/v2/x", "https://box.lan:7470", "runpod"),
        ("https://api.runpod.ai/v2/x", "https://other.example", "runpod"),
        ("https://x.api.runpod.ai", "", "runpod"),
        ("https://proxy.example/v2/x", "", "runpod"),
        ("https://evilrunpod.ai", "https://other.example", ""),
        ("https://runpod.ai.evil.example", "https://other.example", ""),
    ],
)
def test_a_key_goes_where_it_belongs_and_nowhere_else(url: str, source: str, key: str) -> None:
    assert Keys(ENVIRON).for_endpoint(address(url), source=source) == key


def test_a_configured_server_gets_its_own_key() -> None:
    keys = Keys(ENVIRON)
    assert keys.for_configured(address("https://box.lan:7470/graphql")) == "flash"
    assert keys.for_configured(address("https://api.runpod.io/graphql")) == "runpod"
    assert keys.for_configured(address("https://box.lan:7471/graphql")) == ""
    runpods = Keys({"FLASH_STATE_MANAGER_URL": "https://api.runpod.io/graphql", "FLASH_TOKEN": "flash"})
    assert runpods.for_configured(address("https://api.runpod.io/graphql")) == ""


def test_a_token_that_was_given_for_calls_wins_over_the_users_own(tmp_path: Any) -> None:
    (tmp_path / "token").write_text("peer\n")
    keys = Keys(ENVIRON, token_file=str(tmp_path / "token"))
    assert keys.for_configured(address("https://box.lan:7470")) == "peer"
    (tmp_path / "token").write_text("peer\r\nX-Other: 1")
    assert keys.for_configured(address("https://box.lan:7470")) == ""


def test_a_token_in_a_file_is_read_when_it_is_needed(tmp_path: Any) -> None:
    file = tmp_path / "token"
    keys = Keys({"FLASH_SERVER": "https://box.lan:7470", "FLASH_TOKEN_FILE": str(file)})
    where = address("https://box.lan:7470")
    assert keys.for_configured(where) == ""
    file.write_text("first\n")
    assert keys.for_configured(where) == "first"
    file.write_text("second\n")
    assert keys.for_configured(where) == "second"
