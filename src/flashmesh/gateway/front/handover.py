"""The other server: uvicorn's connections, for everything that is not hot, under the same limits.

uvicorn's own parser bounds neither heads nor bodies nor the time they take; these connections do.
"""

import asyncio
import contextlib
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from flashmesh.gateway.front.limits import (
    FrontLimits,
    Refusal,
    body_too_large,
    head_too_large,
    not_http,
    too_many_connections,
    too_slow,
)
from flashmesh.gateway.http import Answer

_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})


class AppState(ServerState):
    """What all of uvicorn's connections share, besides its own."""

    def __init__(self, limits: FrontLimits, dismiss: Callable[[asyncio.Transport, Answer], None]) -> None:
        super().__init__()
        self.limits = limits
        self.dismiss = dismiss
        self.refused = 0

    def refresh(self) -> None:
        """Renew the date header; once a second."""
        self.default_headers = [(b"date", formatdate(usegmt=True).encode())]


class AppConnection(HttpToolsProtocol):
    """uvicorn's HTTP connection under `FrontLimits`."""

    server_state: AppState

    def __init__(self, config: Config, state: AppState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, state, {}, _loop=loop)
        self._limits = state.limits
        self._refusal: Refusal | None = None
        self._part: str | None = None
        """Which part of a request is arriving: head, body."""
        self._part_bytes = 0
        self._completed = False
        self._names: set[bytes] = set()
        self._since = loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refusal = too_many_connections(self._limits)
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._is_refused() or self.transport.is_closing():
            return
        if self._part is None:
            self._part_bytes, self._since = 0, self.loop.time()
            self._part = "head"
        before, self._completed = self._part, False
        super().data_received(data)
        if not self._is_refused() and self._part == before == "head" and not self._completed:
            self._part_bytes += len(data)
            if self._part_bytes > self._limits.max_head:
                self._give_up(head_too_large(self._limits))

    def _is_refused(self) -> bool:
        return self._refusal is not None

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise refusal

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part, self._since = "head", self.loop.time()
        self._part_bytes = 0
        self._names = set()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if self._part == "body":
            return  # a trailer
        lower = self.headers[-1][0]
        if lower in _SINGLE:
            if lower in self._names:
                self._refuse(not_http(f"header {lower.decode('latin-1')} came twice; send it once"))
            self._names.add(lower)
        if len(self.headers) > self._limits.max_headers:
            self._refuse(head_too_large(self._limits))

    def on_headers_complete(self) -> None:
        limits, headers, version = self._limits, dict(self.headers), self.parser.get_http_version()
        if version not in ("1.1", "1.0"):
            self._refuse(Refusal(505, f"HTTP/{version} is not spoken here. Use HTTP/1.1."))
        if b"host" not in headers and version == "1.1":
            self._refuse(not_http("it has no Host header"))
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > limits.max_head:
            self._refuse(head_too_large(limits))
        if b"transfer-encoding" in headers:
            if b"content-length" in headers or version == "1.0":
                self._refuse(not_http("Transfer-Encoding goes with neither Content-Length nor HTTP/1.0"))
            if headers[b"transfer-encoding"].lower() != b"chunked":
                self._refuse(Refusal(501, "Only the transfer encoding `chunked` is understood."))
        elif int(headers.get(b"content-length", b"0")) > limits.max_body:
            self._refuse(body_too_large(limits))
        self._part, self._since, self._part_bytes = "body", self.loop.time(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._part_bytes += len(body)
        if self._part_bytes > self._limits.max_body:
            self._refuse(body_too_large(self._limits))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part, self._completed = None, True
        super().on_message_complete()

    def _give_up(self, refusal: Refusal) -> None:
        self._refusal = refusal
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer the refusal, unless an answer is under way that it would cut; then close so that it is seen."""
        refusal = self._refusal = self._refusal or not_http(msg)
        self.server_state.refused += 1
        cycle: Any = self.cycle
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if answering or self.pipeline or self.transport.is_closing():
            self.transport.close()
            return
        self.server_state.dismiss(self.transport, refusal.answer)
        self.connection_lost(ConnectionAbortedError("the request was refused"))  # for uvicorn it ends here

    def sweep(self, now: float) -> None:
        """Look whether the client takes too long to send, or sent nothing since it came."""
        limits = self._limits
        waited = now - self._since - limits.sweep_s
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        if self.transport.is_closing():
            return
        if self._part == "head" and waited > limits.head_s:
            self._give_up(too_slow("head", limits.head_s))
        elif self._part == "body" and waited > limits.body_s and not self.flow.read_paused:
            self._give_up(too_slow("body", limits.body_s))
        elif self._part is None and cycle is None and waited > limits.idle_s:  # afterwards uvicorn has a timer
            self.transport.close()

    def _should_upgrade_to_ws(self) -> bool:
        if self.ws_protocol_class is None:
            from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol  # heavy, and seldom needed

            kind: Any = AutoWebSocketsProtocol
            self.ws_protocol_class = self.config.ws_protocol_class = kind
        return super()._should_upgrade_to_ws()


class AppServer:
    """Makes uvicorn's connections and ends them."""

    def __init__(
        self,
        application: Any,
        limits: FrontLimits,
        loop: asyncio.AbstractEventLoop,
        dismiss: Callable[[asyncio.Transport, Answer], None],
    ) -> None:
        """`dismiss` sends a last answer and ends the connection."""
        self.state = AppState(limits, dismiss)
        self.state.refresh()
        self._loop = loop
        self._config = Config(
            application,
            http=AppConnection,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.idle_s) or 1,
        )
        self._config.load()

    def connection(self) -> AppConnection:
        return AppConnection(self._config, self.state, self._loop)

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take over a connection whose next request begins with `data`."""
        connection = self.connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(data)

    @property
    def connections(self) -> int:
        return len(self.state.connections)

    @property
    def is_quiet(self) -> bool:
        return not self.state.connections and not self.state.tasks

    def sweep(self, now: float) -> None:
        self.state.refresh()
        for connection in list(self.state.connections):
            if type(connection) is AppConnection:  # not a websocket's
                connection.sweep(now)

    def wind_down(self) -> None:
        """Close what is idle; the rest closes after its answer, websockets with `going away`."""
        for connection in list(self.state.connections):
            connection.shutdown()

    def close(self) -> None:
        for connection in list(self.state.connections):
            with contextlib.suppress(AttributeError):
                connection.transport.abort()
        for task in list(self.state.tasks):
            task.cancel()
