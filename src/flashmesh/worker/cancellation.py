"""Ending a running call: an exception raised in its user code, and in nobody else's.

A call in synchronous code does not let the loop run, so it can only be reached by a signal. Two are used: SIGUSR1 is
sent by the template, which has written into the worker's record which calls must end; SIGIO by the kernel when the peer
that waits for a synchronous call hangs up. Both handlers run in the main thread between two byte codes. Whether that
thread is in user code of the call is told by two things together: the context variable `CURRENT`, which only the call's
own context holds (tasks it started included), and `in_user`, which is set from just before its first user line to just
after its last.
"""

import asyncio
import fcntl
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Final

from flashmesh.worker.invocation import CURRENT, Invocation, ending
from flashmesh.worker.records import Reason, WorkerRecord

_LOOK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_HANG_UP: Final = getattr(select, "POLLRDHUP", 0)
"""Linux tells it of a connection; elsewhere its next byte says so."""
_WATCHED: Final = getattr(os, "O_ASYNC", 0) | os.O_NONBLOCK


def enter(invocation: Invocation, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call into user code. The caller clears `in_user` right after, whatever happens.

    A request that came between acceptance and here is honoured before the first line.
    """
    invocation.in_user = True
    if invocation.doomed is not None:
        raise invocation.doomed
    return function(*args, **kwargs)


class Canceller:
    """Ends calls of one worker. `running` is the worker's own table of calls by slot."""

    def __init__(
        self, *, loop: asyncio.AbstractEventLoop, record: WorkerRecord, running: Mapping[int, Invocation]
    ) -> None:
        self._loop = loop
        self._record = record
        self._running = running
        self._pid = os.getpid()
        self._watched: tuple[socket.socket, Invocation] | None = None

    def install(self) -> None:
        """Take over SIGUSR1 and SIGIO. Main thread only."""
        signal.signal(signal.SIGUSR1, self._on_request)
        signal.signal(signal.SIGIO, self._on_hang_up)

    def stop(self, invocation: Invocation, reason: Reason) -> None:
        """End one call; called from the loop, so that no user code of it is on the CPU. Later stops change nothing."""
        if invocation.doomed is None and not invocation.finished:
            invocation.doomed = ending(reason)
            self._wake(invocation)

    def watch(self, peer: socket.socket, invocation: Invocation) -> None:
        """While `invocation` runs synchronously: it ends when `peer` hangs up. Linux; elsewhere it runs to its end."""
        if not hasattr(os, "O_ASYNC"):
            return
        self._watched = (peer, invocation)
        descriptor = peer.fileno()
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, self._pid)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, _WATCHED)
        if has_hung_up(peer):
            invocation.doomed = invocation.doomed or ending("cancel")

    def unwatch(self, invocation: Invocation) -> bool:
        """The synchronous part is over. Returns whether this very call was watched.

        Its connection still signals, which nobody heeds: one that lives on is to be hushed.
        """
        if self._watched is None or self._watched[1] is not invocation:
            return False
        self._watched = None
        return True

    @staticmethod
    def hush(peer: socket.socket) -> None:
        """No more signals from this connection."""
        fcntl.fcntl(peer.fileno(), fcntl.F_SETFL, os.O_NONBLOCK)

    def _on_request(self, signum: int, frame: FrameType | None) -> None:
        for request in self._record.requests():
            invocation = self._running.get(request.slot)
            if invocation is not None and invocation.execution.startswith(request.execution):
                self._interrupt(invocation, request.reason)

    def _on_hang_up(self, signum: int, frame: FrameType | None) -> None:
        if self._watched is not None and has_hung_up(self._watched[0]):
            self._interrupt(self._watched[1], "cancel")

    def _interrupt(self, invocation: Invocation, reason: Reason) -> None:
        if invocation.doomed is not None or invocation.finished:
            return
        invocation.doomed = ending(reason)
        if invocation.in_user and CURRENT.get() is invocation and self._is_stepped(invocation):
            raise invocation.doomed
        self._loop.call_soon_threadsafe(self._wake, invocation)

    def _is_stepped(self, invocation: Invocation) -> bool:
        """Not in a callback of the loop's that only inherited the context, such as the one that ends a sleep: what is
        raised there nobody hears."""
        return invocation.task is None or asyncio.current_task(self._loop) is not None

    def _wake(self, invocation: Invocation) -> None:
        if invocation.finished:
            return
        if invocation.task is not None:
            if invocation.stepped:
                invocation.task.cancel()
        elif invocation.window is not None and invocation.window.on_open is not None:
            # A suspended generator: resume it, its next step begins with the ending.
            resume, invocation.window.on_open = invocation.window.on_open, None
            resume()


def has_hung_up(peer: socket.socket) -> bool:
    """Whether the other end of a connection is closed, without reading from it."""
    if _HANG_UP:
        look = select.poll()  # a fifth of what a look at the next byte costs, which mostly ends in an exception
        look.register(peer.fileno(), _HANG_UP)
        return bool(look.poll(0))
    try:
        return peer.recv(1, _LOOK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
