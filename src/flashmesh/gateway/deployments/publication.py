"""What is recorded of an environment, told to those who look it up: names in the registry, the manifest in its file."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from flashmesh.deploy.reconcile import serves
from flashmesh.gateway.deployments.manifest_files import ManifestFiles
from flashmesh.gateway.functions.project_functions import Deployed
from flashmesh.gateway.functions.registry import FunctionRegistry
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import AppNotFound, Environment, EnvironmentNotFound, Served
from flashmesh.project.identity import endpoint_id
from flashmesh.project.restored import ManifestInvalid, project_of

REFRESH_S: Final = 0.05
"""How far names and manifests may be behind what is recorded while a deployment runs. Less: a deploy of hundreds of
resources takes more of the time in which calls are served."""


class Publication:
    """Everything on the event loop. `close` at the end."""

    def __init__(
        self, *, state: StateManager, registry: FunctionRegistry, manifests: ManifestFiles, clock: Callable[[], float]
    ) -> None:
        """`clock`: seconds since the epoch."""
        self._state = state
        self._registry = registry
        self._manifests = manifests
        self._clock = clock
        self._due: dict[tuple[str, str], asyncio.TimerHandle] = {}
        self._known: dict[str, dict[str, tuple[float, Deployed | None]]] = {}
        """By environment and identity: endpoints as they were recorded at that time."""

    def soon(self, app: str, environment: str) -> None:
        """Once for all results that come close together: each takes as long as the environment is large."""
        if (app, environment) not in self._due:
            loop = asyncio.get_running_loop()
            self._due[(app, environment)] = loop.call_later(REFRESH_S, self.now, app, environment)

    def now(self, app: str, environment: str) -> None:
        """Bring names and the manifest's file up to what is recorded."""
        due = self._due.pop((app, environment), None)
        if due is not None:
            due.cancel()
        try:
            manifest = self._state.manifest(app, environment)
        except (AppNotFound, EnvironmentNotFound):
            self.forget(app, environment)
            return
        place = self._state.environment(app, environment)
        served = self._state.served(place.id)
        self._registry.serve_environment(app, environment, self._endpoints(place, served))
        if served:
            self._manifests.write(app, environment, manifest, at=self._clock())
        else:
            self._manifests.drop(app, environment)

    def _endpoints(self, place: Environment, served: Sequence[Served]) -> list[Deployed]:
        """What of an environment is found by name: everything of which some build serves."""
        before = self._known.get(place.id, {})
        known = {
            one.identity: before[one.identity]
            if one.identity in before and before[one.identity][0] == one.recorded_at
            else (one.recorded_at, deployed_endpoint(place, one))
            for one in served
            if serves(one.entry)
        }
        self._known[place.id] = known
        return [endpoint for _, endpoint in known.values() if endpoint is not None]

    def forget(self, app: str, environment: str) -> None:
        """The environment was removed."""
        self._registry.serve_environment(app, environment, [])
        self._manifests.drop(app, environment)

    def close(self) -> None:
        """Tell nothing any more."""
        for due in self._due.values():
            due.cancel()
        self._due.clear()


def deployed_endpoint(place: Environment, one: Served) -> Deployed | None:
    """A recorded resource as names and faces see it; None for one whose entry this version cannot read."""
    manifest = {"version": "1.0", "project_name": place.app, "resources": {one.name: one.entry}}
    try:
        (resource,) = project_of(manifest, Path("/")).resources
    except ManifestInvalid:
        return None
    return Deployed(
        endpoint=endpoint_id(place.app, place.name, one.identity),
        app=place.app,
        environment=place.name,
        resource=resource,
        url=one.entry.get("endpoint_url"),
    )
