"""The HTTP port: listening, the sweep over all connections, stopping, and numbers for the metrics."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from flashmesh.gateway.front.answers import CLOSE, date_line, encode_head
from flashmesh.gateway.front.connection import Connection
from flashmesh.gateway.front.crowd import Crowd
from flashmesh.gateway.front.farewell import Farewell
from flashmesh.gateway.front.heads import Heads
from flashmesh.gateway.front.limits import BROKEN, FrontLimits, Refusal, too_many_connections
from flashmesh.gateway.front.parser import RequestParser
from flashmesh.gateway.http import Answer, Gate, Handler, HotRoutes

if TYPE_CHECKING:
    from flashmesh.gateway.front.handover import AppServer
    from flashmesh.gateway.lb.passages import Passages

log = logging.getLogger(__name__)

ASGIApp = Callable[[Any, Any, Any], Any]

_BACKLOG: Final = 2048
_TURNED_AWAY_AT_ONCE: Final = 256
"""So many connections beyond the limit get an answer that says so; more are just closed."""
_SHORTEST_HEADER: Final = 4
"""Bytes of the shortest header, `a:` and its line break."""
_LOOK_S: Final = 0.02
_LEAVING_AT_ONCE: Final = 1000
"""Connections that are read on after their last answer. More: somebody keeps them coming."""


class Gathering:
    """Around several results that came at once: their answers are made in a row and then sent in a row.

    The kernel's work in between would push ours out of the processor's caches: it costs a third more then.
    """

    def __init__(self, front: "FrontServer") -> None:
        self._front = front

    def __enter__(self) -> None:
        self._front.gathered = []

    def __exit__(self, *_: object) -> None:
        gathered, self._front.gathered = self._front.gathered, None
        for connection in gathered or ():
            connection.flush()


class FrontServer:
    """Serves hot requests itself and gives every other connection to uvicorn.

    Args:
        hot: the routes with a short way.
        gate: asked for every hot request; the application guards itself.
        application: makes the ASGI application; called when the first request is not hot.
        lean: False serves everything by uvicorn.
        passages: take the connections whose next request means a load-balanced endpoint.

    Attributes, only to be read:
        requests: hot requests served. refused: answered by us instead of a handler. handed_over: connections given to
        uvicorn. accepted: connections. turned_away: connections beyond `max_connections`. dropped: connections whose
        client did not read its answers.
    """

    def __init__(
        self,
        hot: HotRoutes,
        gate: Gate,
        application: Callable[[], ASGIApp],
        limits: FrontLimits | None = None,
        *,
        lean: bool = True,
        passages: "Passages | None" = None,
    ) -> None:
        self.limits = limits or FrontLimits()
        self.find: Callable[[bytes, bytes], Handler | None] = hot.find
        self.check: Callable[[bytes, bytes, bytes, Mapping[bytes, bytes]], Answer | str] = gate.check
        self.parser = RequestParser(self.limits)
        self.heads = Heads()
        self.crowd = Crowd()
        self.gathered: list[Connection] | None = None
        self.gathering = Gathering(self)
        self.small_head = min(self.limits.max_head, self.limits.max_headers * _SHORTEST_HEADER)
        self.draining = False
        self.requests = self.refused = self.handed_over = self.accepted = self.turned_away = self.dropped = 0
        self.now = 0.0
        self.date = b""
        self._application = application
        self._lean = lean
        self._lanes: set[Connection] = set()
        self._passages = passages
        if passages is not None:
            passages.bind(self)
        self._app: AppServer | None = None
        self._leaving: set[Farewell] = set()
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        """Open ones, ours, those on their way through, and uvicorn's."""
        others = sum(other.connections for other in (self._app, self._passages) if other is not None)
        return len(self._lanes) + len(self._leaving) + others

    async def start(self, sockets: Sequence[socket.socket], ssl_context: ssl.SSLContext | None = None) -> None:
        """Accept on bound sockets, which are this server's from here. Call it again for sockets of another context."""
        self.loop = asyncio.get_running_loop()
        self._tick()
        for listener in sockets:
            server = await self.loop.create_server(
                self._connection if self._lean else self._app_connection,
                sock=listener,
                ssl=ssl_context,
                backlog=_BACKLOG,
                ssl_handshake_timeout=self.limits.head_s if ssl_context is not None else None,
            )
            self._servers.append(server)

    def _connection(self) -> asyncio.Protocol:
        return Connection(self)

    def _app_connection(self) -> asyncio.Protocol:
        self.accepted += 1
        self._keep_sweeping()
        try:
            return self._app_server().connection()
        except Exception:
            log.exception("the application could not be made")
            return self._farewell(BROKEN)

    def _app_server(self) -> "AppServer":
        if self._app is None:
            from flashmesh.gateway.front.handover import AppServer  # uvicorn: not before it is needed

            self._app = AppServer(self._application(), self.limits, self.loop, self.dismiss, self._passages, self)
        return self._app

    # --- what connections tell ---

    def joined(self, connection: Connection) -> Refusal | None:
        """It was accepted; the refusal when there are too many."""
        self.accepted += 1
        self._keep_sweeping()
        many = self.connections - self.limits.max_connections
        self._lanes.add(connection)
        if many < 0:
            return None
        self.turned_away += 1
        if many > _TURNED_AWAY_AT_ONCE:
            connection.abort()
        return too_many_connections(self.limits)

    def new_parser(self) -> None:
        """`parser` is taken, or broken: the next request has another."""
        self.parser = RequestParser(self.limits)

    def left(self, connection: Connection) -> None:
        """It is closed, or uvicorn's."""
        self._lanes.discard(connection)

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """Give a connection to uvicorn, with what was read of its next request; or to where that request goes."""
        if self._passages is not None and (where := self._passages.claims(data)) is not None:
            self._passages.adopt(transport, data, where)
            return
        self.handed_over += 1
        try:
            app = self._app_server()
        except Exception:
            log.exception("the application could not be made")
            self.dismiss(transport, BROKEN)
            return
        app.adopt(transport, data)
        if self.draining:
            app.wind_down()

    def take_back(self, transport: asyncio.Transport, data: bytes, *, last: bool = False) -> None:
        """A connection that went through a passage goes on, with what was read of its next request.

        last: it ends instead, once everything that was written is sent.
        """
        last = last or self.draining
        if self._lean or last:
            self.accepted -= 1  # it was counted when it came
            connection = Connection(self)
            transport.set_protocol(connection)
            connection.connection_made(transport)
            if last:
                connection.wind_down()
            elif data:
                connection.data_received(data)
        else:
            self._app_server().adopt(transport, data)

    def dismiss(self, transport: asyncio.Transport, answer: Answer | None) -> None:
        """Send a last answer on a connection that nobody serves any more, and end it so that the client sees it.

        None: it was sent already.
        """
        self._farewell(answer).take(transport)
        if len(self._leaving) > _LEAVING_AT_ONCE:
            next(iter(self._leaving)).abort()

    def _farewell(self, answer: Answer | None) -> Farewell:
        last = b"" if answer is None else encode_head(answer, date_line(time.time()), CLOSE) + answer.body
        made = Farewell(last, limits=self.limits, loop=self.loop, gone=self._leaving.discard)
        self._leaving.add(made)
        return made

    # --- time ---

    def _tick(self) -> None:
        self.now = self.loop.time()
        self.date = date_line(time.time())

    def _keep_sweeping(self) -> None:
        if self._sweeping is None:  # an idle server does not wake
            self._tick()
            if self._app is not None:
                self._app.state.refresh()
            self._sweeping = self.loop.call_later(self.limits.sweep_s, self._sweep)

    def _sweep(self) -> None:
        self._tick()
        for connection in list(self._lanes):
            connection.sweep(self.now)
        if self._app is not None:
            self._app.sweep(self.now)
        if self._passages is not None:
            self._passages.sweep()
        self._sweeping = None
        if self.connections:
            self._sweeping = self.loop.call_later(self.limits.sweep_s, self._sweep)

    # --- stopping ---

    async def drain(self, seconds: float) -> int:
        """Stop accepting and wait until every request under way has its answer, at most so long.

        Idle connections are closed at once; the others say `Connection: close` with their last answer. Returns how many
        connections are still open; `close` ends them.
        """
        await asyncio.sleep(0)  # what is in the backlog was promised an answer: let the loop accept it
        self.crowd.empty()
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._lanes):
            connection.wind_down()
        if self._app is not None:
            self._app.wind_down()
        until = self.loop.time() + seconds
        while self._is_busy() and (left := until - self.loop.time()) > 0:  # noqa: ASYNC110 uvicorn tells nobody
            await asyncio.sleep(min(_LOOK_S, left))
        return self.connections

    def _is_busy(self) -> bool:
        passing = self._passages is not None and self._passages.connections > 0
        return bool(self._lanes or self._leaving) or passing or (self._app is not None and not self._app.is_quiet)

    def close(self) -> None:
        """End everything now."""
        self.draining = True
        for server in self._servers:
            server.close()
        for connection in list(self._lanes):
            connection.abort()
        for leaving in list(self._leaving):
            leaving.abort()
        if self._app is not None:
            self._app.close()
        if self._passages is not None:
            self._passages.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
