"""What stands around the application in a worker: slots, limits, who calls, and the account of each request.

A slot is a request, or a websocket from its opening handshake to its end. A new connection has one from the moment it
is accepted, so that a worker accepts no more than it can serve; a connection that is kept has none between two
requests, and takes one over the limit rather than wait: it cannot go to another worker any more.
"""

import asyncio
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from flashmesh.functions.errors import CallCycle, FlashmeshError
from flashmesh.kit.ids import new_execution_id
from flashmesh.wire import failures
from flashmesh.wire.failures import USER_ERROR
from flashmesh.wire.plain_json import dump
from flashmesh.wire.tokens import is_token
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.face.access import Access, Refusal
from flashmesh.worker.face.face import About
from flashmesh.worker.invocation import CHAIN_LIMIT, CURRENT, Invocation
from flashmesh.worker.lb import output
from flashmesh.worker.lb.failures import failed
from flashmesh.worker.lb.route import HttpRoute
from flashmesh.worker.runner import Runner

if TYPE_CHECKING:
    from flashmesh.worker.lb.serving import HttpProgram

log = logging.getLogger(__name__)

_OWN_PATHS: Final = frozenset({"/ping", "/health", "/metrics"})


class Target:
    """Whose body answers; unknown until the application has found the route."""

    __slots__ = ("id",)

    def __init__(self) -> None:
        self.id = ""


class HttpCall(Invocation, eq=False):
    """A request or a websocket while it is served, in the form that peers, logs and the template know calls by."""

    calls: Any = None
    """The HttpCalls it is one of."""
    status: int = 0
    """Of the answer, once that has begun; 0 for a websocket."""
    code: str = ""
    """What it failed with, as far as the application did not answer that itself."""


@contextmanager
def around(route: HttpRoute, connection: HTTPConnection) -> Iterator[dict[str, Any]]:
    """Around the body of a request: whose it is, is known from here on."""
    call = CURRENT.get()
    if not isinstance(call, HttpCall):
        yield {}
        return
    calls: HttpCalls = call.calls
    calls.begin_body(call, route, websocket=connection.scope["type"] == "websocket")
    try:
        yield {}
    finally:
        call.in_user = False


class HttpCalls:
    """The ASGI application that the connections of one listening socket call.

    Args:
        access: asked of every request; None: who can connect may call.
    """

    def __init__(
        self,
        program: "HttpProgram",
        *,
        runner: Runner,
        context: WorkerContext,
        about: About,
        access: Access | None = None,
    ) -> None:
        self._application = program.application
        self._program = program
        self._own = _OWN_PATHS - program.paths
        self._runner = runner
        self._context = context
        self._about = about
        self._access = access

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request of a connection that holds no slot."""
        slot = None
        if scope["path"] not in self._own:
            slot = self._runner.take(by_link=True, over_limit=True)
        await self.serve(slot, scope, receive, send)

    async def serve(self, slot: int | None, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request in `slot`, which is given back."""
        try:
            if self._access is not None:
                refusal = judge(self._access, scope)
                if refusal is not None:
                    await _refuse(refusal, scope, send)
                    return
                scope = without_our_token(scope)
            if scope["path"] in self._own and scope["type"] == "http":
                await self._tell(scope["path"], scope["method"], send)
            else:
                await self._serve(slot, scope, receive, send)
        finally:
            if slot is not None:
                self._runner.give(slot, by_link=True)

    async def _serve(self, slot: int | None, scope: Any, receive: Any, send: Any) -> None:
        call = self._call_of(scope, slot)
        written = output.enter(call.execution)
        CURRENT.set(call)  # the context is this task's own
        if slot is not None:
            self._runner.running[slot] = call
        self._runner.by_execution[call.execution] = call
        telling = _Telling(call, send, self._runner)
        try:
            if len(call.chain) > CHAIN_LIMIT:
                raise CallCycle(f"The call went through {' → '.join(call.chain)} and cannot go on. Break the cycle.")
            await self._application(scope, receive, telling)
        except WebSocketDisconnect:
            return  # its client has gone, and the body did not care to look
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and call.doomed is None:
                raise
            await self._end(call, scope, telling, call.doomed or error)
        finally:
            output.leave(written)
            self._account(call, slot)

    def _call_of(self, scope: Any, slot: int | None) -> HttpCall:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _HEARD}
        deadline = headers.get(b"x-flash-deadline-ms", "")
        call = HttpCall(
            execution=new_execution_id(),
            target=cast(Any, Target()),
            reply=cast(Any, None),  # the answer goes to the connection, not to a reply
            payload=b"",
            deadline_ms=int(deadline) if deadline.isdecimal() else 0,
            chain=tuple(part for part in headers.get(b"x-flash-chain", "").split(",") if part),
            trace=headers.get(b"traceparent", ""),
            parent=headers.get(b"x-flash-parent", "")[:64],
            calls=self,
        )
        call.slot = -1 if slot is None else slot
        call.task = asyncio.current_task()
        call.stepped = True
        return call

    def begin_body(self, call: HttpCall, route: HttpRoute, *, websocket: bool) -> None:
        """The route is known: limits, and what others see of the call."""
        cast(Target, call.target).id = route.function
        output.name(route)
        limit_ms = self._program.limits_ms.get(route.function, 0)
        if websocket:
            call.deadline_ms = call.deadline_ns = 0  # it is as long as its two ends want it
        else:
            call.tighten(limit_ms)
        call.started_ns = monotonic_ns()
        call.in_user = True
        if call.slot >= 0:
            self._context.record.set_running(call.slot, call.execution, route.function, call.deadline_ns)
            if call.deadline_ns and call.deadline_ms != self._program.default_ms:
                self._context.tell_deadline()

    async def _end(self, call: HttpCall, scope: Any, telling: "_Telling", error: BaseException) -> None:
        """What came out of the application: a limit, a refusal of ours, or what a stream or a websocket raised."""
        if isinstance(error, FlashmeshError):
            info = failures.of_ours(error)
        else:
            log.error("%s", "".join(traceback.format_exception(error)).rstrip())
            info = failures.describe(error)
        call.code = info.code
        if not telling.begun:
            await _answer_failure(scope, telling, info)
        elif not telling.ended:
            raise Broken from error  # half an answer is out: the connection ends with it

    def _account(self, call: HttpCall, slot: int | None) -> None:
        runner, code = self._runner, call.code
        call.finished = True
        call.in_user = False
        call.context = call.task = None
        runner.by_execution.pop(call.execution, None)
        if slot is not None:
            runner.running.pop(slot, None)
        if not call.target.id:
            return  # no route: nothing of the user's ran
        if slot is not None:
            self._context.record.clear(slot)
        if not code and call.status >= 500:
            code = USER_ERROR if call.doomed is None else call.doomed.code
        runner.calls += 1
        runner.failures += bool(code)
        if runner.on_peer_end is not None:
            runner.on_peer_end(call, code, call.run_us)

    async def _tell(self, path: str, method: str, send: Any) -> None:
        if method not in ("GET", "HEAD"):
            await _send(send, 405, b"application/json", dump({"error": f"Use GET for {path}."}), method)
            return
        about, runner = self._about, self._runner
        if path == "/ping":
            await _send(send, 200, b"application/json", b'{"status":"healthy"}', method)
        elif path == "/health":
            body = {
                "status": "healthy",
                "endpoint": about.endpoint,
                "build": about.build,
                "worker": about.worker,
                "running": len(runner.by_execution),
                "routes": [f"{route.method} {route.path}" for route in self._program.routes],
            }
            await _send(send, 200, b"application/json", dump(body), method)
        else:
            labels = f'{{endpoint="{about.endpoint}",worker="{about.worker}"}}'
            lines = (
                f"flash_worker_calls_total{labels} {runner.calls}",
                f"flash_worker_failures_total{labels} {runner.failures}",
                f"flash_worker_running{labels} {len(runner.by_execution)}",
            )
            await _send(send, 200, b"text/plain; charset=utf-8", ("\n".join(lines) + "\n").encode(), method)


