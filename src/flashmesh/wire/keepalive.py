"""Noticing that a machine at the other end of a TCP link has vanished.

A Unix socket ends with the process that holds it; a TCP connection to a machine without power or network does not. So
each end says PING when it has heard nothing for a while. What counts as an answer depends on who is there: a session
never keeps its loop busy, so that only its PONG will do; a worker may run a user's synchronous code for an hour, and
there the machine's acknowledgement of the PING is enough (the process itself ends the connection when it ends).
"""

import asyncio
import dataclasses
import socket
from collections.abc import Callable
from typing import Any

from flashmesh.functions.errors import LinkLost
from flashmesh.wire.codec import Aside, Ping


@dataclasses.dataclass(frozen=True, slots=True)
class Keepalive:
    """How one end watches a connection. Seconds; noticing takes `patience_s` plus one interval at most."""

    interval_s: float = 5.0
    """Silence after which PING is sent."""
    patience_s: float = 15.0
    """How long nothing may come, or sent bytes stay unacknowledged, until the connection counts as lost."""
    wants_pong: bool = True
    """False: the other end may be busy for any time; its machine's acknowledgement is enough (Linux; elsewhere the
    system's own probes, which take longer)."""


class Pulse:
    """Watches one connection from the moment it is made until `stop`."""

    def __init__(
        self,
        keepalive: Keepalive,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.BaseTransport,
        say: Callable[[Aside], None],
        lost: Callable[[Exception], None],
    ) -> None:
        """Args:
        say: sends to the other end. lost: ends the connection with this error.
        """
        self._keepalive = keepalive
        self._loop = loop
        self._say = say
        self._lost = lost
        self._heard_at = loop.time()
        _let_the_system_watch(transport.get_extra_info("socket"), keepalive)
        self._look_in(keepalive.interval_s)

    def heard(self) -> None:
        """Something came."""
        self._heard_at = self._loop.time()

    def stop(self) -> None:
        self._timer.cancel()

    def _look_in(self, seconds: float) -> None:
        self._look_at = self._loop.time() + seconds
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        keepalive = self._keepalive
        now = self._loop.time()
        # While this process was too busy to look (a worker runs a user's synchronous code for a minute) it was too busy
        # to hear as well; what came meanwhile may be read only after this.
        self._heard_at = min(now, self._heard_at + max(0.0, now - self._look_at))
        silent_s = now - self._heard_at
        if keepalive.wants_pong and silent_s > keepalive.patience_s:
            self._lost(
                LinkLost(f"The other end has not answered for {silent_s:.0f} s: its machine or network is gone.")
            )
            return
        if silent_s >= keepalive.interval_s:
            self._say(Ping())
            self._look_in(keepalive.interval_s)
        else:
            self._look_in(keepalive.interval_s - silent_s)


def _let_the_system_watch(sock: Any, keepalive: Keepalive) -> None:
    """Unacknowledged bytes end the connection after `patience_s`; with PINGs there always are some."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(keepalive.patience_s * 1000)))
