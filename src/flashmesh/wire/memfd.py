"""Large payloads as sealed files in memory: on a Unix link the descriptor travels instead of the bytes (Linux).

Only what is sealed against writing, shrinking and growing is read: its size and content cannot change any more, so that
mapping it can neither show half a payload nor end this process with SIGBUS, whatever the sender does.
"""

import array
import asyncio
import fcntl
import mmap
import os
import socket
import sys
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from flashmesh.functions.errors import LinkProtocolError

LARGE_BYTES: Final = 1024 * 1024
"""From here a payload travels as a descriptor: below it, making and mapping a file costs more than the copies."""
AVAILABLE: Final = sys.platform == "linux" and hasattr(os, "memfd_create")
KEPT_BYTES: Final = 64 * 1024 * 1024
KEPT: Final = 32
KEPT_S: Final = 5.0

_FD_BYTES: Final = array.array("i").itemsize
if sys.platform == "linux":
    _SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    SPACE: Final = socket.CMSG_SPACE(_FD_BYTES)
    """Ancillary bytes to receive: one descriptor at a time, which is what is sent."""
    RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC


class Descriptor:
    """A descriptor that is closed with its owner, at the latest when nobody refers to it."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Harmless when closed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def passes(sock: Any) -> bool:
    """Whether descriptors can travel over this socket."""
    return AVAILABLE and sock is not None and sock.family == socket.AF_UNIX


def seal(payload: bytes | bytearray | memoryview) -> Descriptor:
    """A sealed file with these bytes. Raises OSError where none can be made (no memory, no descriptor left)."""
    if sys.platform != "linux":
        raise OSError("this system has no sealed files")
    sealed = Descriptor(os.memfd_create("flash-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    try:
        view = memoryview(payload).cast("B")
        written = 0
        while written < len(view):
            written += os.write(sealed.fd, view[written:])
        fcntl.fcntl(sealed.fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        sealed.close()
        raise
    return sealed


def sealed_size(sealed: Descriptor, seals: int) -> int:
    """The size in bytes of a file that came. Raises LinkProtocolError unless it is one of memory, with those seals."""
    if sys.platform != "linux":
        raise LinkProtocolError("A payload came as a descriptor, which this system does not know.")
    try:
        found = fcntl.fcntl(sealed.fd, fcntl.F_GET_SEALS)
        size = os.fstat(sealed.fd).st_size
    except OSError as error:
        raise LinkProtocolError(f"A payload came as a descriptor that is no sealed file ({error.strerror}).") from error
    if found & seals != seals:
        raise LinkProtocolError(f"A payload came in a file that can still change (seals {found:#x}).")
    return size


def check(sealed: Descriptor, size: int) -> None:
    """Raises LinkProtocolError unless it is a file of exactly `size` bytes that nobody can change any more."""
    found = sealed_size(sealed, _SEALS)
    if found != size:
        raise LinkProtocolError(f"A payload of {size} bytes was announced; its file has {found}.")


def view(sealed: Descriptor, size: int) -> memoryview:
    """A checked file's bytes without copying, read-only. The mapping lives as long as something refers to the view."""
    if size == 0:
        return memoryview(b"")
    try:
        return memoryview(mmap.mmap(sealed.fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ))
    except OSError as error:
        raise LinkProtocolError(f"A payload of {size} bytes could not be mapped: {error.strerror}.") from error


def read(sealed: Descriptor, size: int) -> bytes:
    """A checked file's bytes, copied. Raises LinkProtocolError when the system does not give them."""
    try:
        data = os.pread(sealed.fd, size, 0)
        while len(data) < size and (more := os.pread(sealed.fd, size - len(data), len(data))):
            data += more
    except OSError as error:
        raise LinkProtocolError(f"A payload of {size} bytes could not be read: {error.strerror}.") from error
    return data


def ancillary(sealed: Descriptor) -> "Sequence[tuple[int, int, array.array[int]]]":
    """What `sendmsg` takes along."""
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sealed.fd]))]


def received(messages: Sequence[tuple[int, int, bytes]], flags: int) -> list[Descriptor]:
    """The descriptors `recvmsg` brought. Raises LinkProtocolError when one was lost on the way (none left here)."""
    found = []
    for level, kind, content in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % _FD_BYTES])
            found += [Descriptor(number) for number in numbers]
    if flags & socket.MSG_CTRUNC:
        raise LinkProtocolError("A payload's descriptor was lost: more than one came, or this process has none left.")
    return found


class Source(Protocol):
    """What a payload came in: a Descriptor of its own, or a file that was lent."""

    def close(self) -> None: ...


class Splices:
    """Descriptors of payloads that will probably be sent on as they are: a session passes a call to a worker.

    Shared by the links of one loop; a payload is found by its identity and given out once. What nobody asked for within
    a few seconds, and the oldest when there are too many, is given up and then costs a copy like any other.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        limit_bytes: int = KEPT_BYTES,
        limit: int = KEPT,
        seconds: float = KEPT_S,
    ) -> None:
        self._loop = loop
        self._limit_bytes = limit_bytes
        self._limit = limit
        self._seconds = seconds
        self._bytes = 0
        self._kept: deque[tuple[float, bytes, Source]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, payload: bytes, source: Source) -> None:
        """Remember it; the descriptor is closed, the file goes back, when it is given up."""
        self._kept.append((self._loop.time(), payload, source))
        self._bytes += len(payload)
        while self._bytes > self._limit_bytes or len(self._kept) > self._limit:
            self._drop_oldest()
        if self._kept and self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._sweep)

    def take(self, payload: object) -> Source | None:
        """Where it came in, which is the caller's from now on."""
        for index, (_, kept, source) in enumerate(self._kept):
            if kept is payload:
                del self._kept[index]
                self._bytes -= len(kept)
                return source
        return None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._kept:
            self._drop_oldest()

    def _sweep(self) -> None:
        self._timer = None
        limit = self._loop.time() - self._seconds
        while self._kept and self._kept[0][0] <= limit:
            self._drop_oldest()
        if self._kept:
            self._timer = self._loop.call_later(self._seconds, self._sweep)

    def _drop_oldest(self) -> None:
        _, payload, source = self._kept.popleft()
        self._bytes -= len(payload)
        source.close()
