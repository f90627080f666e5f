"""Everything that is served, by name: a project's functions, those of deployed environments, and those made by POST.

Where a project or a deployed endpoint runs is the business of its target, and POSTed functions have a module of their
own (`posted_functions.py`); here all of them get their names, and what is changed by name finds its way.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from flashmesh.functions.errors import FunctionNotFound, ValidationError
from flashmesh.gateway.access.place import names_place, where_of
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.database import Database
from flashmesh.gateway.directory import ANYWHERE, Callee, Where
from flashmesh.gateway.functions.catalog import Catalog
from flashmesh.gateway.functions.external.addresses import Network, PlainHttp
from flashmesh.gateway.functions.external.processes import Processes
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.names import Names
from flashmesh.gateway.functions.posted_functions import PostedFunctions
from flashmesh.gateway.functions.project_functions import Deployed, changed, changes_of, response, served_of
from flashmesh.gateway.functions.sources import Sources
from flashmesh.gateway.functions.spec import FunctionSpec, Patch, ProjectPatch, parse, parse_body, patched
from flashmesh.gateway.functions.spec import response as external_response
from flashmesh.gateway.http import Request
from flashmesh.kit.ids import EndpointName
from flashmesh.project.model import ResourceSpec
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import Clock, EventLog
from flashmesh.wire.frames import Log

_NO_APP: Final = "\0"
"""Of a caller whose token is not known any more: it was revoked while its request came in."""


class Settings(Protocol):
    """What of the server's settings concerns functions."""

    @property
    def allow_commands(self) -> bool: ...

    @property
    def plain_networks(self) -> Sequence[str]: ...

    @property
    def max_body_bytes(self) -> int: ...


async def _nobody(endpoint: EndpointName, counts: Mapping[str, Any]) -> None:
    raise FunctionNotFound(f"{endpoint} is not deployed here")


