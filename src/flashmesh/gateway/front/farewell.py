"""The end of a connection whose client may still be sending: it is to see its last answer.

Closing a socket with unread bytes resets the connection, and the reset overtakes the answer. So what still comes is
read and thrown away, until the client closes, is silent for long, or goes on for too long.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from flashmesh.gateway.front.limits import FrontLimits


class Farewell(asyncio.Protocol):
    """Sends one last answer, given as bytes, and reads on without listening.

    As a connection's first protocol, or of one that another protocol has given up (`take`). `gone` is told of its end.
    """

    def __init__(
        self,
        answer: bytes,
        *,
        limits: FrontLimits,
        loop: asyncio.AbstractEventLoop,
        gone: Callable[["Farewell"], None],
    ) -> None:
        self._answer = answer
        self._linger_s = limits.linger_s
        self._until = loop.time() + limits.body_s
        self._loop = loop
        self._gone = gone
        self._heard_at = loop.time()
        self._doubted = False
        """It was found silent once. A loop that was held up looks at its timers before it reads what has come."""
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def take(self, transport: asyncio.Transport) -> None:
        """Be the protocol of a connection from here on."""
        transport.set_protocol(self)
        self.connection_made(transport)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's
        if transport.is_closing():
            self._gone(self)
            return
        if not transport.is_reading():
            transport.resume_reading()
        transport.write(self._answer)
        if transport.can_write_eof():  # TLS cannot
            transport.write_eof()
        self._timer = self._loop.call_later(self._linger_s, self._look)

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        self._doubted = False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._gone(self)

    def abort(self) -> None:
        """End it now."""
        self._transport.abort()

    def _look(self) -> None:
        now = self._loop.time()
        due = min(self._heard_at + self._linger_s, self._until)
        if now < due:
            self._timer = self._loop.call_later(due - now, self._look)
        elif now < self._until and not self._doubted:
            self._doubted = True
            self._timer = self._loop.call_later(self._linger_s / 2, self._look)
        else:
            self._transport.abort()
