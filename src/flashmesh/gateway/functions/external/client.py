"""A keep-alive HTTP/1.1 client for one address: callbacks on the event loop, no task per request.

A request goes out on the connection that was used last, or on a new one. A kept connection is not used again later than
its server promised to keep it (Keep-Alive: timeout; 4 s when it does not say: common servers close after 5), so that a
request rarely meets a connection that is being closed; one that does counts as broken, since nobody can tell whether it
was read.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

import httptools

from flashmesh.functions.errors import (
    EndpointUnreachable,
    ExternalError,
    FlashmeshError,
    PayloadTooLarge,
    WorkerLost,
)
from flashmesh.gateway.functions.external.addresses import PlainHttp, Target

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
_HEAD_BYTES: Final = 64 * 1024
CONNECT_S: Final = 10.0
KEEP_S: Final = 4.0
_KEPT_HEADERS: Final = frozenset({b"content-type", b"retry-after", b"keep-alive"})
_KEPT_CONNECTIONS: Final = 1024

Done = Callable[[int, dict[str, str], bytes], None]
"""Status, headers of interest (lower-case names), body."""
Broken = Callable[[FlashmeshError, bool], None]
"""Why there is no answer, and whether the function may have run."""


class Exchange:
    """One request and its answer. Exactly one of `done` and `broken` is called, unless it is cancelled before."""

    __slots__ = ("_cancelled", "broken", "connection", "done", "request")

    def __init__(self, request: bytes, done: Done, broken: Broken) -> None:
        self.request = request
        self.done = done
        self.broken = broken
        self.connection: Connection | None = None
        self._cancelled = False

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Nobody wants it any more: its connection is closed, which is all that HTTP/1.1 can say."""
        self._cancelled = True
        if self.connection is not None:
            self.connection.abandon()


