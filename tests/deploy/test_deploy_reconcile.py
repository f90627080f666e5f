"""From a plan to steps, and the runner that carries them out."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from flashmesh.deploy.reconcile import (
    AT_ONCE,
    REMOVED_AT_ONCE,
    Step,
    entry_when_back,
    entry_when_failed,
    entry_when_served,
    reconcile,
    serves,
    steps,
)
from flashmesh.deploy.target import Deployable, DeployFailed
from flashmesh.executions.store import StoreUnavailable
from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.project.manifest import EndpointAddress
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.plan import Change, Plan

ADDRESS = EndpointAddress(endpoint_url="http://127.0.0.1:41000", peer_urls=("unix:/run/a.sock",))


def change(name: str, **fields: Any) -> Change:
    return Change(identity=f"{name}.py|{name}", name=name, **fields)


def test_changes_come_before_what_is_new_and_removals_last() -> None:
    """Worker counts alone are changed in place; what is unchanged is left alone."""
    plan = Plan(
        new=(change("n"),),
        changed=(change("c"), change("r", in_place=True)),
        removed=(change("gone"),),
        unchanged=(change("same"),),
    )
    assert [(step.action, step.name) for step in steps(plan)] == [
        ("update", "c"),
        ("resize", "r"),
        ("deploy", "n"),
        ("remove", "gone"),
    ]
    assert [step.name for step in steps(plan, removals_only=True)] == ["gone"]


class Recorder:
    """A Journal, and the Target of its steps: what they do is what the test says; their order is written down."""

    def __init__(self, **acts: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.lines: list[str] = []
        self.acts = acts
        self.at_once = 0
        self.most_at_once = 0
        self.store_works = True

    async def wanted(self, step: Step) -> Deployable:
        resource = ResourceSpec(
            name=EndpointName(step.name),
            file=f"{step.name}.py",
            variable=None,
            config=ResourceConfig(resource_type="LiveServerless"),
            functions=(),
        )
        return Deployable(
            endpoint=EndpointName(step.name),
            app="shop",
            environment="production",
            resource=resource,
            project=Project(root=Path("/"), name="shop", resources=(resource,)),
            build=BuildId("b"),
            manifest=Path("/m"),
        )

    def endpoint(self, step: Step) -> EndpointName:
        return EndpointName(step.name)

    async def begun(self, step: Step) -> None:
        if not self.store_works:
            raise StoreUnavailable("the disk is full")

    async def served(self, step: Step, wanted: Deployable, address: EndpointAddress) -> None:
        self.lines.append(f"{step.name} serves")

    async def failed(self, step: Step, error: str) -> None:
        self.lines.append(f"{step.name} failed: {error}")

    async def removed(self, step: Step) -> None:
        self.lines.append(f"{step.name} removed")

    async def _act(self, name: str) -> EndpointAddress:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if name in self.acts:
                await self.acts[name]()
        finally:
            self.at_once -= 1
        return ADDRESS

    async def deploy(self, wanted: Deployable) -> EndpointAddress:
        return await self._act(wanted.endpoint)

    async def resize(self, wanted: Deployable) -> EndpointAddress:
        return await self._act(wanted.endpoint)

    async def adopt(self, wanted: Deployable) -> EndpointAddress:
        raise AssertionError("no deploy adopts")

    async def remove(self, endpoint: EndpointName) -> None:
        await self._act(endpoint)


def planned(*names: str, action: Any = "deploy") -> list[Step]:
    return [Step(action=action, identity=name, name=name) for name in names]


def test_one_failure_stops_no_other_resource() -> None:
    """Whatever a target raises; each is told with its reason."""

    async def refuses() -> None:
        raise DeployFailed("no module named torch")

    async def breaks() -> None:
        raise KeyError("oops")

    recorder = Recorder(bad=refuses, worse=breaks)
    failures = asyncio.run(reconcile(planned("a", "bad", "worse", "b", "c", "d"), target=recorder, journal=recorder))
    assert {(one.step.name, one.error) for one in failures} == {
        ("bad", "no module named torch"),
        ("worse", "KeyError: 'oops'"),
    }
    assert {"a serves", "b serves", "c serves", "d serves", "bad failed: no module named torch"} <= set(recorder.lines)


def test_a_few_resources_are_acted_upon_at_once_and_no_more() -> None:
    """A hundred start as many interpreters as four."""
    recorder = Recorder()
    asyncio.run(reconcile(planned(*(f"r{n}" for n in range(100))), target=recorder, journal=recorder))
    assert len(recorder.lines) == 100
    assert recorder.most_at_once == AT_ONCE


def test_many_removals_wait_for_their_last_calls_together() -> None:
    """Nothing is started for one, and each may last as long as the longest call."""
    recorder = Recorder()
    wanted = planned(*(f"r{n}" for n in range(100)), action="remove")
    asyncio.run(reconcile(wanted, target=recorder, journal=recorder))
    assert len(recorder.lines) == 100
    assert recorder.most_at_once == REMOVED_AT_ONCE


def test_nothing_is_removed_before_what_takes_its_place_has_come_up_or_failed() -> None:
    async def waits() -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    recorder = Recorder(new=waits)
    wanted = [*planned("old", action="remove"), *planned("new")]
    asyncio.run(reconcile(wanted, target=recorder, journal=recorder))
    assert recorder.lines == ["new serves", "old removed"]


def test_a_result_that_cannot_be_kept_ends_it() -> None:
    """Going on would leave what serves unknown."""
    recorder = Recorder()
    recorder.store_works = False
    with pytest.raises(ExceptionGroup) as group:
        asyncio.run(reconcile(planned("a", "b"), target=recorder, journal=recorder))
    assert group.value.subgroup(StoreUnavailable) is not None
    assert recorder.most_at_once == 0


WANTED = {"config_hash": "new", "functions": [], "config": {}, "endpoint_url": "stale", "status": "stale", "error": "x"}
BEFORE = {"config_hash": "old", "endpoint_url": "http://127.0.0.1:1", "build": "b1", "status": "deployed"}


def test_an_entry_says_what_serves_where_and_since_which_build() -> None:
    entry = entry_when_served(
        WANTED,
        action="update",
        address=ADDRESS,
        endpoint=EndpointName("a-1"),
        build="b2",
        env_hash="e",
        gateway_url="http://server/v2/a-1",
        at="2026-01-01T00:00:00Z",
    )
    assert (entry["status"], entry["build"], entry["config_hash"]) == ("updated", "b2", "new")
    assert entry["endpoint_url"] == "http://127.0.0.1:41000" and "error" not in entry
    assert serves(entry)


def test_a_failed_update_keeps_what_serves_still() -> None:
    """Version, address and build stay; so the next deploy sees that it differs, and callers find it."""
    entry = entry_when_failed(BEFORE, WANTED, error="no torch", endpoint=EndpointName("a-1"))
    assert entry == {**BEFORE, "status": "failed", "error": "no torch"}


def test_what_never_served_has_no_version_and_no_address() -> None:
    entry = entry_when_failed(None, WANTED, error="no torch", endpoint=EndpointName("a-1"))
    assert (entry["config_hash"], entry["endpoint_url"], entry["status"]) == (None, None, "failed")
    assert not serves(entry)


def test_what_a_start_could_not_take_up_is_mended_by_another_start() -> None:
    """The failure of an update is not: only a deploy mends that."""
    away = entry_when_back(BEFORE, None, "its port is taken")
    assert (away["status"], away["error"]) == ("failed", "its port is taken")
    back = entry_when_back(away, ADDRESS, "")
    assert back["status"] == "deployed" and "error" not in back and "away" not in back
    failed = {**BEFORE, "status": "failed", "error": "no torch"}
    assert entry_when_back(failed, ADDRESS, "")["error"] == "no torch"
