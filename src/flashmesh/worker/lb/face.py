"""An endpoint's listening sockets as one worker of a load-balanced resource serves them: HTTP by uvicorn.

All workers of an endpoint share the sockets and accept only while they have a free slot, so the listen backlog is the
queue, and a connection goes to a worker that can serve it (calls.py says what a slot is).
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import partial
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.server import ServerState

from flashmesh.worker.context import WorkerContext
from flashmesh.worker.face.access import Access
from flashmesh.worker.face.face import About
from flashmesh.worker.face.http import max_body_bytes
from flashmesh.worker.face.limits import HttpLimits, Refusal
from flashmesh.worker.lb.calls import HttpCalls
from flashmesh.worker.lb.connection import LimitedConnection
from flashmesh.worker.lb.serving import HttpProgram
from flashmesh.worker.runner import Runner

log = logging.getLogger(__name__)

UNSAID_S: Final = 1.0
"""How long a worker that leaves waits for the first word of a connection that it accepted before. A request that was on
its way is there within a moment; programs that connect ahead may say nothing for minutes."""
_silent: Final = logging.getLogger("flashmesh.http.worker")
_silent.setLevel(logging.CRITICAL)  # what is worth telling of a request, calls.py tells
_LOOK_S: Final = 0.02
_LINGER_S: Final = 1.0
"""How long a worker that leaves waits for one more request on a connection that is kept. To close it at once would cut
the request that is on its way from a client that calls over and over; longer would hold a worker nobody needs."""
_REASONS: Final = {400: "Bad Request", 408: "Request Timeout", 413: "Content Too Large", 501: "Not Implemented"}


class WorkerConnection(LimitedConnection):
    """One accepted connection. It holds the slot it was accepted with until its first request takes that over."""

    def __init__(self, face: "HttpFace", slot: int | None) -> None:
        super().__init__(face.config, face.state, face.loop, face.limits)
        self.logger = _silent
        self._face = face
        self._slot = slot

    def begin_request(self) -> None:
        slot, calls = self._slot, self._face.calls
        upgrade = self.parser.should_upgrade() and self._should_upgrade()
        if slot is not None and not upgrade:  # a websocket's protocol begins a request of its own
            self._slot = None
            self.app = partial(calls.serve, slot)
        super().begin_request()
        self.app = calls
        if self._face.is_closed and self.cycle is not None:
            self.cycle.keep_alive = False

    def handle_websocket_upgrade(self) -> None:
        super().handle_websocket_upgrade()
        self._release()

    def turn_away(self, refusal: Refusal) -> None:
        head = (
            f"HTTP/1.1 {refusal.status} {_REASONS.get(refusal.status, 'Refused')}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(refusal.body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + refusal.body)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._release()

    def shutdown(self) -> None:
        """One more request at most, whose answer says that the connection ends; without one it ends by itself.

        What was accepted and has not said anything yet is still served.
        """
        cycle: Any = self.cycle
        if cycle is not None and cycle.response_complete:
            self.loop.call_later(_LINGER_S, self._end_if_idle)
        elif cycle is not None:
            super().shutdown()

    def _end_if_idle(self) -> None:
        if self in self.connections and self._part is None and self.cycle.response_complete:
            self.transport.close()

    def sweep(self, now: float) -> None:
        silent = self._part is None and self.cycle is None
        if self._face.is_closed and silent and now - self._since > UNSAID_S and not self.transport.is_closing():
            self.transport.close()
        else:
            super().sweep(now)

    def _release(self) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._face.runner.give(slot, by_link=True)


class HttpFace:
    """One listening socket.

    Args:
        over_limit: connections are taken even when no slot is free (re-entrant calls).
        taken: told when a connection was accepted.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        calls: HttpCalls,
        runner: Runner,
        limits: HttpLimits,
        over_limit: bool = False,
        taken: Callable[[], bool],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.calls = calls
        self.runner = runner
        self.limits = limits
        self.state = ServerState()
        self.config = _config(calls, limits)
        self.is_closed = False
        self._listener = listener
        self._over_limit = over_limit
        self._taken = taken
        self._accepting = False
        self._opening: set[asyncio.Task[Any]] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        listener.setblocking(False)

    def update(self) -> None:
        """Look at the listening socket again if a slot is free. Call whenever one may have become so."""
        if not self._accepting and not self.is_closed and (self._over_limit or self.runner.free > 0):
            self._accepting = True
            self.loop.add_reader(self._listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept nothing more. What runs goes on; websockets are told that the service restarts."""
        self.is_closed = True
        self._look_away()
        for connection in list(self.state.connections):
            connection.shutdown()

    async def closed(self) -> None:
        """Wait until every connection has ended; each has time limits of its own."""
        while self._opening or self.state.connections or self.state.tasks:  # noqa: ASYNC110 uvicorn tells nobody
            await asyncio.sleep(_LOOK_S)

    def _look_away(self) -> None:
        if self._accepting:
            self._accepting = False
            self.loop.remove_reader(self._listener.fileno())

    def _accept(self) -> None:
        if self.runner.free == 0 and not self._over_limit:
            self._look_away()
            return
        try:
            peer, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster
        except OSError as error:
            log.warning("a connection could not be accepted: %s", error)
            return
        peer.setblocking(False)
        if peer.family != socket.AF_UNIX:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        slot = self.runner.take(by_link=True, over_limit=self._over_limit)
        connection = WorkerConnection(self, slot)
        opening = self.loop.create_task(self._open(connection, peer))
        self._opening.add(opening)
        opening.add_done_callback(self._opening.discard)
        if self._sweeping is None:
            self._refresh()
        self._taken()

    async def _open(self, connection: WorkerConnection, peer: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(lambda: connection, peer)
        except OSError as error:
            log.debug("a connection ended as it began: %s", error)
            peer.close()
            connection.connection_lost(error)

    def _refresh(self) -> None:
        self.state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._sweeping = self.loop.call_later(self.limits.sweep_s, self._sweep)

    def _sweep(self) -> None:
        now = self.loop.time()
        self._sweeping = None
        connections = list(self.state.connections)
        for connection in connections:
            if isinstance(connection, LimitedConnection):  # not a websocket's
                connection.sweep(now)
        if connections or self._opening:
            self._refresh()


def http_faces(
    sockets: Sequence[tuple[int, bool, Access | None]],
    program: HttpProgram,
    *,
    runner: Runner,
    context: WorkerContext,
    about: About,
    taken: Callable[[], bool],
) -> tuple[HttpFace, ...]:
    """One for each (descriptor, over the limit, who may call) of a worker."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # of websockets, too
    limits = HttpLimits(max_body=max_body_bytes(os.environ))
    return tuple(
        HttpFace(
            socket.socket(fileno=descriptor),
            calls=HttpCalls(program, runner=runner, context=context, about=about, access=access),
            runner=runner,
            limits=limits,
            over_limit=over_limit,
            taken=taken,
        )
        for descriptor, over_limit, access in sockets
    )


def _config(calls: HttpCalls, limits: HttpLimits) -> Config:
    config = Config(
        calls,
        http=WorkerConnection,
        interface="asgi3",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(limits.idle_s) or 1,
    )
    config.load()
    return config
