"""uvicorn's HTTP connection under limits: its own parser bounds neither heads nor bodies nor the time they take."""

import asyncio
import logging
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from flashmesh.worker.face.limits import HttpLimits, Refusal, body_too_large, head_too_large, not_http, too_slow

_log: Final = logging.getLogger("flashmesh.http")
_log.setLevel(logging.ERROR)  # below that uvicorn tells of every request that it cannot read
_SINGLE: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})


class LimitedConnection(HttpToolsProtocol):
    """What every server of ours that is made of uvicorn has in common. A subclass says how refusals are sent."""

    def __init__(self, config: Config, state: ServerState, loop: asyncio.AbstractEventLoop, limits: HttpLimits) -> None:
        super().__init__(config, state, {}, _loop=loop)
        self.logger = _log
        self._limits = limits
        self._refusal: Refusal | None = None
        self._part: str | None = None
        """Which part of a request is arriving: head, body."""
        self._part_bytes = 0
        self._read_bytes = 0
        """Of the last read. A head that ends in it is no larger than this and what came before."""
        self._completed = False
        self._since = loop.time()

    def turn_away(self, refusal: Refusal) -> None:
        """Send the refusal so that the client sees it, and end the connection. Nothing is being answered on it."""
        raise NotImplementedError

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._is_refused() or self.transport.is_closing():
            return
        if self._part is None:
            self._part_bytes, self._since = 0, self.loop.time()
            self._part = "head"
        before, self._completed, self._read_bytes = self._part, False, len(data)
        super().data_received(data)
        if not self._is_refused() and self._part == before == "head" and not self._completed:
            self._part_bytes += len(data)
            if self._part_bytes > self._limits.max_head:
                self.give_up(head_too_large(self._limits))

    def _is_refused(self) -> bool:
        return self._refusal is not None

    def _refuse(self, refusal: Refusal) -> None:
        self._refusal = refusal
        raise refusal

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._part, self._since = "head", self.loop.time()
        self._part_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part != "body":  # else a trailer, which applications of ours do not ask for
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        limits, headers, version = self._limits, dict(self.headers), self.parser.get_http_version()
        if len(self.headers) > limits.max_headers or self._is_large():
            self._refuse(head_too_large(limits))
        if len(headers) < len(self.headers):
            self._look_for_repeated()
        if version not in ("1.1", "1.0"):
            self._refuse(Refusal(505, f"HTTP/{version} is not spoken here. Use HTTP/1.1."))
        if b"host" not in headers and version == "1.1":
            self._refuse(not_http("it has no Host header"))
        if b"transfer-encoding" in headers:
            if b"content-length" in headers or version == "1.0":
                self._refuse(not_http("Transfer-Encoding goes with neither Content-Length nor HTTP/1.0"))
            if headers[b"transfer-encoding"].lower() != b"chunked":
                self._refuse(Refusal(501, "Only the transfer encoding `chunked` is understood."))
        elif int(headers.get(b"content-length", b"0")) > limits.max_body and not limits.is_upload(self.url):
            self._refuse(body_too_large(limits))
        self._part, self._since, self._part_bytes = "body", self.loop.time(), 0
        self.begin_request()

    def _is_large(self) -> bool:
        most = self._limits.max_head
        if self._part_bytes + self._read_bytes <= most:
            return False
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > most

    def _look_for_repeated(self) -> None:
        names = [name for name, _ in self.headers]
        for name in _SINGLE:
            if names.count(name) > 1:
                self._refuse(not_http(f"header {name.decode('latin-1')} came twice; send it once"))

    def begin_request(self) -> None:
        """The head is good: give the request to the application."""
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._part_bytes += len(body)
        if self._limits.is_upload(self.url):
            self._since = self.loop.time()
            if self._part_bytes > self._limits.max_body and self.cycle.response_complete:
                self.transport.close()  # it was refused, and goes on and on
                return
        elif self._part_bytes > self._limits.max_body:
            self._refuse(body_too_large(self._limits))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._part, self._completed = None, True
        super().on_message_complete()

    def give_up(self, refusal: Refusal) -> None:
        """Refuse what is arriving."""
        self._refusal = refusal
        self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        """Answer the refusal, unless an answer is under way that it would cut; then close so that it is seen."""
        refusal = self._refusal = self._refusal or not_http(msg)
        cycle: Any = self.cycle
        answering = cycle is not None and cycle.response_started and not cycle.response_complete
        if answering or self.pipeline or self.transport.is_closing():
            self.transport.close()
            return
        self.turn_away(refusal)

    def sweep(self, now: float) -> None:
        """Look whether the client takes too long to send, or sent nothing since it came."""
        limits = self._limits
        waited = now - self._since - limits.sweep_s
        if self.transport.is_closing():
            return
        if self._part == "head" and waited > limits.head_s:
            self.give_up(too_slow("head", limits.head_s))
        elif self._part == "body" and waited > limits.body_s and not self.flow.read_paused:
            self.give_up(too_slow("body", limits.body_s))
        elif self._part is None and self._is_unwatched() and waited > limits.idle_s:
            self.transport.close()

    def _is_unwatched(self) -> bool:
        """Nothing was asked yet; after an answer uvicorn has a timer."""
        return self.cycle is None

    def _should_upgrade_to_ws(self) -> bool:
        if self.ws_protocol_class is None:
            from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol  # heavy, and seldom needed

            kind: Any = AutoWebSocketsProtocol
            self.ws_protocol_class = self.config.ws_protocol_class = kind
        return super()._should_upgrade_to_ws()
