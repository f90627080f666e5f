"""One end of a link over a Unix stream socket: `Link` for asyncio, `BlockingLink` for threads and selectors loops.

Both send whole frames of any size and hand out whole frames; what stands between (pieces, order, limits) is
wire/codec.py's. Neither redials: who owns a link decides what its loss means.
"""

import asyncio
import select
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire.codec import FrameReader, FrameWriter
from flashmesh.wire.frames import AnyFrame

_READ_BYTES: Final = 256 * 1024
_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2  # macOS, <sys/un.h>


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket; -1 where the system does not say."""

    pid: int
    uid: int


def peer_of(sock: Any) -> Peer:
    """The process and user that connected, as the kernel knows them."""
    try:
        if sys.platform == "darwin":
            credentials = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 128)
            (pid,) = struct.unpack("i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
            return Peer(pid, struct.unpack_from("II", credentials)[1])
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, struct.error, AttributeError):
        return Peer(-1, -1)
    return Peer(pid, uid)


def _unreachable(path: str | Path, error: OSError) -> LinkLost:
    return LinkLost(f"No session answers at {path}: {error.strerror or error}. Start one with `flash run`.")


class Link(asyncio.Protocol):
    """A connection in an asyncio loop. Serves both ends: dialled by `dial`, accepted by `loop.create_unix_server`.

    All frames sent in one turn of the loop leave in one write. While the other end does not read, frames stay here,
    where control frames may still pass payloads; the transport's own buffer never holds more than a few hundred KiB.

    Args:
        on_frame: called with each frame, in order. An exception it raises ends the connection.
        on_lost: called once, after the last frame: None after a close by either end, else what went wrong
            (LinkProtocolError when the other end does not speak our frames).
    Attributes:
        peer_pid, peer_uid: of the process at the other end; -1 before the connection or where unknown.
        state: free for the owner.
    """

    def __init__(
        self,
        on_frame: Callable[["Link", AnyFrame], None],
        on_lost: Callable[["Link", Exception | None], None],
        *,
        max_payload: int | None = None,
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer_pid = -1
        self.peer_uid = -1
        self.state: Any = None
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader(max_payload=max_payload)
        self._writer = FrameWriter(max_payload=max_payload)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._paused = False
        self._closing = False
        self._failure: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Connected, and neither end has begun to close."""
        return self.transport is not None and not self._closing

    def send(self, frame: AnyFrame) -> None:
        """Send it with everything else of this turn. Nothing happens on a closed link: `on_lost` tells.

        Raises PayloadTooLarge.
        """
        if self._closing:
            return
        self._writer.put(frame)
        if not self._scheduled and not self._paused and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what waits, then close. Frames that still come are not delivered."""
        self._closing = True
        if self.transport is not None and not self._writer:
            self.transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Close now; what waits is dropped. `error` is what `on_lost` is told."""
        self._closing = True
        self._failure = self._failure or error
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has the methods and not the class
        self._loop = asyncio.get_running_loop()
        self.peer_pid, self.peer_uid = peer_of(transport.get_extra_info("socket"))
        if self._writer or self._closing:
            self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            found = self._reader.feed(data)
        except LinkProtocolError as error:
            self.abort(error)
            return
        for frame in found:
            if self._closing:
                return
            self._on_frame(self, frame)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.transport = None
        self._on_lost(self, self._failure or exc)

    def _flush(self) -> None:
        self._scheduled = False
        transport = self.transport
        if transport is None or self._paused:
            return
        if self._writer:
            transport.write(self._writer.take())  # may call pause_writing
        if not self._writer:
            if self._closing:
                transport.close()
        elif self._loop is not None and not self._stalled():
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _stalled(self) -> bool:
        return self._paused


async def dial(
    path: str | Path,
    on_frame: Callable[[Link, AnyFrame], None],
    on_lost: Callable[[Link, Exception | None], None],
    *hello: AnyFrame,
) -> Link:
    """Connect to a session's socket; `hello` leaves in the first write. Raises LinkLost when nobody listens."""
    link = Link(on_frame, on_lost)
    for frame in hello:
        link.send(frame)
    try:
        await asyncio.get_running_loop().create_unix_connection(lambda: link, str(path))
    except OSError as error:
        raise _unreachable(path, error) from error
    return link


