"""The functions that were made by POST: kept on disk, each served by its adapter, changed, and removed.

What is POSTed is durable before it is answered, and served again after a restart. Names are reserved while their write
is under way, so of two registrations at once one wins and the other is told that it exists.

An adapter outlives its function while calls that it runs have not ended: what a removed function still says of them
counts.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

from msgspec import structs

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
from flashmesh.gateway.functions.catalog import Catalog
from flashmesh.gateway.functions.completion import outcome_of
from flashmesh.gateway.functions.external.command import CommandFunction, PerCallFunction
from flashmesh.gateway.functions.external.far_end import FarEnd
from flashmesh.gateway.functions.external.http import HttpFunction
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.names import Names
from flashmesh.gateway.functions.posted import Adapter, Posted
from flashmesh.gateway.functions.spec import External, FunctionSpec, ScalingConfig, build_of, check, plan_of
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId
from flashmesh.queueing.ports import EventLog


class PostedFunctions:
    """Iterates over those that are served. Everything on the event loop.

    Args:
        allow_commands: whether functions may start commands on this machine.
        taken: whether a name means something already, of whatever kind.
        changed: told when what is served, or how, has changed.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        around: Surroundings,
        allow_commands: bool,
        taken: Callable[[str], bool],
        changed: Callable[[], None],
        log: EventLog,
    ) -> None:
        self._catalog = catalog
        self._around = around
        self._dispatcher = around.dispatcher
        self._allow_commands = allow_commands
        self._taken = taken
        self._changed = changed
        self._log = log
        self._posted: dict[EndpointName, Posted] = {}
        self._reserved: set[str] = set()
        self._adapters: dict[EndpointName, Adapter] = {}
        self._leaving: list[Adapter] = []
        """Of removed functions whose name has another one now."""

    @property
    def adapters(self) -> Mapping[EndpointName, Adapter]:
        """By endpoint, living; also of functions that were removed and still finish calls."""
        return self._adapters

    def __iter__(self) -> Iterator[Posted]:
        return iter(self._posted.values())

    def of(self, endpoint: EndpointName) -> Posted | None:
        """The function that is served under that name."""
        return self._posted.get(endpoint)

    # What is served

    async def create(self, spec: FunctionSpec) -> External:
        """Serve a function. Returns once it is durable.

        Raises:
            ValidationError: the spec makes no sense; names the field.
            CommandsNotAllowed: it has a `command`, and the server does not allow those.
            FunctionExists: something of that name is served, or is being registered.
            StoreUnavailable: it could not be stored, so it is not served.
        """
        external = self._checked(spec)
        name = spec.name
        if name in self._reserved or self._taken(name):
            raise FunctionExists(f"a function {name} is served already. Delete it first, or PATCH it")
        self._reserved.add(name)
        try:
            created_at = self._around.wall()
            await self._catalog.keep(spec, created_at)
            self._serve(external, created_at)
            self._changed()
        finally:
            self._reserved.discard(name)
        return external

    def restore(self) -> None:
        """Serve what was POSTed before a restart, as far as it is still allowed and its name is free."""
        for stored in self._catalog.functions():
            name = stored.spec.name
            try:
                external = self._checked(stored.spec)
            except FlashmeshError as error:
                self._log("function_not_served", {"function": name, "reason": str(error)})
                continue
            if self._taken(name):
                self._log("function_hidden", {"function": name})
                continue
            self._serve(external, stored.created_at)
            self._changed()

    def make_way(self, names: Names) -> None:
        """Serve no longer what others of these names hide. It stays stored. The caller tells of the change."""
        for name, posted in list(self._posted.items()):
            if names.taken(name):
                self._log("function_hidden", {"function": name})
                self._withdraw(posted)

    async def respecify(self, posted: Posted, spec: FunctionSpec) -> None:
        """Serve it as `spec` says from now on; durable. Raises what `create` does, and FunctionNotFound."""
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

    async def set_replicas(self, posted: Posted, replicas: int) -> None:
        """Keep so many processes at least. Raises ValidationError where it has none, or cannot have so many."""
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
        scaling = structs.replace(scaling, min_replicas=replicas, max_replicas=most)
        await self.respecify(posted, structs.replace(external.spec, scaling_config=scaling))

    async def remove(self, posted: Posted) -> None:
        """Serve it no longer: calls in flight finish, those that wait fail.

        Raises FunctionNotFound when it is being removed already, StoreUnavailable.
        """
        name = posted.external.name
        if posted.closing:
            raise FunctionNotFound(f"{name} is being removed")
        posted.closing = True
        try:
            await self._catalog.drop(name)
        except BaseException:
            posted.closing = False
            raise
        self._withdraw(posted)
        self._changed()

    async def close(self) -> None:
        """End every command and connection at once. What is POSTed stays stored."""
        for adapter in [*self._adapters.values(), *self._leaving]:
            await adapter.close()
        await self._around.processes.close()

    # What they say of their calls

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

    # Acting

    def _checked(self, spec: FunctionSpec) -> External:
        external = check(spec)
        if external.argv and not self._allow_commands:
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
        adapter = _adapter(external, build, self._around)
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


def _adapter(external: External, build: BuildId, around: Surroundings) -> Adapter:
    if external.target is not None:
        return HttpFunction(
            external,
            build,
            dispatcher=around.dispatcher,
            loop=around.loop,
            plain_http=around.plain_http,
            callback_url=around.callback_url,
            max_answer_bytes=around.max_answer_bytes,
            tls=around.tls,
        )
    if external.per_call:
        return PerCallFunction(external, build, around=around)
    return CommandFunction(external, build, around=around)
