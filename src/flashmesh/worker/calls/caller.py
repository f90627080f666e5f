"""How user code in a worker calls decorated functions: here, at a peer, or over HTTP.

A function of this endpoint runs in this process. One of another resource goes to that endpoint's Unix socket where it
is on this machine, one connection per call, else to its URL; a load-balanced one to its HTTP route there. What no
address is known for runs here when its code and the hardware it wants are here (with a warning that says why), else it
is an error. The session takes no part in it, except in `spawn`.

A direct call runs at most once, unless its function declares `retries=`: else it is repeated only when nobody accepted
the connection, after one fresh look at the manifest, or when the answer says that it was not run (repeats.py).
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from functools import cached_property
from typing import Any, Final

from flashmesh.functions.blocking import iterate_blocking, run_blocking
from flashmesh.functions.caller import Call
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import EndpointUnresolved
from flashmesh.functions.jobs import Job
from flashmesh.functions.streams import as_async
from flashmesh.kit.ids import FunctionId
from flashmesh.routing.addresses import Address
from flashmesh.routing.keys import Keys
from flashmesh.routing.registry import ServiceRegistry
from flashmesh.routing.route import Local, Remote, Route, Unresolved
from flashmesh.wire.arguments import Binder
from flashmesh.wire.signature import Signer
from flashmesh.worker.calls.exchange import exchange, exchange_blocking, pieces, pieces_blocking
from flashmesh.worker.calls.lb_call import LbCall, RouteFailed
from flashmesh.worker.calls.network import Network
from flashmesh.worker.calls.passing_on import PassingOn
from flashmesh.worker.calls.peer_call import MOVED, PeerCall
from flashmesh.worker.calls.queue_call import Pending, QueueCall
from flashmesh.worker.calls.repeats import Repeats
from flashmesh.worker.calls.spawning import Spawning
from flashmesh.worker.stubs import is_stub

log = logging.getLogger(__name__)

FALLBACK: Final = "FLASH_LOCAL_FALLBACK"
Plan = PeerCall | QueueCall | LbCall
"""One call as bytes, and what its answer means."""


class Callee:
    """What is the same in every call of one function or method.

    Attributes:
        declared: the id of the function or class, by which its route is found. id: with the method.
    """

    def __init__(self, declared: FunctionId, declaration: Declaration, method: str | None) -> None:
        self.declared = declared
        self.id = declared if method is None else f"{declared}.{method}"
        self._target: Any = declaration.target if method is None else getattr(declaration.target, method)

    @cached_property
    def binder(self) -> Binder:
        """Turns results into the types it declares."""
        return Binder(self._target)


class WorkerCaller:
    """The Caller of a worker process.

    Args:
        own: this endpoint's id, as chains of calls name it.
        config: its own, to know which hardware is here.
        declared: function and class ids of this endpoint, as written.
        written_name: the dotted path of a module as the project writes it.
    """

    def __init__(
        self,
        *,
        own: str,
        config: ResourceConfig,
        declared: frozenset[str],
        registry: ServiceRegistry,
        keys: Keys,
        network: Network,
        written_name: Callable[[str], str],
        signer: Signer | None,
        link: str,
        environ: Mapping[str, str],
    ) -> None:
        self._own = own
        self._config = config
        self._declared = declared
        self._registry = registry
        self._network = network
        self._keys = keys
        self._written_name = written_name
        self._signer = signer
        self._environ = environ
        self._callees: dict[tuple[Declaration, str | None], Callee] = {}
        self._spawning = Spawning(link, signer=signer)
        self.passing_on = PassingOn(own=own, registry=registry, keys=keys, network=network)

    @property
    def queries(self) -> int:
        """How often this endpoint's workers asked the State Manager where others are."""
        return self._registry.queries

    # --- the port ---

    def is_local(self, declaration: Declaration) -> bool:
        """Whether the function is this endpoint's own."""
        if self._id(declaration) not in self._declared:
            return False
        log.debug("Executing '%s' locally", declaration.name)
        return True

    async def call(self, call: Call) -> Any:
        repeats: Repeats | None = None
        while True:
            plan = await self._planned(call)
            if plan is None:
                result = self._run_here(call)
                return await result if hasattr(type(result), "__await__") else result
            try:
                return await self._value(plan)
            except Exception as error:
                repeats = repeats or self._repeats(call)
                pause_s = self._pause_s(repeats, error)
            if repeats.looks:
                await self._look_again()
            await asyncio.sleep(pause_s)

    def call_blocking(self, call: Call) -> Any:
        repeats: Repeats | None = None
        while True:
            plan = self._planned_blocking(call)
            if plan is None:
                result = self._run_here(call)
                return run_blocking(result) if hasattr(type(result), "__await__") else result
            try:
                return self._value_blocking(plan)
            except Exception as error:
                repeats = repeats or self._repeats(call)
                pause_s = self._pause_s(repeats, error)
            if repeats.looks:
                self._registry.look_again()
            time.sleep(pause_s)

    async def stream(self, call: Call) -> AsyncIterator[Any]:
        repeats, began = self._repeats(call), False
        while True:
            plan = await self._planned(call)
            if plan is None:
                items = self._run_here(call)
                async for item in items if hasattr(type(items), "__anext__") else as_async(items):
                    yield item
                return
            reader = plan.items()
            parts = pieces(plan.address, plan.request(stream=True), seconds=plan.wait_s, network=self._network)
            try:
                async for response, data in parts:
                    for item in reader.feed(response, data):
                        began = True
                        yield item
                reader.end()
                return
            except Exception as error:
                if began:
                    raise
                pause_s = self._pause_s(repeats, error)
            finally:
                await parts.aclose()
            if repeats.looks:
                await self._look_again()
            await asyncio.sleep(pause_s)

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        repeats, began = self._repeats(call), False
        while True:
            plan = self._planned_blocking(call)
            if plan is None:
                items = self._run_here(call)
                yield from iterate_blocking(items) if hasattr(type(items), "__anext__") else items
                return
            reader, request = plan.items(), plan.request(stream=True)
            try:
                for response, data in pieces_blocking(
                    plan.address, request, seconds=plan.wait_s, network=self._network
                ):
                    for item in reader.feed(response, data):
                        began = True
                        yield item
                reader.end()
                return
            except Exception as error:
                if began:
                    raise
                pause_s = self._pause_s(repeats, error)
            if repeats.looks:
                self._registry.look_again()
            time.sleep(pause_s)

    def spawn(self, call: Call) -> Job:
        if self._registry.must_ask:
            self._registry.load()
        route = self._registry.route(FunctionId(self._id(call.declaration)))
        endpoint = "" if isinstance(route, Unresolved) else route.endpoint
        return self._spawning.spawn(call, self._callee_of(call).id, endpoint=endpoint)

    # --- deciding ---

    def _repeats(self, call: Call) -> Repeats:
        return Repeats(lambda: call.declaration.config)

    def _pause_s(self, repeats: Repeats, error: Exception) -> float:
        """Seconds to wait before the call is made again. Raises `error` when it is final."""
        if isinstance(error, RouteFailed) and error.http_status in MOVED:
            self._registry.look_again_soon()  # a route of its own answers so, or nobody has it there any more
        return repeats.pause_s(error)

    async def _planned(self, call: Call) -> Plan | None:
        if self._registry.must_ask and self._id(call.declaration) not in self._declared:
            await asyncio.to_thread(self._registry.load)
        return self._plan(call)

    def _planned_blocking(self, call: Call) -> Plan | None:
        if self._registry.must_ask and self._id(call.declaration) not in self._declared:
            self._registry.load()
        return self._plan(call)

    async def _look_again(self) -> None:
        if self._registry.asks:
            await asyncio.to_thread(self._registry.look_again)
        else:
            self._registry.look_again()

    async def _value(self, plan: Plan) -> Any:
        request, wait_s = plan.request(stream=False), plan.wait_s
        until = time.monotonic() + wait_s
        while True:
            value = plan.value(*await exchange(plan.address, request, seconds=wait_s, network=self._network))
            if not isinstance(value, Pending):
                return value
            await asyncio.sleep(value.pause_s)
            request, wait_s = value.request, until - time.monotonic()

    def _value_blocking(self, plan: Plan) -> Any:
        request, wait_s = plan.request(stream=False), plan.wait_s
        until = time.monotonic() + wait_s
        while True:
            value = plan.value(*exchange_blocking(plan.address, request, seconds=wait_s, network=self._network))
            if not isinstance(value, Pending):
                return value
            time.sleep(value.pause_s)
            request, wait_s = value.request, until - time.monotonic()

    def _plan(self, call: Call) -> Plan | None:
        """What to send where; None = run it here. Raises EndpointUnresolved, CallCycle, NotEncodable."""
        callee = self._callee_of(call)
        route: Route = self._registry.route(callee.declared)
        match route:
            case Local():
                self._check_fallback(call, "it belongs to this endpoint, which does not serve it (yet)")
                return None
            case Unresolved(reason=reason):
                self._check_fallback(call, reason)
                return None
            case Remote():
                log.debug("Routing '%s' to %s", call.declaration.name, route.url)
                key = "" if route.socket or route.address is None else self._key(route.address)
                if route.http_method is not None:
                    return LbCall(route, call, binder=callee.binder, own=self._own, key=key)
                if route.queue:
                    return QueueCall(route, call, function=callee.id, binder=callee.binder, own=self._own, key=key)
                return PeerCall(
                    route,
                    call,
                    function=callee.id,
                    binder=callee.binder,
                    own=self._own,
                    signer=self._signer,
                    key=key,
                )

    def _key(self, address: Address) -> str:
        return self._keys.for_endpoint(address, source=self._registry.source)

    def _check_fallback(self, call: Call, reason: str) -> None:
        """Returns when the body may run here instead; raises EndpointUnresolved when not."""
        name = call.declaration.name
        obstacle = ""
        if self._environ.get(FALLBACK, "1") == "0":
            obstacle = f"{FALLBACK}=0 forbids to run it here"
        elif is_stub(call.declaration):
            obstacle = "its code cannot be imported here"
        elif call.declaration.config.gpus and not self._config.gpus:
            obstacle = "it wants a GPU, which this endpoint does not have"
        if obstacle:
            raise EndpointUnresolved(
                f"{name!r} has no address: {reason}; and {obstacle}. `flash status` shows what is up."
            )
        log.warning("Function lookup failed: %s. Executing '%s' locally", reason, name)

    def _run_here(self, call: Call) -> Any:
        declaration = call.declaration
        function = declaration.target
        if call.method is not None:
            function = getattr(declaration.instances.get(*(call.init or ((), {}))), call.method)
        return function(*call.args, **call.kwargs)

    def _callee_of(self, call: Call) -> "Callee":
        """Worked out once for each function and method that is called."""
        key = (call.declaration, call.method)
        callee = self._callees.get(key)
        if callee is None:
            declared = FunctionId(self._id(call.declaration))
            callee = self._callees[key] = Callee(declared, call.declaration, call.method)
        return callee

    def _id(self, declaration: Declaration) -> str:
        return f"{self._written_name(declaration.module)}.{declaration.qualname}"