class Client:
    """Connections to one address. `close` ends them all; what is in flight is broken then."""

    def __init__(
        self,
        target: Target,
        *,
        loop: asyncio.AbstractEventLoop,
        plain_http: PlainHttp,
        tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self.max_answer_bytes = max_answer_bytes
        self._target = target
        self._loop = loop
        self._plain_http = plain_http
        self._make_tls = tls
        self._tls: ssl.SSLContext | None = None
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._closed = False

    def send(self, request: bytes, done: Done, broken: Broken) -> Exchange:
        """Start an exchange. Nothing is called back from inside this call."""
        exchange = Exchange(request, done, broken)
        now = monotonic()
        while self._idle:
            connection = self._idle.pop()
            if connection.usable(now):
                connection.begin(exchange)
                return exchange
            connection.abandon()
        task = self._loop.create_task(self._connect(exchange))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        return exchange

    def close(self) -> None:
        self._closed = True
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._open):
            connection.fail(WorkerLost("the connection was closed: the server is stopping"), ran=True)

    async def _connect(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                connection = await self._opened()
        except FlashmeshError as error:
            failure: FlashmeshError = error
        except TimeoutError:
            failure = EndpointUnreachable(f"{self._target.authority} accepted no connection within {CONNECT_S:.0f} s")
        except (OSError, ssl.SSLError) as error:
            why = error.strerror or str(error)
            failure = EndpointUnreachable(f"{self._target.authority} cannot be reached: {why}")
        except asyncio.CancelledError:
            if not self._closed:
                raise
            failure = EndpointUnreachable("the server is stopping")
        except Exception as error:  # one call's boundary: certificates, encodings of names, what a resolver may do
            failure = EndpointUnreachable(f"{self._target.authority} cannot be reached: {error!r}")
        else:
            if exchange.cancelled:
                connection.abandon()
            else:
                connection.begin(exchange)
            return
        if not exchange.cancelled:
            exchange.broken(failure, False)

    async def _opened(self) -> "Connection":
        target = self._target
        try:
            socket.inet_aton(target.host)
            addresses = [target.host]
        except OSError:
            found = await self._loop.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
            addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        last: OSError = OSError("it has no address")
        for address in self._plain_http.choose(target, addresses):
            try:
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self),
                    address,
                    target.port,
                    ssl=self._context(),
                    server_hostname=target.host if target.scheme == "https" else None,
                )
            except OSError as error:
                last = error
            else:
                return connection
        raise last

    def _context(self) -> ssl.SSLContext | None:
        if self._target.scheme != "https":
            return None
        if self._tls is None:
            self._tls = self._make_tls()
        return self._tls

    # What connections say

    def opened(self, connection: "Connection") -> None:
        self._open.add(connection)

    def freed(self, connection: "Connection") -> None:
        if self._closed or len(self._idle) >= _KEPT_CONNECTIONS:
            connection.abandon()
        else:
            self._idle.append(connection)

    def lost(self, connection: "Connection") -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Connection(asyncio.Protocol):
    """One connection; one exchange at a time. Its callbacks from httptools are public names, as that wants them."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: Any = None
        self._exchange: Exchange | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._head_bytes = 0
        self._head_done = False
        self._framed = False
        self._complete = False
        self._surplus = False
        self._keep = False
        self._status = 0
        self._keep_s = KEEP_S
        self._until = 0.0

    def usable(self, now: float) -> bool:
        return now < self._until and not self._transport.is_closing()

    def begin(self, exchange: Exchange) -> None:
        self._exchange = exchange
        exchange.connection = self
        self._transport.write(exchange.request)
        exchange.request = b""

    def abandon(self) -> None:
        """Close it without a word to anybody."""
        self._exchange = None
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: FlashmeshError, *, ran: bool) -> None:
        exchange, self._exchange = self._exchange, None
        self._transport.abort()
        if exchange is not None:
            exchange.broken(error, ran)

    # What the transport says

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._client.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:
            self._transport.abort()  # bytes that nobody asked for: it cannot be trusted with another call
            return
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self._exchange is not None:
                self.fail(ExternalError(f"its answer is not HTTP: {error}"), ran=True)
        else:
            self._fed()

    def _fed(self) -> None:
        if self._exchange is None:
            return
        if self._complete:
            self._finish(keep=self._keep and not self._surplus)
        elif not self._head_done and self._head_bytes > _HEAD_BYTES:
            self.fail(ExternalError(f"its answer's head is longer than {_HEAD_BYTES} bytes"), ran=True)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.lost(self)
        if self._exchange is None:
            return
        if error is None and self._head_done and not self._framed:
            self._finish(keep=False)
        else:
            when = "in the middle of its answer" if self._head_done or self._head_bytes else "before it answered"
            self.fail(WorkerLost(f"the connection ended {when}"), ran=True)

    def _finish(self, *, keep: bool) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        status, headers = self._status, self._headers
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        exchange.connection = None
        if keep:
            self._reset()
            self._until = monotonic() + self._keep_s
            self._client.freed(self)
        else:
            self._transport.abort()
        exchange.done(status, headers, body)

    def _reset(self) -> None:
        self._headers = {}
        self._body = []
        self._size = self._head_bytes = 0
        self._head_done = self._framed = self._complete = False

    # What httptools says

    def on_message_begin(self) -> None:
        if self._complete:
            self._surplus = True  # a second answer to one request: not to be mixed up with the first

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_done:
            return  # a trailer
        name = name.lower()
        if name in _KEPT_HEADERS:
            self._headers[name.decode()] = value.decode("latin-1")
        elif name in (b"content-length", b"transfer-encoding"):
            self._framed = True
            if name == b"content-length" and value.isdigit() and int(value) > self._client.max_answer_bytes:
                self._too_large()

    def on_headers_complete(self) -> None:
        if self._surplus:
            return
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._head_done = True
            kept = self._headers.get("keep-alive", "")
            if "timeout=" in kept:
                seconds = kept.partition("timeout=")[2].partition(",")[0].strip()
                self._keep_s = max(0.0, int(seconds) - 1.0) if seconds.isdigit() else KEEP_S

    def on_body(self, body: bytes) -> None:
        if self._surplus:
            return
        self._size += len(body)
        if self._size > self._client.max_answer_bytes:
            self._too_large()
        else:
            self._body.append(body)

    def on_message_complete(self) -> None:
        if self._surplus:
            return
        if self._head_done:
            self._complete = True
            self._keep = self._parser.should_keep_alive()  # afterwards the parser has forgotten
        else:
            self._headers.clear()  # 100 Continue and its like: the answer itself follows

    def _too_large(self) -> None:
        if self._exchange is not None:
            limit = self._client.max_answer_bytes
            self.fail(PayloadTooLarge(f"the function's answer is larger than {limit} bytes"), ran=True)
