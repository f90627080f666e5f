"""Files in memory that a link uses again and again: lent to the other end with a payload in them, and given back.

To make a file's pages costs many times what writing into pages costs that exist (docs/decisions/0005). So the end that
sends (`Lender`) keeps a few files, mapped and sealed against any change of size and against writing by anybody else.
The end that receives (`Borrower`) keeps a descriptor and a read-only mapping of each. A file holds one payload at a
time: it is not written again before the other end has said that nothing there looks at it any more.

A payload that came in such a file is a `Borrowed`: its bytes are to be decoded or copied, not kept. An end that only
passes it on lends the same file to the next one and has it back before it gives it back itself.
"""

import fcntl
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire import memfd
from flashmesh.wire.memfd import Descriptor
from flashmesh.wire.parts import Buffer, Parts

MOST_FILES: Final = 4
"""Of one end of a link. More payloads than that under way at once travel in files of their own."""
MOST_BYTES: Final = 64 * 1024 * 1024
MOST_PASSED: Final = 16
"""Files of others that an end may have passed on."""
MOST_KNOWN: Final = MOST_FILES + MOST_PASSED
IDLE_S: Final = 5.0
"""A file that was not used for so long is given up."""
_GRAIN: Final = 1024 * 1024
"""Files are made in multiples of this: payloads that differ a little use the same one."""

if sys.platform == "linux":
    _FUTURE_WRITE: Final = (
        0x10  # F_SEAL_FUTURE_WRITE (Linux 5.1): what is mapped writable stays so, nothing else becomes
    )
    SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _FUTURE_WRITE


class Lent:
    """A payload in a file that the other end may read. `descriptor`: to be sent with it; None: it has that already."""

    __slots__ = ("descriptor", "number", "size")

    def __init__(self, number: int, size: int, descriptor: Descriptor | None) -> None:
        self.number = number
        self.size = size
        self.descriptor = descriptor

    def __len__(self) -> int:
        return self.size


class _Own:
    """A file of ours."""

    __slots__ = ("capacity", "number", "place", "since")

    def __init__(self, number: int, place: mmap.mmap) -> None:
        self.number = number
        self.place = place
        self.capacity = len(place)
        self.since = 0.0


class _Known:
    """A file of the other end's. Closed and unmapped when nothing refers to it."""

    __slots__ = ("_mapping", "capacity", "descriptor", "number")

    def __init__(self, number: int, descriptor: Descriptor, capacity: int) -> None:
        self.number = number
        self.descriptor = descriptor
        self.capacity = capacity
        self._mapping: memoryview | None = None

    def view(self, size: int) -> memoryview:
        if self._mapping is None:
            self._mapping = memfd.view(self.descriptor, self.capacity)
        return self._mapping[:size]


class Borrowed:
    """A payload in a file of the other end's, which gets it back when this is closed or nothing refers to it."""

    __slots__ = ("_returns", "_size", "file")

    def __init__(self, file: _Known, size: int, returns: deque[int]) -> None:
        self.file = file
        self._size = size
        self._returns: deque[int] | None = returns

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return bytes(self.view())

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """It has been read, and is not read again. Harmless when repeated, in any thread."""
        returns, self._returns = self._returns, None
        if returns is not None:
            returns.append(self.file.number)

    def view(self) -> memoryview:
        """Its bytes, read-only. Valid until this is closed, and as long as it is referred to."""
        if self._returns is None:
            raise ValueError("This payload was given back.")
        return self.file.view(self._size)


class _Passed:
    """A file of somebody else's that this link's other end was given by us."""

    __slots__ = ("held", "number", "since")

    def __init__(self, number: int, held: Borrowed) -> None:
        self.number = number
        self.held: Borrowed | None = held
        """What keeps its owner from writing; None while the other end does not look at it."""
        self.since = 0.0


