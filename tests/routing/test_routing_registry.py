"""Which manifest is in force: the file, what was fetched, how old it may be, and who asks for the next one."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from state_manager_server import StateManager, state_manager

from flashmesh.functions.errors import SettingsError
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.routing.keys import Keys
from flashmesh.routing.registry import ServiceRegistry, ttl_of
from flashmesh.routing.route import Local, Own, Remote, Unresolved
from flashmesh.routing.state_manager import StateManagerClient

TRAIN = FunctionId("gpu.train")
OWN = Own(EndpointName("cpu-1"), "cpu")
NOON = 1_800_000_000.0


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


def manifest(url: str, **more: Any) -> dict[str, Any]:
    gpu = {"functions": [{"name": "train", "module": "gpu"}], "endpoint_id": "gpu-1", "endpoint_url": url}
    return {"function_registry": {"gpu.train": "gpu", "cpu.own": "cpu"}, "resources": {"gpu": gpu, "cpu": {}}, **more}


class Endpoint:
    """What workers of one endpoint share: a folder, a State Manager, and the time."""

    def __init__(self, folder: Path, state: StateManager) -> None:
        self.folder = folder
        self.state = state
        self.clock = Clock()

    def worker(self, **more: Any) -> ServiceRegistry:
        client = StateManagerClient(
            self.state.url, environment_id="env-1", keys=Keys({}), pause=lambda _: None, timeout_s=5
        )
        return ServiceRegistry(
            self.folder / "given.json",
            own=OWN,
            state=client,
            kept=self.folder / "cpu.manifest.json",
            clock=self.clock,
            ticks=self.clock,
            **more,
        )


@contextmanager
def endpoint(folder: Path) -> Iterator[Endpoint]:
    with state_manager(manifest("https://one.example")) as state:
        yield Endpoint(folder, state)


def settled(registry: ServiceRegistry) -> None:
    """Wait for the thread that asks."""
    if registry._asking is not None:
        registry._asking.join(20)
        assert not registry._asking.is_alive()


def host(registry: ServiceRegistry) -> str:
    route = registry.route(TRAIN)
    assert isinstance(route, Remote), route
    assert route.address is not None
    return route.address.host


def test_the_first_call_asks_and_others_within_the_ttl_do_not(tmp_path: Path) -> None:
    """One query, then none for 300 s, then one again."""
    with endpoint(tmp_path) as here:
        registry = here.worker()
        assert registry.get_endpoint_for_function("gpu.train") == "https://one.example/gpu.train/run_sync"
        here.clock.now += 299
        assert host(registry) == "one.example"
        assert here.state.queries == 1
        here.state.manifest = manifest("https://two.example")
        here.clock.now += 2
        assert host(registry) == "one.example"  # what is old is served while the next one is fetched
        settled(registry)
        assert host(registry) == "two.example"
        assert (here.state.queries, registry.queries) == (2, 2)


def test_a_function_of_this_endpoint_is_never_a_reason_to_ask(tmp_path: Path) -> None:
    with endpoint(tmp_path) as here:
        registry = here.worker(served=frozenset({"cpu.own"}))
        assert registry.get_endpoint_for_function("cpu.own") is None
        assert registry.route(FunctionId("cpu.own")) == Local(EndpointName("cpu-1"))
        assert not here.state.requests


def test_workers_of_an_endpoint_share_what_one_of_them_fetched(tmp_path: Path) -> None:
    """Also with one that starts later, and with one whose own copy got old."""
    with endpoint(tmp_path) as here:
        first, second = here.worker(), here.worker()
        first.load()
        second.load()
        assert host(second) == "one.example"
        here.clock.now += 301
        host(first), host(second)
        settled(first), settled(second)
        assert here.state.queries == 2
        assert host(here.worker()) == "one.example"
        assert here.state.queries == 2


def test_many_first_calls_at_once_wait_for_one_query(tmp_path: Path) -> None:
    with endpoint(tmp_path) as here:
        here.state.holding = threading.Event()
        workers = [here.worker() for _ in range(4)]
        found: list[str] = []

        def call_first(worker: ServiceRegistry) -> None:
            worker.load()
            found.append(host(worker))

        threads = [threading.Thread(target=call_first, args=(worker,)) for worker in workers for _ in range(2)]
        for thread in threads:
            thread.start()
        assert here.state.arrived.acquire(timeout=20)
        here.state.holding.set()
        for thread in threads:
            thread.join(20)
        assert found == ["one.example"] * 8
        assert here.state.queries == 1


def test_what_is_known_is_served_while_nobody_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And after a restart of the worker too; a State Manager that is away is asked every 30 s, not by every call."""
    with endpoint(tmp_path) as here:
        here.worker().load()
        here.state.mood = "500"
        here.clock.now += 10_000
        registry = here.worker()
        assert host(registry) == "one.example"
        settled(registry)
        assert "State Manager unavailable" in caplog.text
        asked = len(here.state.requests)
        for _ in range(5):
            here.clock.now += 5
            assert host(registry) == "one.example"
            settled(registry)
        assert len(here.state.requests) == asked
        here.clock.now += 6
        assert host(registry) == "one.example"
        settled(registry)
        assert len(here.state.requests) == asked + 3


