"""From a plan to what serves: steps, and a runner that carries them out on a target.

Steps are decided, then acted upon, a few resources at a time. Each result is told as it happens, so that a crash in the
middle loses nothing of what was done; a resource that fails stops none of the others.
"""

import asyncio
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, assert_never

from flashmesh.deploy.target import Deployable, Target
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import EndpointName
from flashmesh.project.manifest import EndpointAddress
from flashmesh.project.plan import Change, Plan

AT_ONCE: Final = 4
"""Resources acted upon at a time. More: an idle machine is sooner done; a busy one starts that many interpreters
beside the calls it serves."""
REMOVED_AT_ONCE: Final = 32
"""Resources taken down at a time. Nothing is started for one: it is waiting for what its workers still run, which ends
at the same time when it begins so. More: that many endpoints' last calls and ends at one moment."""

Action = Literal["deploy", "update", "resize", "remove"]
DONE: Final[Mapping[Action, str]] = {
    "deploy": "deployed",
    "update": "updated",
    "resize": "resized",
    "remove": "removed",
}
"""The word for what an action has come to."""
DOING: Final[Mapping[Action, str]] = {
    "deploy": "deploying",
    "update": "updating",
    "resize": "resizing",
    "remove": "removing",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is to be done about one resource."""

    action: Action
    identity: str
    name: str
    """Its name in the wanted manifest; of one to be removed, in what is deployed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A step that did not succeed, and why, for people."""

    step: Step
    error: str


class Journal(Protocol):
    """Where steps get what they need, and where their results are kept. Each method returns when that is durable."""

    async def wanted(self, step: Step) -> Deployable:
        """What shall serve. Raises FlashmeshError when that cannot even be said."""
        ...

    def endpoint(self, step: Step) -> EndpointName:
        """The id of the resource's endpoint."""
        ...

    async def begun(self, step: Step) -> None: ...

    async def served(self, step: Step, wanted: Deployable, address: EndpointAddress) -> None:
        """It serves as wanted."""
        ...

    async def failed(self, step: Step, error: str) -> None:
        """It does not; what served before serves on."""
        ...

    async def removed(self, step: Step) -> None: ...


def steps(plan: Plan, *, removals_only: bool = False) -> tuple[Step, ...]:
    """What a plan asks for: what changes first, as it may be waited for; then what is new; removals last, so that
    nobody's peers go before what takes their place is there."""
    removed = tuple(_step("remove", change) for change in plan.removed)
    if removals_only:
        return removed
    changed = tuple(_step("resize" if change.in_place else "update", change) for change in plan.changed)
    new = tuple(_step("deploy", change) for change in plan.new)
    return (*changed, *new, *removed)


def _step(action: Action, change: Change) -> Step:
    return Step(action=action, identity=change.identity, name=change.name)


async def reconcile(
    steps: Iterable[Step],
    *,
    target: Target,
    journal: Journal,
    at_once: int = AT_ONCE,
    removed_at_once: int = REMOVED_AT_ONCE,
) -> tuple[Failure, ...]:
    """Carry out every step; those that failed.

    Removals begin when everything else has ended. Cancelled, it leaves what was done as it is told.

    Raises:
        ExceptionGroup: the journal could not keep a result. Nothing is begun after that.
    """
    planned = list(steps)
    failures: list[Failure] = []
    for group, limit in (
        ([step for step in planned if step.action != "remove"], at_once),
        ([step for step in planned if step.action == "remove"], removed_at_once),
    ):
        failures += await _side_by_side(group, target=target, journal=journal, at_once=limit)
    return tuple(failures)


async def _side_by_side(group: Sequence[Step], *, target: Target, journal: Journal, at_once: int) -> list[Failure]:
    left = iter(group)
    failures: list[Failure] = []

    async def work() -> None:
        for step in left:  # shared: whoever is free takes the next
            failure = await carry_out(step, target=target, journal=journal)
            if failure is not None:
                failures.append(failure)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(at_once, len(group))):
            workers.create_task(work())
    return failures


