"""Deployments: one at a time in each environment, carried out in the background, taken up again after a crash.

What is asked for is checked and written down before it is answered; from then on it is the server's to finish. The
state says at every moment what serves: each resource's result is recorded as it happens, then its names and the
manifest of its environment follow.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from flashmesh.deploy.reconcile import AT_ONCE, DONE, Failure, Step, entry_when_back, reconcile, serves, steps
from flashmesh.deploy.target import Deployable, Target
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.deployments.deployables import Deployables
from flashmesh.gateway.deployments.documents import deployment_document, event_document
from flashmesh.gateway.deployments.feed import Feed
from flashmesh.gateway.deployments.history import rollback_target
from flashmesh.gateway.deployments.journal import ALLOW_CPU, DeploymentJournal
from flashmesh.gateway.deployments.manifest_files import ManifestFiles
from flashmesh.gateway.deployments.publication import Publication
from flashmesh.gateway.deployments.values import ValuesKey
from flashmesh.gateway.functions.registry import FunctionRegistry
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import (
    AppNotFound,
    BuildNotFound,
    Deployment,
    DeploymentRunning,
    DeploymentStatus,
    Env,
    Environment,
    EnvironmentNotFound,
    Manifest,
    Served,
)
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.tasks import Tasks
from flashmesh.project.plan import Plan, plan
from flashmesh.project.restored import project_of

RETRY_S: Final = 1.0
"""How long after the store refused to note a deployment's end it is asked again."""
Notice = Callable[[str, str], None]
"""Told, text and level, what people should know."""


class ReplaceNeeded(FlashmeshError):
    """The deploy would remove what was last deployed from somewhere else. Say `--replace` if that is meant."""

    code = "REPLACE_NEEDED"
    status = 409


class NothingDeployed(FlashmeshError, LookupError):
    """Nothing of that name is deployed in this environment. `flash status` lists what is."""

    code = "NOT_DEPLOYED"
    status = 404