class BlockingLink:
    """A connection for code without an event loop.

    One thread may send while another receives; two may not do the same at once (BlockingClient adds the locks).

    Args:
        sock: a connected stream socket; the link owns it from now on.
        blocking: True: `send` returns when the kernel has everything. False (selectors loops): `send` gives the kernel
            what it takes at once; watch `fileno` for writing while `pending`, then call `flush`.
    """

    def __init__(self, sock: socket.socket, *, blocking: bool = True, max_payload: int | None = None) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._blocking = blocking
        self._reader = FrameReader(max_payload=max_payload)
        self._writer = FrameWriter(max_payload=max_payload)
        self._unsent = memoryview(b"")
        self._inbox: deque[AnyFrame] = deque()
        self._ended: LinkLost | LinkProtocolError | None = None

    @classmethod
    def connect(cls, path: str | Path, *hello: AnyFrame, blocking: bool = True) -> "BlockingLink":
        """Dial a session and send `hello`. Raises LinkLost when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise _unreachable(path, error) from error
        link = cls(sock, blocking=blocking)
        for frame in hello:
            link._writer.put(frame)
        link._push()
        return link

    @property
    def peer(self) -> Peer:
        """The process at the other end."""
        return peer_of(self._sock)

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the kernel to take them."""
        return bool(self._unsent or self._writer)

    def fileno(self) -> int:
        """For select and selectors; -1 once closed."""
        return self._sock.fileno()

    def send(self, frame: AnyFrame) -> None:
        """Send a frame. Raises LinkLost when the other end is gone, PayloadTooLarge."""
        self._writer.put(frame)
        self._push()

    def flush(self) -> bool:
        """Give the kernel what it takes now, without blocking. True when nothing is left. Raises LinkLost."""
        while self.pending:
            if not self._unsent:
                self._unsent = memoryview(self._writer.take())
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise self._lost(error) from error
            self._unsent = self._unsent[sent:]
        return True

    def receive(self, timeout: float | None = None) -> AnyFrame:
        """The next frame. Raises TimeoutError after `timeout` seconds (None: no limit), LinkLost, LinkProtocolError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._inbox:
            self._read()
            if self._inbox:
                break
            if self._ended is not None:
                raise self._ended
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError("No frame came in time.")
            self._wait(select.POLLIN, left)
        return self._inbox.popleft()

    def pump(self) -> list[AnyFrame]:
        """Frames that are here, without blocking. Raises LinkLost or LinkProtocolError after the last one."""
        self._read()
        found = list(self._inbox)
        self._inbox.clear()
        if not found and self._ended is not None:
            raise self._ended
        return found

    def shutdown(self) -> None:
        """End the connection for both ends and every process that shares the socket; wakes a thread that receives."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already ended

    def close(self) -> None:
        """Close this process's end of the socket; harmless when closed."""
        self._ended = self._ended or LinkLost("The link was closed by this process.")
        self._sock.close()

    def _push(self) -> None:
        while not self.flush() and self._blocking:
            self._wait(select.POLLOUT, None)

    def _read(self) -> None:
        """Take what the kernel has, one buffer at most, into the inbox."""
        if self._ended is not None:
            return
        try:
            data = self._sock.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._lost(None)
            return
        try:
            self._inbox.extend(self._reader.feed(data))
        except LinkProtocolError as error:
            self._ended = error

    def _wait(self, event: int, seconds: float | None) -> None:
        poll = select.poll()
        try:
            poll.register(self._sock, event)
        except ValueError as error:  # closed by another thread
            raise self._lost(None) from error
        poll.poll(None if seconds is None else seconds * 1000)

    def _lost(self, error: OSError | None) -> LinkLost | LinkProtocolError:
        if self._ended is None:
            self._ended = LinkLost() if error is None else LinkLost(f"{LinkLost.__doc__} ({error.strerror or error})")
        return self._ended
