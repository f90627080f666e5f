"""What a generator has yielded, kept until it is read: bounded, each item handed out once.

The session grants a worker credits for as many items as there is room for, so a generator whose reader is slow is
suspended and not buffered without end. A call that nobody streams collects its items into one list, within the bounds
of a list result; beyond them it fails and says to stream.
"""

import struct
from collections import deque
from itertools import islice
from typing import Final

from flashmesh.functions.errors import ItemsGone, PayloadTooLarge

MAX_UNREAD_ITEMS: Final = 1000
"""Items that may wait for a reader. Higher: a slower reader is tolerated, at the cost of memory per execution."""
MAX_UNREAD_BYTES: Final = 1024 * 1024
MAX_LIST_ITEMS: Final = 10_000
"""Items of a generator that answers as one list; more must be streamed."""
MAX_LIST_BYTES: Final = 64 * 1024 * 1024


def too_long() -> PayloadTooLarge:
    """Why a list is not made, and what to do instead."""
    return PayloadTooLarge(
        f"the generator yields more than {MAX_LIST_ITEMS} items or {MAX_LIST_BYTES >> 20} MiB, too much for one list. "
        "Stream it: `async for`, `job.stream()`, or `Accept: text/event-stream`"
    )


class ItemBuffer:
    """The items of one execution. Positions count from 0 over its whole life."""

    __slots__ = ("_items", "_unread_bytes", "bytes", "cursor", "first", "streamed", "total")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._unread_bytes = 0
        self.first = 0
        """Position of the oldest item that is still kept."""
        self.total = 0
        """How many were yielded so far: also the position of the next one."""
        self.bytes = 0
        self.cursor = 0
        """Position of the first item that no reader has had."""
        self.streamed = False
        """Whether anybody reads them as they come."""

    @classmethod
    def of(cls, items: list[bytes], *, first: int, cursor: int) -> "ItemBuffer":
        """As it was when `kept` gave these: `first` is the position of the first one."""
        buffer = cls()
        buffer._items.extend(items)
        buffer.first, buffer.total, buffer.cursor = first, first + len(items), cursor
        buffer.bytes = sum(map(len, items))
        buffer._unread_bytes = sum(map(len, islice(items, max(0, cursor - first), None)))
        buffer.streamed = cursor > 0
        return buffer

    def kept(self) -> list[bytes]:
        """The items from position `first` on."""
        return list(self._items)

    def add(self, item: bytes) -> None:
        """Keep one more. Raises PayloadTooLarge when nobody streams and a list cannot hold it."""
        if not self.streamed and (self.total >= MAX_LIST_ITEMS or self.bytes + len(item) > MAX_LIST_BYTES):
            raise too_long()
        self._items.append(item)
        self.total += 1
        self.bytes += len(item)
        self._unread_bytes += len(item)

    def room(self) -> int:
        """How many more items are welcome now. 0: let the generator wait."""
        if not self.streamed:
            return MAX_UNREAD_ITEMS
        unread = self.total - self.cursor
        if self._unread_bytes >= MAX_UNREAD_BYTES:
            return 0
        return max(0, MAX_UNREAD_ITEMS - unread)

    def take(
        self, after: int | None = None, limit: int = MAX_UNREAD_ITEMS, limit_bytes: int = MAX_LIST_BYTES
    ) -> tuple[list[bytes], int]:
        """Up to `limit` items of `limit_bytes` together (one of any size), and the position that follows them.

        Args:
            after: read from this position; None = where the last reader stopped, so each item is handed out once.

        Raises:
            ItemsGone: `after` lies before what is kept.
        """
        self.streamed = True
        start = self.cursor if after is None else after
        if start < self.first:
            raise ItemsGone
        offset = start - self.first
        taken: list[bytes] = []
        size = 0
        for item in islice(self._items, offset, offset + limit):
            if taken and size + len(item) > limit_bytes:
                break
            taken.append(item)
            size += len(item)
        position = start + len(taken)
        if position > self.cursor:
            self._unread_bytes -= sum(map(len, islice(self._items, self.cursor - self.first, position - self.first)))
            self.cursor = position
        self._forget_read()
        return taken, position

    def _forget_read(self) -> None:
        """Drop read items once they are more than a buffer's worth; until then the whole list can still be answered."""
        while self.first < self.cursor and (len(self._items) > MAX_UNREAD_ITEMS or self.bytes > MAX_UNREAD_BYTES):
            self.bytes -= len(self._items.popleft())
            self.first += 1

    @property
    def complete(self) -> bool:
        """Whether every item is still here, so that a list can be made of them."""
        return self.first == 0

    def as_list(self, content_type: str) -> bytes:
        """All items as one encoded list, spliced from the bytes the worker sent; raw bytes are joined."""
        return join(list(self._items), content_type)


def join(items: list[bytes], content_type: str) -> bytes:
    """One list out of encoded items: a JSON or MessagePack array, or (any other type) one item after another."""
    if content_type == "application/json":
        return b"[" + b",".join(items) + b"]"
    if content_type == "application/x-msgpack":
        count = len(items)
        if count < 16:
            head = bytes((0x90 | count,))
        elif count < 1 << 16:
            head = struct.pack(">BH", 0xDC, count)
        else:
            head = struct.pack(">BI", 0xDD, count)
        return head + b"".join(items)
    return b"".join(items)