class Lender:
    """The files of one end of a link. `returned` may be called in another thread than the rest."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_files: int = MOST_FILES,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._clock = clock
        self._most_files = most_files
        self._most_bytes = most_bytes
        self._free: list[_Own] = []
        """The one that came back last stands last: its pages are the likeliest to be at hand."""
        self._out: dict[int, _Own] = {}
        self._passed: dict[_Known, _Passed] = {}
        self._bytes = 0
        self._last = 0
        self._came_back: deque[int] = deque()
        self._given_up: list[int] = []

    def lend(self, payload: Buffer | Parts) -> Lent | None:
        """Write it into a file that is free, or a new one. None: none is free and no more may be made.

        Raises OSError where no file can be made.
        """
        self.sort()
        size = len(payload)
        self.give_up(self._clock() - IDLE_S)
        descriptor = None
        file = next((one for one in reversed(self._free) if one.capacity >= size), None)
        if file is not None:
            self._free.remove(file)
        else:
            capacity = -(-size // _GRAIN) * _GRAIN
            if not self._make_room(capacity):
                return None
            file, descriptor = self._make(capacity)
        self._out[file.number] = file
        place = memoryview(file.place)
        if isinstance(payload, Parts):
            payload.write_into(place)
        else:
            place[:size] = memoryview(payload).cast("B")
        return Lent(file.number, size, descriptor)

    def pass_on(self, payload: Borrowed) -> Lent | None:
        """Lend what was lent to us. None: the other end looks at that file already, or has too many.

        Raises OSError where no descriptor is left.
        """
        self.sort()
        known = self._passed.get(payload.file)
        if known is not None:
            if known.held is not None:
                return None
            known.held = payload
            return Lent(known.number, len(payload), None)
        self.give_up(self._clock() - IDLE_S)
        if len(self._passed) >= MOST_PASSED:
            return None
        descriptor = Descriptor(os.dup(payload.file.descriptor.fd))
        self._last += 1
        self._passed[payload.file] = _Passed(self._last, payload)
        return Lent(self._last, len(payload), descriptor)

    def returned(self, numbers: Sequence[int]) -> None:
        """The other end does not look at these any more. `sort` takes note of it, at the latest with the next one."""
        self._came_back.extend(numbers)

    def give_up(self, before: float) -> None:
        """Let go of the files that nobody has used since that moment of the clock."""
        self.sort()
        for file in [one for one in self._free if one.since <= before]:
            self._forget(file)
        for source, passed in [(key, one) for key, one in self._passed.items() if one.held is None]:
            if passed.since <= before:
                del self._passed[source]
                self._given_up.append(passed.number)

    def take_given_up(self) -> list[int]:
        """The numbers that the other end has to be told of."""
        given_up, self._given_up = self._given_up, []
        return given_up

    @property
    def idle(self) -> bool:
        """Whether there is something to give up, now or soon."""
        return bool(self._free or self._passed or self._came_back)

    def close(self) -> None:
        """The link is over: nothing is written again, and whoever still maps a file keeps it as it is."""
        self._free.clear()
        self._out.clear()
        self._passed.clear()
        self._came_back.clear()

    def sort(self) -> None:
        """Take note of what came back; what was only passed on goes back to its owner by that.

        What was never lent is nothing to us: who says so harms nobody.
        """
        now = self._clock()
        while self._came_back:
            number = self._came_back.popleft()
            file = self._out.pop(number, None)
            if file is not None:
                file.since = now
                self._free.append(file)
                continue
            passed = next((one for one in self._passed.values() if one.number == number), None)
            if passed is not None:
                passed.held = None
                passed.since = now

    def _make_room(self, capacity: int) -> bool:
        while self._free and not self._fits(capacity):
            self._forget(self._free[0])
        return self._fits(capacity)

    def _fits(self, capacity: int) -> bool:
        count = len(self._free) + len(self._out)
        return count < self._most_files and self._bytes + capacity <= self._most_bytes

    def _make(self, capacity: int) -> tuple[_Own, Descriptor]:
        if sys.platform != "linux":
            raise OSError("this system has no sealed files")
        descriptor = Descriptor(os.memfd_create("flash-lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        os.ftruncate(descriptor.fd, capacity)
        place = mmap.mmap(descriptor.fd, capacity, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        fcntl.fcntl(descriptor.fd, fcntl.F_ADD_SEALS, SEALS)  # after the mapping: it is the last that may be written
        self._last += 1
        self._bytes += capacity
        return _Own(self._last, place), descriptor

    def _forget(self, file: _Own) -> None:
        self._free.remove(file)
        self._bytes -= file.capacity
        self._given_up.append(file.number)


class Borrower:
    """The files that the other end of a link lends. `returns` may grow in any thread."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._known: dict[int, _Known] = {}
        self.returns: deque[int] = deque()
        """Numbers of files that nobody here looks at any more, for the other end to be told."""

    def meet(self, number: int, descriptor: Descriptor) -> None:
        """A file's first appearance. Raises LinkProtocolError unless its size is fixed and only its owner writes it."""
        if number in self._known or len(self._known) >= MOST_KNOWN:
            raise LinkProtocolError(f"File {number} came twice, or with {MOST_KNOWN} others.")
        self._known[number] = _Known(number, descriptor, capacity_of(descriptor))

    def borrow(self, number: int, size: int) -> Borrowed:
        """The payload in a known file. Raises LinkProtocolError."""
        known = self._known.get(number)
        if known is None:
            raise LinkProtocolError(f"A payload came in file {number}, which is not known here.")
        if not 0 < size <= min(known.capacity, self._limit_bytes):
            raise LinkProtocolError(f"A payload of {size} bytes was announced in a file of {known.capacity}.")
        return Borrowed(known, size, self.returns)

    def forget(self, numbers: Sequence[int]) -> None:
        """The other end has given these up."""
        for number in numbers:
            self._known.pop(number, None)

    def take_returns(self) -> list[int]:
        found = []
        while self.returns:
            found.append(self.returns.popleft())
        return found

    def close(self) -> None:
        """Payloads that are still referred to stay readable."""
        self._known.clear()


def capacity_of(descriptor: Descriptor) -> int:
    """A lent file's size in bytes. Raises LinkProtocolError for a file that can be resized, or written by others."""
    return memfd.sealed_size(descriptor, SEALS)
