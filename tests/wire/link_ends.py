"""Two ends of a link in one loop, and what their tests ask about them."""

import asyncio
import gc
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire.codec import Asks, encode
from flashmesh.wire.connection import Link
from flashmesh.wire.frames import AnyFrame


def open_descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


class End:
    """What one end of a link saw."""

    def __init__(self, **options: Any) -> None:
        self.frames: list[AnyFrame] = []
        self.lost: list[Exception | None] = []
        self.changed = asyncio.Event()
        self.link = Link(self._on_frame, self._on_lost, **options)

    def _on_frame(self, link: Link, frame: AnyFrame) -> None:
        self.frames.append(frame)
        self.changed.set()

    def _on_lost(self, link: Link, error: Exception | None) -> None:
        self.lost.append(error)
        self.changed.set()

    async def until(self, ready: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not ready():
                self.changed.clear()
                await self.changed.wait()


async def two(a: End, b: End) -> None:
    ours, theirs = socket.socketpair()
    loop = asyncio.get_running_loop()
    await loop.create_unix_connection(lambda: a.link, sock=ours)
    await loop.create_unix_connection(lambda: b.link, sock=theirs)


async def over(*ends: End) -> None:
    for end in ends:
        end.link.abort()
    for end in ends:
        await end.until(lambda end=end: end.lost)


def refuses(send: Callable[[socket.socket], None], message: str, *, mapped: bool) -> None:
    """A link that takes descriptors ends itself, with that message, because of what the far end sends."""

    async def main() -> None:
        end, (mine, far) = End(mapped=mapped), socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(lambda: end.link, sock=mine)
        far.send(encode(Asks()))
        await becomes(lambda: end.link._passage is not None)
        send(far)
        await end.until(lambda: end.lost)
        assert isinstance(end.lost[0], LinkProtocolError)
        assert message in str(end.lost[0])
        far.close()

    asyncio.run(main())


def brief(frame: Any) -> tuple[Any, ...]:
    """A frame in few words: megabytes in a failed comparison take minutes to print."""
    data = getattr(frame, "payload", b"") or getattr(frame, "data", b"") or getattr(frame, "body", {}).get("payload")
    return type(frame), getattr(frame, "execution", ""), getattr(frame, "attempt", 0), zlib.crc32(data or b"")


async def becomes(condition: Callable[[], Any]) -> None:
    """Wait for what no frame tells."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not become true")
