"""The second hold on a Unix link's socket that descriptors need, beside the transport of an asyncio loop.

Neither asyncio's nor uvloop's transports send or receive ancillary data (docs/decisions/0005). So the socket is
duplicated: an end that was asked whether it takes descriptors stops its transport's reading and reads by `recvmsg`
here; an end that sends one does so by `sendmsg` here, at a moment when its transport holds nothing.

The loop watches an epoll of our own with that socket in it, not the socket: uvloop stops watching one that is in error
(a reset) without telling its owner.
"""

import asyncio
import errno
import fcntl
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any, Final

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire import memfd
from flashmesh.wire.memfd import Descriptor
from flashmesh.wire.writing import Attached

READ_BYTES: Final = 64 * 1024
"""Per read. A larger buffer comes from the system each time and goes back to it, which costs more than it saves."""
WINDOW_BYTES: Final = 128 * 1024 * 1024
"""Most payload bytes that may wait in the socket as descriptors; the socket's own buffer does not count those."""
RETRY_S: Final = 0.005
_SIOCOUTQ: Final = 0x5411  # <linux/sockios.h>, the same number as TIOCOUTQ


class Window:
    """How many payload bytes are on their way as descriptors that the other end has not picked up."""

    __slots__ = ("_bytes", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._bytes = 0

    def admits(self, size: int) -> bool:
        """Whether one more may leave now. A single one always may."""
        if self._bytes and _unread(self._sock) == 0:
            self._bytes = 0
        return not self._bytes or self._bytes + size <= WINDOW_BYTES

    def sent(self, size: int) -> None:
        self._bytes += size


def _unread(sock: socket.socket) -> int:
    """Bytes the other end has yet to read."""
    return int(struct.unpack("i", fcntl.ioctl(sock, _SIOCOUTQ, b"\0\0\0\0"))[0])


def send(sock: socket.socket, window: Window, attached: Attached) -> int | None:
    """How many of its bytes the kernel took, the descriptor with them. None: try again soon.

    Raises BlockingIOError while the socket is full, OSError when the other end is gone.
    """
    if not window.admits(attached.size):
        return None
    try:
        sent = sock.sendmsg([attached.data], memfd.ancillary(attached.sealed))
    except OSError as error:
        if error.errno in (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS):
            return None  # more descriptors are under way in this user's processes than one process may have
        raise
    window.sent(attached.size)
    attached.sealed.close()
    return sent


def receive(sock: socket.socket) -> tuple[bytes, list[Descriptor]]:
    """What is there, at most READ_BYTES, and the descriptors with it.

    Raises BlockingIOError, OSError, LinkProtocolError (a descriptor was lost).
    """
    if sys.platform != "linux":
        return sock.recv(READ_BYTES), []
    data, messages, flags, _ = sock.recvmsg(READ_BYTES, memfd.SPACE, memfd.RECEIVE_FLAGS)
    return data, memfd.received(messages, flags) if messages or flags & socket.MSG_CTRUNC else []


class Passage:
    """For one asyncio link. `close` it in `connection_lost`.

    Args:
        on_read: given what was read, with its descriptors; b"" is the end of the stream.
        on_error: told what went wrong; nothing else is called afterwards.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        on_read: Callable[[bytes, list[Descriptor]], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_read = on_read
        self._on_error = on_error
        self._sock = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._sock.setblocking(False)
        self._window = Window(self._sock)
        self._poll = select.epoll(1)
        self._events = 0
        self._attached: Attached | None = None
        self._then: Callable[[], None] = _nothing
        self._timer: asyncio.TimerHandle | None = None
        loop.add_reader(self._poll.fileno(), self._ready)

    @property
    def busy(self) -> bool:
        """A descriptor is about to leave: nothing may be written meanwhile."""
        return self._attached is not None

    def read_here(self) -> None:
        """Take the reading over from the transport."""
        if not self._events & select.EPOLLIN:
            self._transport.pause_reading()
            self._watch(self._events | select.EPOLLIN)

    def send(self, attached: Attached, then: Callable[[], None]) -> None:
        """Send it as soon as the transport holds nothing, then call `then`."""
        self._attached = attached
        self._then = then
        # A transport without room for a single byte tells when it has none: the protocol's resume_writing.
        self._transport.set_write_buffer_limits(high=0)
        self.drained()

    def drained(self) -> None:
        """The transport may hold nothing now."""
        attached = self._attached
        if attached is None or self._transport.get_write_buffer_size() or self._transport.is_closing():
            return
        try:
            sent = send(self._sock, self._window, attached)
        except (BlockingIOError, InterruptedError):
            self._watch(self._events | select.EPOLLOUT)
            return
        except OSError as error:
            self._drop()
            self._on_error(error)
            return
        if sent is None:
            self._timer = self._loop.call_later(RETRY_S, self.drained)
            return
        self._drop()
        self._transport.set_write_buffer_limits()
        if sent < len(attached.data):
            self._transport.write(attached.data[sent:])
        self._then()

    def close(self) -> None:
        """Harmless when repeated."""
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
        if not self._poll.closed:
            self._loop.remove_reader(self._poll.fileno())
            self._events = 0
            self._poll.close()
            self._sock.close()

    def _watch(self, events: int) -> None:
        if self._poll.closed or events == self._events:
            return
        if not events:
            self._poll.unregister(self._sock)
        elif self._events:
            self._poll.modify(self._sock, events)
        else:
            self._poll.register(self._sock, events)
        self._events = events

    def _ready(self) -> None:
        if self._events & select.EPOLLOUT:
            self._watch(self._events & ~select.EPOLLOUT)
            self.drained()
        if self._events & select.EPOLLIN:
            self._read()

    def _read(self) -> None:
        try:
            data, descriptors = receive(self._sock)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, LinkProtocolError) as error:
            self._watch(0)
            self._on_error(error)
            return
        if not data:
            self._watch(0)
        self._on_read(data, descriptors)

    def _drop(self) -> None:
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.sealed.close()


def _nothing(*_: Any) -> None:
    """Nobody waits."""