def test_without_any_manifest_and_nobody_to_ask_calls_do_not_wait_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The first call finds out; those of the next 30 s, in all workers, are told at once; then one tries again."""
    with endpoint(tmp_path) as here:
        here.state.mood = "500"
        registry, other = here.worker(), here.worker()
        registry.load()
        assert "State Manager unavailable" in caplog.text
        route = registry.route(TRAIN)
        assert isinstance(route, Unresolved) and "did not answer" in route.reason
        assert not registry.must_ask
        other.load()
        assert not other.must_ask
        assert len(here.state.requests) == 3
        here.state.mood = "answers"
        here.clock.now += 31
        registry.load()
        assert host(registry) == "one.example"


def test_an_address_that_does_not_answer_has_the_manifest_fetched_at_most_every_5_seconds(tmp_path: Path) -> None:
    with endpoint(tmp_path) as here:
        registry = here.worker()
        registry.load()
        here.clock.now += 6
        here.state.manifest = manifest("https://two.example")
        registry.look_again()
        assert host(registry) == "two.example"
        here.state.manifest = manifest("https://three.example")
        here.clock.now += 1
        registry.look_again()
        assert host(registry) == "two.example"
        here.clock.now += 5
        registry.look_again_soon()
        settled(registry)
        assert host(registry) == "three.example"
        assert here.state.queries == 3


def write(path: Path, document: Any, at: float) -> None:
    path.with_suffix(".new").write_text(json.dumps(document))
    os.utime(path.with_suffix(".new"), (at, at))
    path.with_suffix(".new").rename(path)


def test_a_manifest_the_server_writes_counts_from_when_it_was_written(tmp_path: Path) -> None:
    """It needs no query while it is fresh, replaces what was fetched before, and is replaced by what is fetched."""
    with endpoint(tmp_path) as here:
        given = tmp_path / "given.json"
        write(given, manifest("https://given.example", environment="production"), NOON)
        registry = here.worker()
        registry.load()
        assert host(registry) == "given.example"
        assert registry.source == ""
        assert not here.state.requests
        here.clock.now += 301
        host(registry)
        settled(registry)
        assert host(registry) == "one.example"
        assert registry.source == here.state.url.removesuffix("/graphql")
        write(given, manifest("https://later.example", environment="production"), here.clock.now + 1)
        assert host(registry) == "later.example"


def test_a_builds_own_copy_says_what_functions_are_but_not_where(tmp_path: Path) -> None:
    """A container starts with the copy in its artifact: its age says nothing, and the first call asks."""
    with endpoint(tmp_path) as here:
        copy = manifest("https://nowhere.example")
        del copy["resources"]["gpu"]["endpoint_url"]
        write(tmp_path / "given.json", copy, NOON)
        registry = here.worker()
        assert registry.must_ask
        registry.load()
        assert host(registry) == "one.example"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"manifest": 1, "fetched_at": 2, "fetched_from": ""}', "\xff"])
def test_a_kept_manifest_that_cannot_be_read_is_fetched_again(tmp_path: Path, text: str) -> None:
    with endpoint(tmp_path) as here:
        (tmp_path / "cpu.manifest.json").write_text(text, encoding="latin-1")
        (tmp_path / "cpu.manifest.lock").write_text(text, encoding="latin-1")
        registry = here.worker()
        registry.load()
        assert host(registry) == "one.example"
        assert (tmp_path / "cpu.manifest.json").stat().st_mode & 0o777 == 0o600


def test_a_manifest_from_the_future_is_old(tmp_path: Path) -> None:
    """It was written while the clock was wrong."""
    with endpoint(tmp_path) as here:
        here.clock.now += 1_000_000
        here.worker().load()
        here.clock.now = NOON
        registry = here.worker()
        assert host(registry) == "one.example"
        settled(registry)
        assert here.state.queries == 2


def test_an_unusable_folder_costs_the_sharing_and_no_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with endpoint(tmp_path) as here:
        here.folder = tmp_path / "missing"
        registry = here.worker()
        registry.load()
        assert host(registry) == "one.example"
        assert "cannot be kept" in caplog.text


@pytest.mark.parametrize(
    ("source", "address", "called"),
    [
        ("https://box.lan:7470", "http://127.0.0.1:9000", False),
        ("https://box.lan:7470", "http://localhost:9000", False),
        ("http://10.1.2.3:7470", "https://127.0.0.1:9000", False),
        ("https://box.lan:7470", "https://gpu.lan:9000", True),
        ("http://127.0.0.1:7470", "http://127.0.0.1:9000", True),
        ("", "http://127.0.0.1:9000", True),
    ],
)
def test_another_machines_loopback_address_is_not_called(
    tmp_path: Path, source: str, address: str, called: bool
) -> None:
    """Here something else listens there, which would be shown the token."""
    with endpoint(tmp_path) as here:
        kept = {"fetched_at": NOON, "fetched_from": source, "manifest": manifest(address)}
        write(tmp_path / "cpu.manifest.json", kept, NOON)
        route = here.worker().route(TRAIN)
        assert isinstance(route, Remote) is called
        if isinstance(route, Unresolved):
            assert f"is on the machine of {source}" in route.reason


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_ttl_that_is_none_names_its_variable(text: str) -> None:
    with pytest.raises(SettingsError, match="FLASH_MANIFEST_TTL"):
        ttl_of(text)
    assert (ttl_of(None), ttl_of("2.5")) == (300, 2.5)
