"""Who waits to be read while callers are being turned away, so that a flood of them does not starve the accepted.

The kernel tells of everything that came since it was asked last, and each of some thousand requests that only hear "not
now" costs nearly half of what a call costs. Served as they come, they would stand between a worker's answer and the
next call it gets: the worker idles, and places in line stay taken. So from the first 429 on what comes is put down
unread, and taken up again a few at a time, with a look at what workers say in between: as many as find a place, and for
each of them up to SHARE that do not.
"""

import asyncio
from collections import OrderedDict
from typing import Final, Protocol

SHARE: Final = 1
"""Callers turned away for each that was not. Higher: a refusal comes sooner under a flood, and less is done."""
LEAST: Final = 16
"""Turned away in any turn of the loop, also when nothing is accepted. Lower: more turns for as many, of some 20 µs."""
MAX_BYTES: Final = 256 * 1024
"""A connection that sends more than this meanwhile is read at once: what is put down is bounded."""


class Reader(Protocol):
    """A connection whose bytes can be put down."""

    def data_received(self, data: bytes) -> None: ...


class Crowd:
    """Of one server. Everything on the loop's thread."""

    __slots__ = ("_asked", "_refused", "_waiting", "gathers")

    def __init__(self) -> None:
        self._waiting: OrderedDict[Reader, bytes] = OrderedDict()
        self._refused = 0
        self._asked = False
        self.gathers = False
        """What comes is to be put down here."""

    def __len__(self) -> int:
        """Connections with something unread."""
        return len(self._waiting)

    def refused(self) -> None:
        """A caller was turned away."""
        self._refused += 1
        if not self._asked:
            self._asked = self.gathers = True
            asyncio.get_running_loop().call_soon(self._turn)

    def put_down(self, reader: Reader, data: bytes) -> None:
        """Read `data` when it is its turn. While `gathers`."""
        before = self._waiting.get(reader)
        if before is None:
            self._waiting[reader] = data
        elif len(before) + len(data) <= MAX_BYTES:
            self._waiting[reader] = before + data
        else:
            del self._waiting[reader]
            self._read(reader, before + data)

    def empty(self) -> None:
        """Read everything now."""
        while self._waiting:
            self._read(*self._waiting.popitem(last=False))

    def _turn(self) -> None:
        left = LEAST
        while self._waiting and left > 0:
            before = self._refused
            self._read(*self._waiting.popitem(last=False))
            left += SHARE if self._refused == before else -1
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)
        else:
            self._asked = self.gathers = False

    def _read(self, reader: Reader, data: bytes) -> None:
        self.gathers = False
        try:
            reader.data_received(data)
        finally:
            self.gathers = self._asked