def judge(access: Access, scope: Any) -> Refusal | None:
    """Why a request that came by TCP is turned away."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text  # no second Origin goes unseen
    client = (scope.get("client") or ("",))[0]
    return access.refuse(method=scope.get("method", "GET"), path=scope["path"], headers=headers, client=client)


def without_our_token(scope: Any) -> Any:
    """The request as the application sees it: a token of the platform's is not for user code."""
    kept = [(name, value) for name, value in scope["headers"] if name != b"authorization" or not _is_ours(value)]
    return scope if len(kept) == len(scope["headers"]) else {**scope, "headers": kept}


def _is_ours(value: bytes) -> bool:
    kind, _, token = value.partition(b" ")
    return kind.lower() == b"bearer" and is_token(token.strip())


async def _refuse(refusal: Refusal, scope: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    more = [(b"www-authenticate", b"Bearer")] if refusal.status == 401 else []
    body = dump({"status": "FAILED", "error": {"type": "RequestRefused", "message": refusal.message}})
    await _send(send, refusal.status, b"application/json", body, scope["method"], more)


class Broken(Exception):
    """An answer that had begun cannot be finished. uvicorn closes the connection, which is how its reader knows."""


class _Telling:
    """`send` that notes the status, and tells a client of a full worker to connect anew."""

    __slots__ = ("_runner", "_send", "begun", "call", "ended")

    def __init__(self, call: HttpCall, send: Any, runner: Runner) -> None:
        self.call = call
        self._send = send
        self._runner = runner
        self.begun = self.ended = False

    async def __call__(self, message: Any) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.begun = True
            self.call.status = message["status"]
            if not self._runner.free:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif kind == "http.response.body":
            self.ended = not message.get("more_body", False)
        elif kind != "websocket.send":
            self.begun = True
            self.ended = kind == "websocket.close"
        await self._send(message)


_HEARD: Final = frozenset({b"x-flash-chain", b"x-flash-parent", b"x-flash-deadline-ms", b"traceparent"})


async def _answer_failure(scope: Any, send: Any, info: failures.ErrorInfo) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1011})
        return
    status, headers, body = failed(None, info)
    await _send(send, status, b"application/json", dump(body), scope["method"], headers)


async def _send(
    send: Any, status: int, kind: bytes, body: bytes, method: str, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *(more or ())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