class FunctionRegistry:
    """Implements Directory. Everything on the event loop; takes its place as the dispatcher's source of workers."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        clock: Clock,
        settings: Settings,
        database: Database | None = None,
        on_log: Callable[[Log], None] = lambda line: None,
        log: EventLog = lambda event, fields: None,
        amend_project: Callable[[ResourceSpec], Awaitable[None]] | None = None,
        callback_url: str | None = None,
        directory: Path | None = None,
        scratch: Path | None = None,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        loop: asyncio.AbstractEventLoop | None = None,
        app: str = "",
        grant: Callable[[str], Grant | None] = lambda principal: None,
    ) -> None:
        """Args:
        database: keeps what is POSTed and PATCHed; None: it is forgotten when the server ends.
        on_log: told what commands print.
        amend_project: makes the local target serve a project's resource with other settings (mode, workers).
        callback_url: base of `{url}/{execution}:complete`, told to functions.
        directory: where commands run; None: where the server was started.
        scratch: holds the files of FILE functions; None: the system's temporary directory.
        tls: makes what checks the certificates of https addresses.
        app: the app of the project that is served without a deploy; it stands in `production`.
        grant: what the token of a caller allows.
        """
        self.version = 0
        self._dispatcher = dispatcher
        self._catalog = Catalog(database)
        self._amend_project = amend_project
        self.scoped = False
        self.on_scoped: Callable[[], None] = lambda: None
        """Called when `scoped` may have changed."""
        self.amend_deployed: Callable[[EndpointName, Mapping[str, Any]], Awaitable[None]] = _nobody
        """Gives a deployed endpoint other worker counts."""
        self._app = app
        self._grant = grant
        self._resources: dict[EndpointName, ResourceSpec] = {}
        self._deployed: dict[tuple[str, str], tuple[Deployed, ...]] = {}
        self._endpoints: dict[EndpointName, Deployed] = {}
        self._names = Names(())
        loop = loop or asyncio.get_running_loop()
        networks: list[str | Network] = list(settings.plain_networks)
        self.posted = PostedFunctions(
            catalog=self._catalog,
            around=Surroundings(
                dispatcher=dispatcher,
                loop=loop,
                processes=Processes(loop=loop),
                plain_http=PlainHttp(networks),
                callback_url=callback_url,
                directory=directory,
                scratch=scratch,
                on_log=on_log,
                wall=clock.wall,
                max_answer_bytes=settings.max_body_bytes,
                tls=tls,
            ),
            allow_commands=settings.allow_commands,
            taken=lambda name: self._names.taken(name),
            changed=self._changed,
            log=log,
        )
        dispatcher.source = Sources(local=dispatcher.source, external=self.posted.adapters)

    # What is served

    def serve_project(self, resources: Iterable[ResourceSpec]) -> None:
        """Exactly these resources are the project's now. The local target serves them; here they get their names.

        A POSTed function that one of them would hide is no longer served (it stays stored, and comes back with a
        restart once the name is free).
        """
        self._resources = {resource.name: resource for resource in resources}
        self.posted.make_way(Names(served_of(resource) for resource in self._resources.values()))
        self._changed()

    def serve_environment(self, app: str, environment: str, endpoints: Iterable[Deployed]) -> None:
        """Exactly these are the environment's endpoints now. The target serves them; here they get their names."""
        found = tuple(endpoints)
        if found:
            self._deployed[(app, environment)] = found
        else:
            self._deployed.pop((app, environment), None)
        self._endpoints = {one.endpoint: one for group in self._deployed.values() for one in group}
        self.scoped = bool(self._deployed)
        self.on_scoped()
        self._changed()

    def deployed_endpoints(self) -> Iterable[Deployed]:
        """All of all environments."""
        return self._endpoints.values()

    def deployed(self, endpoint: EndpointName) -> Deployed | None:
        """A deployed endpoint by its id."""
        return self._endpoints.get(endpoint)

    def amended(self, resources: Iterable[ResourceSpec]) -> tuple[ResourceSpec, ...]:
        """A project's resources with what PATCH has changed: what the local target should declare."""
        changes = self._catalog.changes()
        found = []
        for resource in resources:
            try:
                found.append(changed(resource, changes.get(resource.name, {})))
            except (ValidationError, TypeError):  # the project has moved on
                found.append(resource)
        return tuple(found)

    async def restore(self) -> None:
        """Serve what was POSTed before a restart. After `serve_project`, before calls are restored."""
        self.posted.restore()

    def where(self, request: Request) -> Where:
        """See Directory. Without deployed environments the gate has seen to it."""
        if not self.scoped:
            return ANYWHERE
        grant = self._grant(request.principal) if request.principal else None
        limited = bool(request.principal) and (grant is None or grant.limited)
        if not limited and not names_place(request.query, request.headers):
            return ANYWHERE  # nearly all
        found = where_of(request.query, request.headers, grant)
        return found if grant is not None or not request.principal else found._replace(only_app=_NO_APP)

    def visible(self, endpoint: EndpointName, where: Where) -> bool:
        """See Directory."""
        return self._names.visible(endpoint, where)

    def within(self, endpoint: EndpointName, where: Where) -> bool:
        """See Directory."""
        return self._names.within(endpoint, where)

    def function(self, name: str, where: Where = ANYWHERE) -> Callee:
        """See Directory."""
        return self._names.function(name, where)

    def endpoint(self, name: str, where: Where = ANYWHERE) -> tuple[Callee, ...]:
        """See Directory."""
        found = self._names.endpoint(name, where)
        if not found:
            raise FunctionNotFound(f"{name} has HTTP routes and no queue. Call them below /lb/{name}/")
        return found

    def functions(self) -> tuple[Callee, ...]:
        """See Directory."""
        return self._names.callees

    def describe(self, callee: Callee) -> Mapping[str, Any]:
        """See Directory. Raises FunctionNotFound for one that is gone."""
        posted = self.posted.of(callee.endpoint)
        if posted is not None:
            return external_response(posted.external)
        if callee.named and (deployed := self._endpoints.get(callee.endpoint)) is not None:
            return deployed.response(callee)
        resource = self._resources.get(callee.endpoint)
        if resource is None:
            raise FunctionNotFound(f"no function {callee.function} is served here any more")
        return response(resource, callee)

    # Changing it

    async def create(self, spec: FunctionSpec | bytes) -> Mapping[str, Any]:
        """Serve a function; FunctionResponse, once it is durable (status 201).

        Raises:
            ValidationError, MalformedRequest: the spec makes no sense; names the field.
            CommandsNotAllowed: it has a `command`, and the server does not allow those.
            FunctionExists: something of that name is served, or is being registered.
            StoreUnavailable: it could not be stored, so it is not served.
        """
        return external_response(await self.posted.create(parse(spec) if isinstance(spec, bytes) else spec))

    async def patch(self, name: str, body: bytes, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """Change a function while it is served; FunctionResponse.

        POSTed ones: `concurrency`, `timeoutMs`, `maxRetries`. A project's (its whole endpoint): `mode`, `workersMin`,
        `workersMax`. Raises FunctionNotFound, AmbiguousFunction, ValidationError, MalformedRequest, StoreUnavailable.
        """
        callee = self._one(name, where)
        posted = self.posted.of(callee.endpoint)
        if posted is None:
            return await self._patch_project(callee, changes_of(parse_body(body, ProjectPatch)))
        await self.posted.respecify(posted, patched(posted.external.spec, parse_body(body, Patch)))
        return external_response(posted.external)

    async def delete(self, name: str) -> None:
        """Serve a POSTed function no longer (status 204): calls in flight finish, those that wait fail.

        Raises FunctionNotFound, ValidationError (a project's functions come and go with its files), StoreUnavailable.
        """
        callee = self._one(name)
        posted = self.posted.of(callee.endpoint)
        if posted is None:
            raise ValidationError(f"{callee.function} belongs to a project; remove it from its file", field="name")
        await self.posted.remove(posted)

    def workers(self) -> dict[str, dict[str, int]]:
        """By endpoint: workers that are ready, and calls they run."""
        return {
            str(one["name"]): {"ready": int(one["workers"]), "running": int(one["running"])}
            for one in self._dispatcher.status()["endpoints"]
        }

    async def replicas(self, name: str, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """`{name, desiredReplicas, readyReplicas}`. Raises FunctionNotFound, AmbiguousFunction."""
        callee = self._one(name, where)
        ready = self.workers().get(callee.endpoint, {"ready": 0})["ready"]
        posted = self.posted.of(callee.endpoint)
        desired = self._resource_of(callee).config.workers_min if posted is None else posted.replicas
        return {"name": callee.function, "desiredReplicas": desired, "readyReplicas": ready}

    async def set_replicas(self, name: str, replicas: int, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """Keep so many processes (workers) at least, and let idle ones beyond it go; `{function, replicas}`.

        Raises ValidationError for what has no replicas here: an `endpointUrl`, or a process for each call.
        """
        callee = self._one(name, where)
        posted = self.posted.of(callee.endpoint)
        if posted is None:
            config = self._resource_of(callee).config
            await self._patch_project(
                callee, {"workers_min": replicas, "workers_max": max(1, replicas, config.workers_max)}
            )
        else:
            await self.posted.set_replicas(posted, replicas)
        return {"function": callee.function, "replicas": replicas}

    async def close(self) -> None:
        """End what POSTed functions have running, at once. What is POSTed stays stored."""
        await self.posted.close()

    # Acting

    def _one(self, name: str, where: Where = ANYWHERE) -> Callee:
        """A function by its name, or the only one of an endpoint."""
        try:
            return self._names.function(name, where)
        except FunctionNotFound:
            found = self._names.endpoint(name, where)
            return found[0] if found else self._names.function(name, where)

    def _resource_of(self, callee: Callee) -> ResourceSpec:
        deployed = self._endpoints.get(callee.endpoint) if callee.named else None
        return self._resources[callee.endpoint] if deployed is None else deployed.resource

    async def _patch_project(self, callee: Callee, changes: dict[str, Any]) -> Mapping[str, Any]:
        if callee.named:
            await self._patch_deployed(callee, changes)
            return self.describe(callee)
        resource = self._resources[callee.endpoint]
        new = changed(resource, changes)
        if new != resource:
            kept = {**self._catalog.changes().get(resource.name, {}), **changes}
            await self._catalog.keep_changes(resource.name, kept)
            self._resources[resource.name] = new
            if self._amend_project is not None:
                await self._amend_project(new)
            self._changed()
        return response(new, callee)

    async def _patch_deployed(self, callee: Callee, changes: dict[str, Any]) -> None:
        """Worker counts until the next deploy, whose plan shows what they are declared as."""
        if "mode" in changes:
            raise ValidationError(
                f"executionMode: {callee.function} is deployed, and its mode is part of its version. Change it in the "
                "code or in flash.toml and run `flash deploy`",
                field="executionMode",
            )
        changed(self._resource_of(callee), changes)
        await self.amend_deployed(callee.endpoint, changes)

    def _changed(self) -> None:
        served = [served_of(resource)._replace(app=self._app) for resource in self._resources.values()]
        served += [one.served() for one in self._endpoints.values()]
        served += [posted.served() for posted in self.posted]
        self._names = Names(served)
        self.version += 1
