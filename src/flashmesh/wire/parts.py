"""Bytes that lie in several places, to be written where they are wanted without being joined first."""

from collections.abc import Sequence
from typing import cast

Buffer = bytes | bytearray | memoryview


class Parts:
    """A payload of several buffers. A link that was given one has read it when `send` returns."""

    __slots__ = ("_buffers", "_size")

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._buffers = [memoryview(buffer).cast("B") for buffer in buffers]
        self._size = sum(map(len, self._buffers))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self._buffers)

    def write_into(self, place: memoryview) -> None:
        """`place` holds at least `len(self)` writable bytes."""
        start = 0
        for buffer in self._buffers:
            place[start : start + len(buffer)] = buffer
            start += len(buffer)


def sendable(payload: bytes | Parts) -> bytes:
    """For a frame, which says bytes, that a link is given at once: `FrameWriter.put` takes parts as well."""
    return cast("bytes", payload)
