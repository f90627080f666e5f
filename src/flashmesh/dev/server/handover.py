"""How open connections move from an old server child to the new one, so that no request is lost and none sees old code.

The old child stops listening, then sends the descriptor of every connection that is between two requests over a Unix
socket pair (SCM_RIGHTS), with the bytes of a request whose headers had only partly arrived. A connection with a
request in progress follows as soon as its answer is written. The new child goes on reading where the old one stopped;
the client notices nothing.
"""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from flashmesh.gateway.front.answers import date_line
from flashmesh.gateway.front.hot_request import HotRequest, send_whole
from flashmesh.gateway.http import Answer

if TYPE_CHECKING:
    from flashmesh.dev.server.hot_calls import HotCalls

_MARK = b"\x01"  # an empty message could not be told from the end of the stream
_HEAD_LIMIT = 96 * 1024
_RETRY_S = 0.002


def channel() -> tuple[socket.socket, socket.socket]:
    """A pair of sockets for handing over: (old child's end, new child's end). Message boundaries are kept."""
    kind = socket.SOCK_SEQPACKET if sys.platform.startswith("linux") else socket.SOCK_DGRAM
    return socket.socketpair(socket.AF_UNIX, kind)


class ChildState(ServerState):
    """What all connections of one child share, besides uvicorn's own."""

    def __init__(self) -> None:
        super().__init__()
        self.successor: socket.socket | None = None
        """Where connections go to; set once this child has stopped listening."""
        self.leaving = False
        self.closing = False
        """No successor either: connections are closed once they are idle."""
        self.on_idle: Callable[[], None] = lambda: None
        """Called when a connection is gone or a request was answered while leaving."""
        self.hot: HotCalls | None = None
        """Takes calls that need no thought, before the application is asked."""
        self.date = b""
        """The Date header as a whole line."""
        self._dated = 0.0

    def freshen_date(self, now: float) -> None:
        """Renew the Date header, at most once a second and only when a request comes: an idle server does not wake."""
        if now - self._dated >= 1.0 or not self.default_headers:
            self._dated = now
            wall = time.time()
            self.date = date_line(wall)
            self.default_headers = [(b"date", formatdate(wall, usegmt=True).encode())]

    def leave(self, successor: socket.socket | None) -> None:
        """Hand over (or, without a successor, close) what is idle now, and the rest as it becomes idle."""
        self.leaving = True
        if self.successor is not None:
            self.successor.close()
        self.successor = successor
        self.closing = successor is None
        for connection in list(self.connections):
            if isinstance(connection, DevConnection):
                connection.part()
            else:
                connection.shutdown()  # a websocket is closed with "service restart"; its client comes back to new code


