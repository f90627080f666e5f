"""What is let in: nothing that starts work before the server is ready, and nothing new once it stops."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Literal

from flashmesh.gateway.http import JSON_TYPE, Answer, Handler, HotRoutes, Request, Respond

Phase = Literal["starting", "ready", "draining"]
ASGIApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

ALWAYS: Final = frozenset({"/healthz", "/metrics"})
"""Paths that are answered in every phase. `/readyz` is not: being open or not is what it tells."""
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_STARTING: Final = Answer(
    503,
    [JSON_TYPE, (b"retry-after", b"1")],
    b'{"error":"STARTING","message":"The server is starting. Try again in a second."}',
)
_STOPPING: Final = Answer(
    503,
    [JSON_TYPE, (b"retry-after", b"5"), (b"connection", b"close")],
    b'{"error":"STOPPING","message":"The server is stopping and takes no new calls. Try again in a moment."}',
)


class Door:
    """Stands before the hot routes and the ASGI application. Who goes through an open door pays for one comparison."""

    def __init__(self, hot: HotRoutes) -> None:
        self.phase: Phase = "starting"
        self._find = hot.find

    def open(self) -> None:
        """Everything is let in."""
        self.phase = "ready"

    def close(self) -> None:
        """Only what looks at something, or ends it, is let in."""
        self.phase = "draining"

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """See HotRoutes."""
        phase = self.phase
        if phase == "ready" or not refused(phase, method.decode("latin-1"), path.decode("latin-1")):
            return self._find(method, path)
        return _refuse_starting if phase == "starting" else _refuse_stopping

    def closed(self) -> Answer | None:
        """What is answered to whatever is new while nothing is let in; None: it is open."""
        return None if self.phase == "ready" else _STARTING if self.phase == "starting" else _STOPPING

    def guard(self, application: ASGIApp) -> ASGIApp:
        """The same rule for what is not hot."""

        async def guarded(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            kind = scope["type"]
            if (
                self.phase == "ready"
                or kind != "http"
                or not refused(self.phase, str(scope["method"]), str(scope["path"]))
            ):
                await application(scope, receive, send)
                return
            answer = _STARTING if self.phase == "starting" else _STOPPING
            headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body))]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": answer.body})

        return guarded


def refused(phase: Phase, method: str, path: str) -> bool:
    """Whether a request has to wait for another server, or for this one to be ready."""
    if phase == "ready" or path in ALWAYS:
        return False
    if phase == "starting":
        return True
    return path == "/readyz" or not (method in _READS or ends_something(method, path))


def ends_something(method: str, path: str) -> bool:
    """Whether a request helps calls to end: it cancels one, or brings the result of one that runs elsewhere."""
    if path.startswith("/v1/executions/"):
        return method == "DELETE" or path.endswith(":cancel")
    return path.endswith(":complete") or (path.startswith("/v2/") and "/cancel/" in path)


def _refuse_starting(request: Request, respond: Respond) -> None:
    respond(_STARTING)


def _refuse_stopping(request: Request, respond: Respond) -> None:
    respond(_STOPPING)


class Drained:
    """Waits until certain executions have ended. `ended` is told of each, on the event loop."""

    def __init__(self, executions: set[str]) -> None:
        self._left = executions
        self._empty = asyncio.Event()
        if not executions:
            self._empty.set()

    def __len__(self) -> int:
        return len(self._left)

    def ended(self, execution: str) -> None:
        self._left.discard(execution)
        if not self._left:
            self._empty.set()

    async def wait(self, seconds: float) -> bool:
        """True: all have ended in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True