class Deployments:
    """Everything on the server's event loop. `restore`, then `resume`, once each; `close` at the end."""

    def __init__(
        self,
        *,
        state: StateManager,
        deployables: Deployables,
        target: Target,
        registry: FunctionRegistry,
        manifests: ManifestFiles,
        key: ValuesKey,
        server_url: str,
        notice: Notice,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._deployables = deployables
        self._target = target
        self._registry = registry
        self._manifests = manifests
        self._publication = Publication(state=state, registry=registry, manifests=manifests, clock=clock)
        self._key = key
        self._server_url = server_url
        self._notice = notice
        self._clock = clock
        self._running: dict[str, Feed] = {}
        """By deployment: those that this process carries out."""
        self._tasks = Tasks()
        self._turns: dict[tuple[str, str], asyncio.Lock] = {}
        self._schemas: dict[EndpointName, dict[str, Any]] = {}
        """By endpoint and callable: the schema of its arguments, as its template last said."""

    def template_said(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        """What a template said of its functions when it had imported them."""
        functions = {str(one["id"]): one.get("parameters") for one in info.get("functions") or ()}
        if functions:
            self._schemas[endpoint] = functions

    # Looking

    def plan(self, app: str, environment: str, wanted: Manifest, given: Env) -> Plan:
        """What a deploy of that manifest would change. Nothing is made, changed or kept.

        Args:
            given: values of environment variables by identity; of a resource that is not in it, those it has count.
        """
        project_of(wanted, Path("/"))  # refuses what is no manifest
        try:
            place = self._state.environment(app, environment)
        except (AppNotFound, EnvironmentNotFound):
            return plan(None, wanted, {})
        hashes = {identity: self._key.hash(values) for identity, values in given.items()}
        return plan(self._deployed(place), wanted, hashes)

    def document(self, deployment: Deployment) -> dict[str, Any]:
        """A deployment with what has become of each resource it touched."""
        resources: Mapping[str, Any] = {}
        try:
            resources = self._state.manifest(deployment.app, deployment.environment)["resources"]
        except (AppNotFound, EnvironmentNotFound):
            pass
        return deployment_document(deployment, self._state.progress_of(deployment.id), resources)

    def feed(self, deployment: str) -> Feed:
        """What happens in it: all from the beginning while this process carries it out, else where it stands.

        Raises DeploymentNotFound.
        """
        found = self._running.get(deployment)
        if found is not None:
            return found
        feed = Feed()
        self._state.deployment(deployment)
        for one in self._state.progress_of(deployment):
            feed.add(event_document(one.resource, one.state, one.error))
        feed.end()
        return feed

    def _deployed(self, place: Environment) -> Manifest:
        """What serves, or was to serve and failed. Where one took over another's name and that deploy was cut short,
        the other stands under its endpoint's id."""
        served = self._state.served(place.id)
        names: dict[str, Any] = {}
        for one in served:
            names[one.name if one.name not in names else str(one.entry.get("endpoint_id"))] = one.entry
        return {"resources": names}

    def workers(self) -> dict[str, dict[str, int]]:
        """By endpoint id: workers that are ready, and calls they run."""
        return self._registry.workers()

    # Asking for changes

    async def deploy(
        self,
        app: str,
        environment: str,
        build: str,
        *,
        given: Env,
        source: str = "",
        replace: bool = False,
        allow_cpu: bool = False,
        by: str = "",
    ) -> tuple[Deployment, Plan]:
        """Bring an environment to a build; app and environment are made when they are not there.

        Returns when it is written down and begun.

        Args:
            allow_cpu: serve resources also where the GPU they declare is not. Holds for a resource from then on.
        Raises:
            ReplaceNeeded, DeploymentRunning, BuildNotFound, ManifestInvalid, ArtifactDamaged, what unpacking raises,
            BadName, StoreUnavailable. Nothing was begun then.
        """
        try:
            wanted = self._state.build_manifest(app, build)
        except AppNotFound as error:
            raise BuildNotFound(f"The app {app!r} has no build {build!r} here. `flash deploy` brings it.") from error
        project_of(wanted, await self._deployables.folder(build))
        place = await self._state.ensure(app, environment)
        found = self._plan(place, wanted, given)
        if not replace:
            self._check_source(place, found, source)
        if allow_cpu:
            wanted = {**wanted, ALLOW_CPU: True}
        begun = await self._state.begin(
            app, environment, build, kind="deploy", wanted=wanted, env=given, source=source, by=by
        )
        self._carry_out(begun)
        return begun, found

    async def undeploy(
        self, app: str, environment: str, resources: Sequence[str] | None, *, source: str = "", by: str = ""
    ) -> tuple[Deployment, Plan]:
        """Take resources down, by name, declared name or endpoint id; None: all of this environment.

        Raises NothingDeployed, DeploymentRunning, AppNotFound, EnvironmentNotFound, StoreUnavailable.
        """
        place = self._state.environment(app, environment)
        served = self._state.served(place.id)
        if resources is None:
            gone = list(served)
        else:
            gone = [self._named(place, served, name) for name in dict.fromkeys(resources)]
        if not gone:
            raise NothingDeployed(f"Nothing is deployed in {place.place}. `flash status` lists what is.")
        leaving = {one.identity for one in gone}
        stays: dict[str, Any] = {
            "version": "1.0",
            "project_name": app,
            "resources": {one.name: one.entry for one in served if one.identity not in leaving},
        }
        begun = await self._state.begin(app, environment, None, kind="undeploy", wanted=stays, source=source, by=by)
        found = plan(self._deployed(place), stays, {})
        self._carry_out(begun)
        return begun, Plan(removed=found.removed)

    async def rollback(
        self, app: str, environment: str, build: str | None = None, *, source: str = "", by: str = ""
    ) -> tuple[Deployment, Plan]:
        """Bring an environment back to what an earlier deployment made of it, values included.

        Raises NothingToRollBackTo, DeploymentRunning, AppNotFound, EnvironmentNotFound, BuildNotFound,
        ArtifactDamaged, StoreUnavailable.
        """
        place = self._state.environment(app, environment)
        earlier = rollback_target(self._state.deployments(app, environment), build)
        assert earlier.build is not None
        await self._deployables.folder(earlier.build)
        wanted = self._state.wanted(earlier.id) or self._state.build_manifest(app, earlier.build)
        given = self._state.wanted_env(earlier.id)
        found = self._plan(place, wanted, given)
        begun = await self._state.begin(
            app, environment, earlier.build, kind="rollback", wanted=wanted, env=given, source=source, by=by
        )
        self._carry_out(begun)
        return begun, found

    async def amend(self, endpoint: EndpointName, counts: Mapping[str, Any]) -> None:
        """Give a resource other worker counts (ResourceConfig's names) until the next deploy.

        Raises NothingDeployed, DeploymentRunning, DeployFailed, StoreUnavailable.
        """
        deployed = self._registry.deployed(endpoint)
        if deployed is None:
            raise NothingDeployed(" ".join(str(NothingDeployed.__doc__).split()))
        place = self._state.environment(deployed.app, deployed.environment)
        turn = self._turn(place.app, place.name)
        if place.running is not None and turn.locked():
            raise DeploymentRunning(self._state.deployment(place.running))
        async with turn:
            one = next(one for one in self._state.served(place.id) if one.entry.get("endpoint_id") == endpoint)
            entry = {**one.entry, "config": {**one.entry["config"], **counts}}
            await self._target.resize(await self._recorded(place, one, entry))
            await self._state.record(place.id, one.identity, entry, name=one.name)
        self._publication.now(place.app, place.name)

    def _turn(self, app: str, environment: str) -> asyncio.Lock:
        """Held by whoever acts on an environment's endpoints."""
        return self._turns.setdefault((app, environment), asyncio.Lock())

    def _named(self, place: Environment, served: Sequence[Served], name: str) -> Served:
        for one in served:
            declared = one.entry.get("config", {}).get("name")
            if name in (one.name, declared, one.entry.get("endpoint_id")):
                return one
        known = ", ".join(one.name for one in served) or "nothing"
        raise NothingDeployed(f"{name!r} is not deployed in {place.place}; there is: {known}.")

    def _check_source(self, place: Environment, found: Plan, source: str) -> None:
        others = {
            one.identity: one.source
            for one in self._state.served(place.id)
            if one.source and source and one.source != source
        }
        foreign = [change for change in found.removed if change.identity in others]
        if foreign:
            names = ", ".join(change.name for change in foreign)
            origins = ", ".join(sorted({others[change.identity] for change in foreign}))
            raise ReplaceNeeded(
                f"This deploy would remove {names} from {place.place}, last deployed from {origins}. Deploy with "
                "`--replace` if that is meant, or give this project an app or environment of its own: `--app`, `--env`."
            )

    def _plan(self, place: Environment, wanted: Manifest, given: Env) -> Plan:
        return plan(self._deployed(place), wanted, {one: self._key.hash(values) for one, values in given.items()})

    # Carrying out

    def _carry_out(self, deployment: Deployment) -> None:
        feed = self._running[deployment.id] = Feed()
        self._tasks.begin(self._run(deployment, feed), name=f"deployment {deployment.id}")

    async def _run(self, deployment: Deployment, feed: Feed) -> None:
        """Until its end is written down. Cancelled, it stays unfinished: the next start takes it up."""
        try:
            async with self._turn(deployment.app, deployment.environment):
                failures = await self._reconcile(deployment, feed)
            status, error = _outcome(failures)
        except asyncio.CancelledError:
            raise
        except BaseExceptionGroup as group:
            status, error = "failed", _first_of(group)
        except Exception as fault:
            status, error = "failed", str(fault) if isinstance(fault, FlashmeshError) else repr(fault)
        await self._finish(deployment, status, error)
        self._publication.now(deployment.app, deployment.environment)
        self._running.pop(deployment.id, None)
        feed.end()

    async def _reconcile(self, deployment: Deployment, feed: Feed) -> Sequence[Failure]:
        def told(step: Step, word: str, error: str | None) -> None:
            feed.add(event_document(step.name, word, error))
            if word == "failed":
                self._notice(f"{deployment.place}: {step.name} could not be {DONE[step.action]}: {error}", "error")

        place = self._state.environment(deployment.app, deployment.environment)
        wanted = self._state.wanted(deployment.id) or {"resources": {}}
        journal = DeploymentJournal(
            deployment,
            place,
            wanted=wanted,
            given=self._state.wanted_env(deployment.id),
            state=self._state,
            deployables=self._deployables,
            key=self._key,
            server_url=self._server_url,
            schemas=lambda endpoint: self._schemas.get(endpoint, {}),
            told=told,
            changed=lambda: self._publication.soon(deployment.app, deployment.environment),
        )
        undeploys = deployment.kind == "undeploy"
        found = plan(self._deployed(place), wanted, {} if undeploys else journal.values_hashes())
        return await reconcile(
            steps(found, removals_only=undeploys), target=self._target, journal=journal, at_once=AT_ONCE
        )

    async def _finish(self, deployment: Deployment, status: DeploymentStatus, error: str | None) -> None:
        said = False
        while True:
            try:
                await self._state.finish(deployment.id, status, error)
                return
            except FlashmeshError as refusal:
                if refusal.status != 503:
                    return  # it was ended or removed by somebody else
                if not said:
                    said = True
                    self._notice(f"The end of deployment {deployment.id} cannot be stored yet: {refusal}", "error")
            await asyncio.sleep(RETRY_S)

    # From one start to the next

    async def restore(self) -> None:
        """Go on with everything that is recorded: before calls are taken up and taken.

        What cannot be served now is told and recorded; the next start, or the next deploy, tries again. What is stored
        counts: a manifest on disk that says something else is told and replaced.
        """
        places = self._state.environments()
        self._manifests.keep_only((place.app, place.name) for place in places)
        for place in places:
            served = [one for one in self._state.served(place.id) if serves(one.entry)]
            if served:
                manifest = self._state.manifest(place.app, place.name)
                other = self._manifests.differences(place.app, place.name, manifest)
                if other:
                    said = f"The manifest of {place.place} on disk was another than the one stored"
                    self._notice(f"{said} ({', '.join(other)}); it was replaced.", "warning")
                self._manifests.write(place.app, place.name, manifest, at=self._clock())
                await asyncio.gather(*(self._adopt(place, one) for one in served))
            self._publication.now(place.app, place.name)

    async def _adopt(self, place: Environment, one: Served) -> None:
        address, error = None, ""
        try:
            address = await self._target.adopt(await self._recorded(place, one, one.entry))
        except FlashmeshError as fault:
            error = str(fault)
            self._notice(f"{place.place}: {one.name} is not served: {error}", "error")
        entry = entry_when_back(one.entry, address, error)
        if entry != one.entry:
            await self._state.record(place.id, one.identity, entry, name=one.name)

    async def _recorded(self, place: Environment, one: Served, entry: Mapping[str, Any]) -> Deployable:
        """A recorded resource as it serves, with the settings of `entry`."""
        return await self._deployables.of(
            place,
            one.identity,
            one.name,
            entry,
            build=str(entry["build"]),
            values=self._state.served_env(place.id, one.identity),
            values_hash=str(entry.get("env_hash") or ""),
            address=entry.get("endpoint_url"),
        )

    def resume(self) -> None:
        """Take up deployments that a crash cut short, and what else was to go on."""
        for deployment in self._state.unfinished():
            self._notice(
                f"Deployment {deployment.number} of {deployment.place} goes on where it was cut short.", "info"
            )
            self._carry_out(deployment)

    async def close(self) -> None:
        """Leave what is under way as it stands: the next start takes it up."""
        await self._tasks.close()
        self._publication.close()
        for feed in self._running.values():
            feed.end()


def _outcome(failures: Sequence[Failure]) -> tuple[DeploymentStatus, str | None]:
    if not failures:
        return "succeeded", None
    names = ", ".join(sorted(failure.step.name for failure in failures))
    return "failed", f"{len(failures)} failed: {names}. What served before serves on; mend it and deploy again."


def _first_of(group: BaseExceptionGroup[BaseException]) -> str:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return str(first) if isinstance(first, FlashmeshError) else repr(first)
