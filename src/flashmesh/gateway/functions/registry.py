"""Everything that is served, by name: a project's functions, and those made by POST.

What is POSTed is durable before it is answered, and served again after a restart. Names are reserved while their write
is under way, so of two registrations at once one wins and the other is told that it exists.
"""

import asyncio
import dataclasses
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from flashmesh.executions.record import StaleAttempt
from flashmesh.functions.errors import (
    CommandsNotAllowed,
    ExecutionNotFound,
    FlashmeshError,
    FunctionExists,
    FunctionNotFound,
    FunctionRemoved,
    ValidationError,
)
from flashmesh.gateway.access.place import names_place, where_of
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.database import Database
from flashmesh.gateway.directory import ANYWHERE, Callee, Where
from flashmesh.gateway.functions.catalog import Catalog
from flashmesh.gateway.functions.completion import outcome_of
from flashmesh.gateway.functions.external.addresses import Network, PlainHttp
from flashmesh.gateway.functions.external.command import CommandFunction, PerCallFunction
from flashmesh.gateway.functions.external.far_end import FarEnd
from flashmesh.gateway.functions.external.http import HttpFunction
from flashmesh.gateway.functions.external.processes import Processes
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.names import Names
from flashmesh.gateway.functions.posted import Adapter, Posted
from flashmesh.gateway.functions.project_functions import (
    Deployed,
    changed,
    changes_of,
    response,
    served_of,
)
from flashmesh.gateway.functions.sources import Sources
from flashmesh.gateway.functions.spec import (
    External,
    FunctionSpec,
    Patch,
    ProjectPatch,
    ScalingConfig,
    build_of,
    check,
    parse,
    parse_body,
    patched,
    plan_of,
)
from flashmesh.gateway.functions.spec import response as external_response
from flashmesh.gateway.http import Request
from flashmesh.kit.ids import EndpointName, ExecutionId
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
        self._clock = clock
        self._settings = settings
        self._catalog = Catalog(database)
        self._log = log
        self._amend_project = amend_project
        loop = loop or asyncio.get_running_loop()
        networks: list[str | Network] = list(settings.plain_networks)
        self._around = Surroundings(
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
        )
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
        self._posted: dict[EndpointName, Posted] = {}
        self._reserved: set[str] = set()
        self._adapters: dict[EndpointName, Adapter] = {}
        """Also of functions that were removed and still finish calls."""
        self._leaving: list[Adapter] = []
        """Of removed functions whose name has another one now."""
        self._names = Names(())
        dispatcher.source = Sources(local=dispatcher.source, external=self._adapters)

    # What is served

    def serve_project(self, resources: Iterable[ResourceSpec]) -> None:
        """Exactly these resources are the project's now. The local target serves them; here they get their names.

        A POSTed function that one of them would hide is no longer served (it stays stored, and comes back with a
        restart once the name is free).
        """
        self._resources = {resource.name: resource for resource in resources}
        taken = Names(served_of(resource) for resource in self._resources.values())
        for name, posted in list(self._posted.items()):
            if taken.taken(name):
                self._log("function_hidden", {"function": name})
                self._withdraw(posted)
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
        for stored in self._catalog.functions():
            name = stored.spec.name
            try:
                external = self._checked(stored.spec)
            except FlashmeshError as error:
                self._log("function_not_served", {"function": name, "reason": str(error)})
                continue
            if self._names.taken(name):
                self._log("function_hidden", {"function": name})
                continue
            self._serve(external, stored.created_at)
            self._changed()

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
        posted = self._posted.get(callee.endpoint)
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
        if isinstance(spec, bytes):
            spec = parse(spec)
        external = self._checked(spec)
        name = spec.name
        if name in self._reserved or self._names.taken(name):
            raise FunctionExists(f"a function {name} is served already. Delete it first, or PATCH it")
        self._reserved.add(name)
        try:
            created_at = self._clock.wall()
            await self._catalog.keep(spec, created_at)
            self._serve(external, created_at)
            self._changed()
        finally:
            self._reserved.discard(name)
        return external_response(external)

    async def patch(self, name: str, body: bytes, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """Change a function while it is served; FunctionResponse.

        POSTed ones: `concurrency`, `timeoutMs`, `maxRetries`. A project's (its whole endpoint): `mode`, `workersMin`,
        `workersMax`. Raises FunctionNotFound, AmbiguousFunction, ValidationError, MalformedRequest, StoreUnavailable.
        """
        callee = self._one(name, where)
        posted = self._posted.get(callee.endpoint)
        if posted is None:
            return await self._patch_project(callee, changes_of(parse_body(body, ProjectPatch)))
        await self._respecify(posted, patched(posted.external.spec, parse_body(body, Patch)))
        return external_response(posted.external)

    async def delete(self, name: str) -> None:
        """Serve a POSTed function no longer (status 204): calls in flight finish, those that wait fail.

        Raises FunctionNotFound, ValidationError (a project's functions come and go with its files), StoreUnavailable.
        """
        callee = self._one(name)
        posted = self._posted.get(callee.endpoint)
        if posted is None:
            raise ValidationError(f"{callee.function} belongs to a project; remove it from its file", field="name")
        if posted.closing:
            raise FunctionNotFound(f"{name} is being removed")
        posted.closing = True
        try:
            await self._catalog.drop(posted.external.name)
        except BaseException:
            posted.closing = False
            raise
        self._withdraw(posted)
        self._changed()

    def workers(self) -> dict[str, dict[str, int]]:
        """By endpoint: workers that are ready, and calls they run."""
        return {
            str(one["name"]): {"ready": one["workers"], "running": one["running"]}
            for one in self._dispatcher.status()["endpoints"]
        }

    async def replicas(self, name: str, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """`{name, desiredReplicas, readyReplicas}`. Raises FunctionNotFound, AmbiguousFunction."""
        callee = self._one(name, where)
        entry = next(
            (found for found in self._dispatcher.status()["endpoints"] if found["name"] == callee.endpoint), None
        )
        ready = 0 if entry is None else int(entry["workers"])
        posted = self._posted.get(callee.endpoint)
        if posted is not None:
            desired = 1 if posted.external.target or posted.external.per_call else posted.external.processes_min
        else:
            desired = self._resource_of(callee).config.workers_min
        return {"name": callee.function, "desiredReplicas": desired, "readyReplicas": ready}

    async def set_replicas(self, name: str, replicas: int, where: Where = ANYWHERE) -> Mapping[str, Any]:
        """Keep so many processes (workers) at least, and let idle ones beyond it go; `{function, replicas}`.

        Raises ValidationError for what has no replicas here: an `endpointUrl`, or a process for each call.
        """
        callee = self._one(name, where)
        posted = self._posted.get(callee.endpoint)
        if posted is None:
            config = self._resource_of(callee).config
            await self._patch_project(
                callee, {"workers_min": replicas, "workers_max": max(1, replicas, config.workers_max)}
            )
        else:
            await self._set_processes(posted, replicas)
        return {"function": callee.function, "replicas": replicas}

    async def _set_processes(self, posted: Posted, replicas: int) -> None:
        external = posted.external
        if external.target is not None or external.per_call:
            what = "answers at an address of its own" if external.target else "has a process for each call"
            raise ValidationError(f"replicas: {external.name} {what}, so it has no replicas", field="replicas")
        if replicas > external.spec.concurrency:
            raise ValidationError(
                f"replicas: more than `concurrency`, {external.spec.concurrency}; PATCH that first", field="replicas"
            )
        scaling = external.spec.scaling_config or ScalingConfig()
        most = max(1, replicas, external.processes_max)
        scaling = msgspec.structs.replace(scaling, min_replicas=replicas, max_replicas=most)
        await self._respecify(posted, msgspec.structs.replace(external.spec, scaling_config=scaling))

    # External executions

    def complete(self, execution: str, attempt: int | None, body: bytes) -> None:
        """An external function says how a call has ended that it answered 202, or is still to answer.

        What comes after the call's end is left aside: functions repeat their completions. `attempt` may be missing
        while there has been only one.

        Raises:
            ExecutionNotFound: no such execution, or not an external function's.
            StaleAttempt: of an attempt that is over.
            MalformedRequest, ValidationError: `body` is no InvocationResult.
        """
        outcome = outcome_of(body)
        record = self._dispatcher.execution(ExecutionId(execution))
        if record.endpoint not in self._adapters:
            raise ExecutionNotFound(f"execution {execution} is not one of an external function")
        if record.ended:
            return
        if attempt is None and record.attempt > 1:
            raise ValidationError(
                f"X-Dispatch-Attempt is missing, and this is attempt {record.attempt}", field="X-Dispatch-Attempt"
            )
        for far_end in self._far_ends(record.endpoint):
            flight = far_end.flights.get(execution)
            if flight is not None and attempt in (None, flight.invoke.attempt):
                far_end.complete(flight, outcome)
                return
        raise StaleAttempt(f"attempt {attempt or record.attempt} of execution {execution} is over")

    def _far_ends(self, endpoint: EndpointName) -> list[FarEnd]:
        adapters = [self._adapters[endpoint], *self._leaving]
        return [far_end for adapter in adapters for far_end in adapter.far_ends()]

    async def close(self) -> None:
        """End every command and connection at once. What is POSTed stays stored."""
        for adapter in [*self._adapters.values(), *self._leaving]:
            await adapter.close()
        await self._around.processes.close()

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

    def _checked(self, spec: FunctionSpec) -> External:
        external = check(spec)
        if external.argv and not self._settings.allow_commands:
            raise CommandsNotAllowed(
                f"{spec.name} starts a command on this machine, which this server does not allow. "
                "Start it with `--allow-commands`"
            )
        if external.target is not None:
            self._around.plain_http.check_literal(external.target)
        return external

    def _serve(self, external: External, created_at: float) -> None:
        name = EndpointName(external.name)
        build = build_of(external.spec, created_at)
        plan = plan_of(external, build)
        around = self._around
        adapter: Adapter
        if external.target is not None:
            adapter = HttpFunction(
                external,
                build,
                dispatcher=around.dispatcher,
                loop=around.loop,
                plain_http=around.plain_http,
                callback_url=around.callback_url,
                max_answer_bytes=around.max_answer_bytes,
                tls=around.tls,
            )
        elif external.per_call:
            adapter = PerCallFunction(external, build, around=around)
        else:
            adapter = CommandFunction(external, build, around=around)
        self._leaving = [left for left in self._leaving if any(end.flights for end in left.far_ends())]
        if name in self._adapters:
            self._leaving.append(self._adapters[name])
        self._posted[name] = Posted(external, plan, created_at, adapter)
        self._adapters[name] = adapter
        self._dispatcher.declare(plan)
        adapter.start()

    def _withdraw(self, posted: Posted) -> None:
        name = EndpointName(posted.external.name)
        del self._posted[name]
        # A call that finishes now has no other attempt: there will be nobody to run it.
        self._dispatcher.declare(dataclasses.replace(posted.plan, retries=0, max_retries=0))
        self._dispatcher.withdraw(name, FunctionRemoved(f"{name} was removed before the call ran"))
        posted.adapter.retire()

    async def _respecify(self, posted: Posted, spec: FunctionSpec) -> None:
        external = self._checked(spec)
        await self._catalog.keep(spec, posted.created_at)
        if posted.closing:
            await self._catalog.drop(spec.name)
            raise FunctionNotFound(f"{spec.name} is being removed")
        posted.external = external
        posted.plan = plan_of(external, posted.plan.build)
        self._dispatcher.declare(posted.plan)
        posted.adapter.amend(external)
        self._changed()

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
        served += [posted.served() for posted in self._posted.values()]
        self._names = Names(served)
        self.version += 1