class DevConnection(HttpToolsProtocol):
    """uvicorn's HTTP connection, which knows at any time whether it is between two requests."""

    server_state: ChildState

    def __init__(
        self,
        config: Config,
        server_state: ChildState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head: bytes = b"",
    ) -> None:
        super().__init__(config=config, server_state=server_state, app_state=app_state, _loop=_loop)
        self._handed = head
        """What the former child had read of a request that it did not begin to answer."""
        self._between = True
        self._head: bytes | None = b""
        """The bytes of the request whose headers are arriving; None when they are not all known (pipelining)."""
        self._retry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        handed, self._handed = self._handed, b""
        if handed:
            self.data_received(handed)
        if self.server_state.leaving:
            self.part()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._retry is not None:
            self._retry.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        if self.server_state.leaving:
            self.server_state.on_idle()

    def data_received(self, data: bytes) -> None:
        if self._between:
            self._head = data
        elif self._head is not None:
            self._head = self._head + data if self._head and len(self._head) < _HEAD_LIMIT else None
        super().data_received(data)
        if self._between:
            self._head = b""

    def on_message_begin(self) -> None:
        if self._head == b"":
            self._head = None  # a pipelined request: its bytes began in the middle of what was read
        self._between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        raw, self._head = self._head or b"", b""
        self.server_state.freshen_date(self.loop.time())
        hot = self._hot_request(raw)
        if hot is None:
            super().on_headers_complete()
            return
        self.app = hot
        super().on_headers_complete()
        self.app = self.config.loaded_app
        hot.cycle = self.cycle

    def _hot_request(self, raw: bytes) -> HotRequest | None:
        """`raw`: all that has arrived, if that is this request alone."""
        takes, parser = self.server_state.hot, self.parser
        if takes is None or not raw or parser.should_upgrade():
            return None
        old = parser.get_http_version() != "1.1"
        return takes.take(raw, parser.get_method(), self.url, self.headers, old=old, send=self._send_whole)

    def _send_whole(self, cycle: RequestResponseCycle, answer: Answer) -> None:
        if not self.transport.is_closing():
            send_whole(cycle, answer, self.server_state.date)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._between = True
        if self.server_state.leaving:
            self.loop.call_soon(self.part)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.server_state.leaving:
            self.part()
            self.server_state.on_idle()

    def _should_upgrade_to_ws(self) -> bool:
        if self.ws_protocol_class is None:
            from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol  # heavy, and seldom needed

            kind: Any = AutoWebSocketsProtocol
            self.ws_protocol_class = self.config.ws_protocol_class = kind
        return self.ws_protocol_class is not None

    def _is_idle(self) -> bool:
        """No request in progress, and everything read of the next one is in `_head`."""
        if self.pipeline or self._is_answering():
            return False
        return self._between or bool(self._head)

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever its annotation says
        return cycle is not None and not cycle.response_complete

    def part(self) -> None:
        """Give this connection to the successor, if it is idle now."""
        if self.transport.is_closing() or not self._is_idle():
            return
        self.transport.pause_reading()  # the next request is not ours to read
        if self.transport.get_write_buffer_size():  # the last answer is still on its way to a slow reader
            self._retry_later()
            return
        successor = self.server_state.successor
        if successor is None:
            if self.server_state.closing:
                self.transport.close()
            return
        descriptor = os.dup(self.transport.get_extra_info("socket").fileno())
        try:
            head = b"" if self._between else self._head or b""
            socket.send_fds(successor, [_MARK + head], [descriptor])
        except (BlockingIOError, InterruptedError):  # the successor is behind: it is busy starting
            self._retry_later()
        except OSError:
            self.transport.close()  # the successor is gone; to the client this is an idle connection that timed out
        else:
            self.transport.abort()  # closes our descriptor only: the connection lives on in the successor's
        finally:
            os.close(descriptor)

    def _retry_later(self) -> None:
        if self._retry is None or self._retry.cancelled() or self._retry.when() <= self.loop.time():
            self._retry = self.loop.call_later(_RETRY_S, self.part)


class Receiver:
    """The new child's end: takes connections over until no older child can hand over any more."""

    def __init__(
        self,
        source: socket.socket,
        make: Callable[[bytes], asyncio.Protocol],
        loop: asyncio.AbstractEventLoop,
        on_closed: Callable[[], None],
    ) -> None:
        source.setblocking(False)
        self._on_closed = on_closed
        self._source = source
        self._make = make
        self._loop = loop
        self._tasks: set[asyncio.Task[Any]] = set()
        self._over = False
        loop.add_reader(source.fileno(), self._readable)

    def _readable(self) -> None:
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._source, _HEAD_LIMIT + 65536, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._over = True
                self._loop.remove_reader(self._source.fileno())
                self._source.close()
                self._settle()
                return
            for descriptor in descriptors:
                taken = socket.socket(fileno=descriptor)
                taken.setblocking(False)
                task = self._loop.create_task(self._take(taken, data[len(_MARK) :]))
                self._tasks.add(task)
                task.add_done_callback(self._taken)

    @property
    def is_open(self) -> bool:
        """Whether a connection may still come, or is being taken."""
        return not self._over or bool(self._tasks)

    def _taken(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._settle()

    def _settle(self) -> None:
        if not self.is_open:
            self._on_closed()

    async def _take(self, taken: socket.socket, head: bytes) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._make(head), taken)
        except OSError:
            taken.close()
