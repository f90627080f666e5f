"""The process groups one template has made, in memory shared with the keeper: what must die when the template did.

An array of process ids, 0 = free. The template gives out places; who moves into one (zygote or worker) writes its own
pid there once it leads its group; who reaps it clears the place *before* the pid can be used again.
"""

from __future__ import annotations

import mmap
import os
import struct

from flashmesh.worker.launch import anonymous_file

PLACES = 4096
_PID = struct.Struct("=i")


class Places:
    """Which places of a table are taken. The template's alone."""

    def __init__(self) -> None:
        self._free = list(range(PLACES - 1, -1, -1))

    def take(self) -> int:
        """Raises IndexError when 4096 processes are alive at once."""
        return self._free.pop()

    def give(self, place: int) -> None:
        self._free.append(place)


class GroupTable:
    """`create` by the keeper, `attach` by everybody below it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._memory = mmap.mmap(fd, PLACES * _PID.size)

    @classmethod
    def create(cls) -> GroupTable:
        fd = anonymous_file()
        os.ftruncate(fd, PLACES * _PID.size)
        return cls(fd)

    @classmethod
    def attach(cls, fd: int) -> GroupTable:
        return cls(fd)

    def enter(self, place: int, pid: int) -> None:
        _PID.pack_into(self._memory, place * _PID.size, pid)

    def leave(self, place: int) -> None:
        _PID.pack_into(self._memory, place * _PID.size, 0)

    def clear(self) -> None:
        """Nobody is left: their template is gone and they were killed."""
        self._memory[:] = bytes(PLACES * _PID.size)

    def pids(self) -> list[int]:
        return [pid for (pid,) in _PID.iter_unpack(self._memory[:]) if pid > 0]

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)
