"""Requests that name a function of another endpoint, passed on by the worker that got them.

Flash's clients send a FunctionRequest to an endpoint of their app, whichever serves the function. The worker's face
hands one that is for somebody else to `PassingOn`, as if it were a call of a function of this endpoint: it has a slot,
a deadline, a trace and a chain like any other.
"""

import asyncio
from typing import Any, Final
from urllib.parse import quote

import msgspec

from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import FunctionNotFound, ValidationError
from flashmesh.routing.keys import Keys
from flashmesh.routing.registry import ServiceRegistry
from flashmesh.routing.remote_executor import RemoteExecutor, Request, name_of
from flashmesh.routing.route import Remote, is_runpod
from flashmesh.wire.frames import JSON
from flashmesh.worker.callables import BoundCallable, Served
from flashmesh.worker.calls.around import Around, bearer
from flashmesh.worker.calls.exchange import Response, Where, exchange
from flashmesh.worker.calls.network import Network
from flashmesh.worker.calls.peer_call import MOVED, Moved, address_of, foreign_failure
from flashmesh.worker.calls.queue_call import failure_of
from flashmesh.worker.stubs import ManifestResource

_FAILED: Final = frozenset({"FAILED", "TIMED_OUT", "CANCELLED"})


class PassingOn:
    """See the module.

    Args:
        own: this endpoint's id, as chains of calls name it.
    """

    def __init__(self, *, own: str, registry: ServiceRegistry, keys: Keys, network: Network) -> None:
        self._own = own
        self._registry = registry
        self._keys = keys
        self._network = network
        self.executor = RemoteExecutor(
            registry=registry,
            ask=self._ask,
            look_again=self._look_again,
            run_local=_not_here,
            pass_on=self.pass_on,
        )
        self._callable: BoundCallable | None = None

    def callable(self) -> BoundCallable:
        """What the face has run for such a request: a function of one argument, the request."""
        if self._callable is None:
            executor = self.executor

            async def passed_on(request: dict) -> Any:  # type: ignore[type-arg]  # any object: another endpoint checks it
                return await executor.value(request)

            declaration = Declaration(passed_on, ManifestResource("", {}), decorated_by="remote")
            self._callable = BoundCallable(Served("flashmesh.passed_on", declaration, None), None)
        return self._callable

    async def pass_on(self, route: Remote, request: Request, *, seconds: float) -> Any:
        """See remote_executor.Passing."""
        if route.http_method is not None:
            raise ValidationError(f"{name_of(request)!r} is a route. Call it as {route.http_method} {route.url}.")
        around = Around.of_current(self._own)
        where = address_of(route, around.chain)
        body = msgspec.json.encode({"input": request})
        key = "" if route.address is None else self._keys.for_endpoint(route.address, source=self._registry.source)
        host, path = ("flash", "") if isinstance(where, str) else (where.authority, where.path)
        runpods = route.queue and not isinstance(where, str) and is_runpod(where.host)
        path += "/runsync" if runpods else f"/{quote(name_of(request), safe='')}/run_sync"
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {JSON}\r\nAccept: {JSON}\r\n"
            f"Content-Length: {len(body)}\r\n{around.headers()}{bearer(where, key)}\r\n"
        )
        wait_s = min(seconds, around.wait_s)
        response, text = await exchange(where, head.encode("latin-1") + body, seconds=wait_s, network=self._network)
        return output_of(where, response, text)

    async def _ask(self) -> None:
        if self._registry.must_ask:
            await asyncio.to_thread(self._registry.load)

    async def _look_again(self) -> None:
        await asyncio.to_thread(self._registry.look_again)


def output_of(where: Where, response: Response, body: bytes) -> Any:
    """The value in an answer of RunPod's form, or the whole of one in another. Raises what it says went wrong."""
    try:
        document = msgspec.json.decode(body) if body else None
    except msgspec.DecodeError:
        raise foreign_failure(where, response, body) from None
    told = document if isinstance(document, dict) else {}
    if response.status == 200 and "output" in told:
        return told["output"]
    if "error" in told or told.get("status") in _FAILED:
        error = failure_of(told)
        raise Moved(str(error)) if response.status in MOVED else error
    if response.status != 200:
        raise foreign_failure(where, response, body)
    return document


async def _not_here(request: Request) -> Any:
    raise FunctionNotFound(f"No function {name_of(request)!r} is served here, and the manifest names none.")
