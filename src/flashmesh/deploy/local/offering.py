"""Offers a build to an endpoint's template and follows it until it serves, or is found not to work."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Final

from flashmesh.deploy.local.hosted import Hosted
from flashmesh.deploy.local.rollout import Failed, Rollout, Served, TemplateGone, failure
from flashmesh.deploy.target import DeployFailed
from flashmesh.wire.frames import Update
from flashmesh.worker.spec import WorkerSpec

LIMIT_S: Final = 600.0
"""How long a build may take to be served, start-up hooks of its first worker included."""
OFFERS: Final = 3
"""Templates that may end under a build that is offered to them before it counts as one that does not work."""

Start = Callable[[Hosted, WorkerSpec], Awaitable[None]]
"""Starts a template on that build, where none runs."""


async def offer(endpoint: Hosted, spec: WorkerSpec, *, start: Start) -> None:
    """Returns when its workers take the endpoint's calls.

    Raises:
        DeployFailed: why they do not. The template has been told to go on with what it served.
    """
    endpoint.rollout = rollout = Rollout(dataclasses.replace(spec, on_trial=True))
    try:
        async with asyncio.timeout(LIMIT_S):
            await _follow(endpoint, rollout, start)
    except BaseException as error:
        endpoint.rollout = None
        endpoint.tell()  # what it served; a build that is still on its way is given up for it
        if isinstance(error, TimeoutError):
            raise DeployFailed(f"It was not ready after {LIMIT_S:.0f} s. `flash logs` shows what it printed") from error
        raise
    endpoint.rollout = None


async def _follow(endpoint: Hosted, rollout: Rollout, start: Start) -> None:
    reason = ""
    for _ in range(OFFERS):
        if endpoint.port is not None:
            endpoint.port.send(Update(rollout.spec.to_dict()))
        elif not endpoint.running:  # else it is told as soon as it is connected
            await start(endpoint, rollout.spec)
        match await rollout.news():
            case Served():
                return
            case Failed() as failed:
                raise failure(failed)
            case TemplateGone(reason=reason):
                continue
    raise DeployFailed(reason or "The process that makes its workers keeps leaving. `flash logs` tells more.")
