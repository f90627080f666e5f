"""One deployment as the reconciler sees it: where its steps get what they need and where their results are kept."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from flashmesh.deploy.reconcile import DOING, DONE, Step, entry_when_failed, entry_when_served, serves
from flashmesh.deploy.target import Deployable
from flashmesh.gateway.deployments.deployables import Deployables
from flashmesh.gateway.deployments.values import ValuesKey, chosen
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import Deployment, Env, Environment, Manifest, Served
from flashmesh.kit.ids import EndpointName
from flashmesh.project.identity import endpoint_id, identity_of
from flashmesh.project.manifest import EndpointAddress

Told = Callable[[Step, str, str | None], None]
"""Told of a step, in which state it is now, and what went wrong."""


class DeploymentJournal:
    """Implements Journal for one deployment. Made when it begins or is taken up again."""

    def __init__(
        self,
        deployment: Deployment,
        environment: Environment,
        *,
        wanted: Manifest,
        given: Env,
        state: StateManager,
        deployables: Deployables,
        key: ValuesKey,
        server_url: str,
        schemas: Callable[[EndpointName], Mapping[str, Any]],
        told: Told,
        changed: Callable[[], None],
    ) -> None:
        """Args:
        wanted: the build's manifest.
        given: values of environment variables that came with it, by identity.
        schemas: of an endpoint's callables, by id: what their arguments look like.
        told, changed: called after each event, and after each change of what serves.
        """
        self._deployment = deployment
        self._environment = environment
        self._state = state
        self._deployables = deployables
        self._server_url = server_url
        self._schemas = schemas
        self._told = told
        self._changed = changed
        self._key = key
        self._given = given
        self._wanted: dict[str, Mapping[str, Any]] = {
            identity_of(entry): entry for entry in wanted["resources"].values()
        }
        self._before: dict[str, Served] = {one.identity: one for one in state.served(environment.id)}

    def values(self, identity: str) -> dict[str, str]:
        """The values that a resource of the wanted manifest is to have."""
        kept = self._state.served_env(self._environment.id, identity) if identity in self._before else {}
        return chosen(env_names(self._wanted[identity]), self._given.get(identity), kept)

    def values_hashes(self) -> dict[str, str]:
        """Of every wanted resource, for the plan."""
        return {identity: self._key.hash(self.values(identity)) for identity in self._wanted}

    # Journal

    async def wanted(self, step: Step) -> Deployable:
        entry, before = self._wanted[step.identity], self._serving(step)
        values = self.values(step.identity)
        return await self._deployables.of(
            self._environment,
            step.identity,
            step.name,
            entry,
            build=self._build(step),
            values=values,
            values_hash=self._key.hash(values),
            address=None if before is None else before.get("endpoint_url"),
        )

    def endpoint(self, step: Step) -> EndpointName:
        return endpoint_id(self._environment.app, self._environment.name, step.identity)

    async def begun(self, step: Step) -> None:
        await self._tell(step, DOING[step.action])

    async def served(self, step: Step, wanted: Deployable, address: EndpointAddress) -> None:
        values = self.values(step.identity)
        face = "lb" if wanted.resource.is_load_balanced else "v2"
        entry = entry_when_served(
            self._wanted[step.identity],
            action=step.action if self._serving(step) is not None else "deploy",
            address=address,
            endpoint=wanted.endpoint,
            build=self._build(step),
            env_hash=self._key.hash(values),
            gateway_url=f"{self._server_url}/{face}/{wanted.endpoint}",
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        schemas = self._schemas(wanted.endpoint)
        if schemas:
            entry["schemas"] = dict(schemas)
        await self._state.record(
            self._environment.id,
            step.identity,
            entry,
            name=step.name,
            env=values,
            source=self._deployment.source,
        )
        self._changed()
        await self._tell(step, DONE[step.action])

    async def failed(self, step: Step, error: str) -> None:
        before = self._serving(step)
        wanted = self._wanted.get(step.identity) or self._before[step.identity].entry
        entry = entry_when_failed(before, wanted, error=error, endpoint=self.endpoint(step))
        name = self._before[step.identity].name if before is not None else step.name
        source = None if step.identity in self._before else self._deployment.source
        await self._state.record(self._environment.id, step.identity, entry, name=name, source=source)
        self._changed()
        await self._tell(step, "failed", error)

    async def removed(self, step: Step) -> None:
        await self._state.record(self._environment.id, step.identity, None)
        self._changed()
        await self._tell(step, DONE[step.action])

    # Helpers

    def _serving(self, step: Step) -> Mapping[str, Any] | None:
        """The entry of what serves already; None where nothing does, or never did."""
        found = self._before.get(step.identity)
        return found.entry if found is not None and serves(found.entry) else None

    def _build(self, step: Step) -> str:
        """The artifact the resource runs after the step: where only counts change, the one it runs."""
        before = self._serving(step)
        if step.action == "resize" and before is not None:
            return str(before["build"])
        return str(self._deployment.build)

    async def _tell(self, step: Step, word: str, error: str | None = None) -> None:
        await self._state.progress(self._deployment.id, step.name, word, error)
        self._told(step, word, error)


def env_names(entry: Mapping[str, Any]) -> list[str]:
    """The names of environment variables that a manifest's entry declares."""
    config = entry.get("config", {})
    return sorted(config.get("env") or (config.get("template") or {}).get("env") or [])