async def carry_out(step: Step, *, target: Target, journal: Journal) -> Failure | None:
    """One step, and its result told."""
    await journal.begun(step)
    try:
        if step.action == "remove":
            await target.remove(journal.endpoint(step))
            served = None
        else:
            wanted = await journal.wanted(step)
            served = wanted, await _serve(step.action, target, wanted)
    except Exception as error:  # also a fault of the target's: it must not end the others
        reason = str(error) if isinstance(error, FlashmeshError) else f"{type(error).__name__}: {error}"
        await journal.failed(step, reason)
        return Failure(step=step, error=reason)
    if served is None:
        await journal.removed(step)
    else:
        await journal.served(step, *served)
    return None


async def _serve(action: Literal["deploy", "update", "resize"], target: Target, wanted: Deployable) -> EndpointAddress:
    match action:
        case "deploy" | "update":
            return await target.deploy(wanted)
        case "resize":
            return await target.resize(wanted)
        case _:
            assert_never(action)


# Entries of the deployed manifest


def entry_when_served(
    wanted: Mapping[str, Any],
    *,
    action: Action,
    address: EndpointAddress,
    endpoint: EndpointName,
    build: str,
    env_hash: str,
    gateway_url: str,
    at: str,
) -> dict[str, Any]:
    """The entry of a resource that serves as wanted.

    Args:
        wanted: its entry as it was built.
        build: the artifact it runs.
        gateway_url: where the server answers for it.
        at: the moment, in RFC 3339.
    """
    entry = {name: value for name, value in wanted.items() if name not in _DEPLOYED}
    return entry | {
        "endpoint_id": endpoint,
        "endpoint_url": address.endpoint_url,
        "peer_urls": list(address.peer_urls),
        "reentrant_url": address.reentrant_url,
        "gateway_url": gateway_url,
        "status": "deployed" if action == "deploy" else "updated",
        "build": build,
        "env_hash": env_hash,
        "deployed_at": at,
    }


def entry_when_failed(
    before: Mapping[str, Any] | None, wanted: Mapping[str, Any], *, error: str, endpoint: EndpointName
) -> dict[str, Any]:
    """The entry of a resource that could not be brought up: what serves still is what it was.

    Of one that never served only the failure is told: it has no version, so that the next deploy tries again, and no
    address.
    """
    if before is not None:
        return {**before, "status": "failed", "error": error}
    entry = {name: value for name, value in wanted.items() if name not in _DEPLOYED}
    return entry | {
        "config_hash": None,
        "endpoint_id": endpoint,
        "endpoint_url": None,
        "peer_urls": [],
        "status": "failed",
        "error": error,
        "build": None,
        "env_hash": "",
    }


def entry_when_back(before: Mapping[str, Any], address: EndpointAddress | None, error: str) -> dict[str, Any]:
    """The entry of a resource that was taken up again after a start, or could not be: what another start may mend."""
    entry = dict(before)
    if address is None:
        return entry | {"status": "failed", "error": error, "away": True}
    if entry.pop("away", False):
        entry.pop("error", None)
        entry["status"] = "deployed"
    return entry | {
        "endpoint_url": address.endpoint_url,
        "peer_urls": list(address.peer_urls),
        "reentrant_url": address.reentrant_url,
    }


def serves(entry: Mapping[str, Any]) -> bool:
    """Whether some build of it serves, or should: one that never came up has none."""
    return bool(entry.get("build"))


_DEPLOYED: Final = frozenset(
    {
        *("endpoint_id", "endpoint_url", "peer_urls", "reentrant_url", "gateway_url", "status", "error"),
        *("build", "env_hash", "deployed_at", "away", "schemas", "allow_cpu"),
    }
)
"""Fields that only a deployed entry has."""
