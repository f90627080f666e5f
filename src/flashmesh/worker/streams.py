"""How far a generator may run ahead of its reader, and its items as one list for a reader that does not stream."""

from collections import deque
from collections.abc import Callable
from typing import Final

from flashmesh.functions.errors import PayloadTooLarge
from flashmesh.wire.frames import MSGPACK

WINDOW_ITEMS: Final = 64
WINDOW_BYTES: Final = 256 * 1024
LIST_ITEMS: Final = 10_000
LIST_BYTES: Final = 64 * 1024 * 1024


class Window:
    """Items sent and not yet granted back. Closed when there are 64 of them or they hold 256 KiB.

    The window may be overdrawn by the one item that closes it, so an item of any size gets through.
    `on_open`, when set, is called once as the window opens again, and forgotten.
    """

    __slots__ = ("_bytes", "_sizes", "on_open")

    def __init__(self) -> None:
        self._sizes: deque[int] = deque()
        self._bytes = 0
        self.on_open: Callable[[], None] | None = None

    @property
    def is_open(self) -> bool:
        return len(self._sizes) < WINDOW_ITEMS and self._bytes < WINDOW_BYTES

    def spend(self, size: int) -> None:
        """One item of `size` bytes is on its way."""
        self._sizes.append(size)
        self._bytes += size

    def grant(self, items: int) -> None:
        """The reader took the oldest `items`; more than were sent counts as all of them."""
        for _ in range(min(items, len(self._sizes))):
            self._bytes -= self._sizes.popleft()
        if self.on_open is not None and self.is_open:
            on_open, self.on_open = self.on_open, None
            on_open()


class ItemList:
    """The encoded items of a generator, joined into one encoded list without decoding them."""

    __slots__ = ("_bytes", "_items", "_media")

    def __init__(self, media: str) -> None:
        self._media = media
        self._items: list[bytes] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: bytes) -> None:
        """Raises PayloadTooLarge beyond 10 000 items or 64 MiB."""
        self._bytes += len(item)
        if len(self._items) >= LIST_ITEMS or self._bytes > LIST_BYTES:
            raise PayloadTooLarge(
                f"The function yielded more than {LIST_ITEMS} items or {LIST_BYTES >> 20} MiB: too much for one list. "
                "Stream it: iterate over the call, or send `Accept: text/event-stream`."
            )
        self._items.append(item)

    def encoded(self) -> bytes:
        """A JSON or MessagePack array of all items."""
        if self._media == MSGPACK:
            return b"\xdd" + len(self._items).to_bytes(4, "big") + b"".join(self._items)
        return b"[" + b",".join(self._items) + b"]"
