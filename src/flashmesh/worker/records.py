"""What each worker is doing, in memory shared with its template: the basis of deadlines, cancelling, logs and scaling.

One table per generation. A record belongs to one worker and has a head (pid, state, free slots) and a block per call
slot (execution, function, started, deadline). There are no locks: every block has one writer, and carries a checksum so
that a reader can tell a block it caught half-written from a whole one, on any machine's memory order. The template owns
two things in it: `hush` (workers need not tell it that they are full) and each slot's request (this call must end).

Times are nanoseconds of the monotonic clock, which all processes of one machine share; a deadline of 0 is none.
"""

import mmap
import os
import struct
from collections.abc import Callable
from enum import IntEnum
from time import monotonic_ns
from typing import Final, Literal, NamedTuple
from zlib import crc32

from flashmesh.worker.launch import anonymous_file

EXECUTION_BYTES: Final = 64
FUNCTION_BYTES: Final = 160
SPARE_SLOTS: Final = 8
"""Slots beyond `max_concurrency`: re-entrant calls run over the limit, at most as deep as a chain may be."""

_TABLE = struct.Struct("=IIIB3x")  # magic, workers, slots, hush
_HEAD = struct.Struct("=IiHHI")  # checksum, pid, state, free, calls
_CALL_FORM: Final = f"IHHIqq{EXECUTION_BYTES}s{FUNCTION_BYTES}s"  # seq, lengths, -, times, names
_CALL = struct.Struct(f"=I{_CALL_FORM}")  # checksum and that
_CALL_BODY = struct.Struct(f"={_CALL_FORM}")
_REQUEST = struct.Struct("=II")  # the seq of the call that is meant, why
_SEQ = struct.Struct("=I")  # the seq of the call that ended last
_MAGIC = 0x666C7368
_HUSH_OFFSET = 12
_TABLE_BYTES = 64
_HEAD_BYTES = 32
_ENDED_OFFSET = 256
_REQUEST_OFFSET = 264
_CALL_BYTES = 288
_REASONS: Final[tuple[None, Literal["cancel"], Literal["timeout"]]] = (None, "cancel", "timeout")

Reason = Literal["cancel", "timeout"]


class State(IntEnum):
    """A worker's life, as it writes it down itself."""

    EMPTY = 0
    STARTING = 1
    READY = 2
    LEAVING = 3
    DRAINING = 4
    """Asked to leave by a signal: the drain limit counts from now."""


class Running(NamedTuple):
    """One slot's call. `seq` tells it from the slot's earlier and later ones; `running` False = the last one it ran."""

    slot: int
    seq: int
    running: bool
    execution: str
    function: str
    started_ns: int
    deadline_ns: int


class Head(NamedTuple):
    """A worker as a whole. `calls`: how many it has begun; written with every change of `free`, and with the first."""

    pid: int
    state: State
    free: int
    calls: int


class Request(NamedTuple):
    """A running call that must end, and why."""

    slot: int
    execution: str
    reason: Reason


class RecordTable:
    """The shared memory of one generation: `workers` records of `slots` call slots each.

    `create` makes it (an anonymous file: only who inherits the descriptor can see it); `attach` opens an inherited one.
    """

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        magic, self.workers, self.slots, _ = _TABLE.unpack_from(memory, 0)
        if magic != _MAGIC:
            raise ValueError("This descriptor is not a record table; start the worker through its template.")
        self.fd = fd
        self._memory = memory
        self._record_bytes = _record_bytes(self.slots)

    @classmethod
    def create(cls, *, workers: int, slots: int) -> "RecordTable":
        size = _TABLE_BYTES + workers * _record_bytes(slots)
        fd = anonymous_file()
        os.ftruncate(fd, size)
        memory = mmap.mmap(fd, size)
        _TABLE.pack_into(memory, 0, _MAGIC, workers, slots, 0)
        return cls(fd, memory)

    @classmethod
    def attach(cls, fd: int) -> "RecordTable":
        """Raises ValueError when `fd` is something else."""
        return cls(fd, mmap.mmap(fd, os.fstat(fd).st_size))

    def record(self, index: int) -> "WorkerRecord":
        if not 0 <= index < self.workers:
            raise IndexError(f"record {index} of {self.workers}")
        return WorkerRecord(self._memory, _TABLE_BYTES + index * self._record_bytes, self.slots)

    @property
    def hush(self) -> bool:
        """True: the template watches the peer socket, or has no use for it: nobody need tell it that they are full."""
        return self._memory[_HUSH_OFFSET] != 0

    @hush.setter
    def hush(self, value: bool) -> None:
        self._memory[_HUSH_OFFSET] = 1 if value else 0

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


class WorkerRecord:
    """One worker's record. `set_*`, `clear` are the worker's; `demand`, `reset` the template's; the rest anyone's."""

    __slots__ = ("_base", "_calls", "_free", "_memory", "_names", "_pid", "_seqs", "_state", "on_leaving", "slots")

    def __init__(self, memory: mmap.mmap, base: int, slots: int) -> None:
        self._memory = memory
        self._base = base
        self.slots = slots
        self._pid = 0
        self._state = State.EMPTY
        self._free = self._calls = 0
        self.on_leaving: Callable[[], None] | None = None
        self._seqs = [0] * slots
        self._names: dict[str, bytes] = {}
        """As they are written, by function."""

    # --- the worker's side ---

    @property
    def free(self) -> int:
        """Free slots as this process published them last."""
        return self._free

    def begin(self, pid: int) -> None:
        """This record is mine now: STARTING, nothing free."""
        self._pid = pid
        self._state = State.STARTING
        self._free = self._calls = 0
        self._write_head()

    def set_ready(self, free: int) -> None:
        self._state = State.READY
        self._free = free
        self._write_head()

    def set_free(self, free: int) -> None:
        self._free = free
        self._write_head()

    def set_leaving(self, *, drain: bool = False) -> None:
        """No more calls will be taken, which the template is told. `drain`: what runs has the drain limit to finish."""
        self._state = State.DRAINING if drain else State.LEAVING
        self._free = 0
        self._write_head()
        if self.on_leaving is not None:
            self.on_leaving()

    def set_running(self, slot: int, execution: str, function: str, deadline_ns: int, *, started_ns: int = 0) -> None:
        """The body of `execution` begins in `slot`. Names longer than their field are cut."""
        seq = self._seqs[slot] = self._seqs[slot] + 1 & 0xFFFFFFFF
        self._calls += 1
        if self._calls == 1:
            self._write_head()
        name = self._names.get(function)
        if name is None:
            name = self._names[function] = function.encode()[:FUNCTION_BYTES]
        runs = execution.encode()[:EXECUTION_BYTES]
        times = started_ns or monotonic_ns(), deadline_ns
        body = _CALL_BODY.pack(seq, len(runs), len(name), 0, *times, runs, name)
        start = self._base + _HEAD_BYTES + slot * _CALL_BYTES
        self._memory[start : start + _CALL.size] = _SEQ.pack(crc32(body)) + body

    def clear(self, slot: int) -> None:
        """The call in `slot` is over. Its names stay readable, for output that is still in a pipe."""
        _SEQ.pack_into(self._memory, self._call_offset(slot) + _ENDED_OFFSET, self._seqs[slot])

    def requests(self) -> list[Request]:
        """Which calls running now the template wants ended. For the SIGUSR1 handler."""
        found = []
        for slot in range(self.slots):
            seq, reason = _REQUEST.unpack_from(self._memory, self._call_offset(slot) + _REQUEST_OFFSET)
            if seq == 0 or seq != self._seqs[slot]:
                continue
            call, why = self._read_call(slot), _REASONS[reason]
            if call is not None and call.running and why is not None:
                found.append(Request(slot, call.execution, why))
        return found

    def hushed(self) -> bool:
        """Whether the template wants no word about a worker becoming full."""
        return self._memory[_HUSH_OFFSET] != 0

    # --- the template's side ---

    def reset(self) -> None:
        """Nobody's record: before it is given to a new worker."""
        size = _record_bytes(self.slots)
        self._memory[self._base : self._base + size] = bytes(size)

    def demand(self, call: Running, reason: Reason) -> None:
        """Ask for the end of exactly this call; a later one in the same slot is not meant."""
        _REQUEST.pack_into(
            self._memory, self._call_offset(call.slot) + _REQUEST_OFFSET, call.seq, _REASONS.index(reason)
        )

    # --- anyone's ---

    def head(self) -> Head:
        """The worker as it last wrote it. A torn read is repeated; EMPTY when nobody wrote."""
        for _ in range(100):
            block = self._memory[self._base : self._base + _HEAD.size]
            checksum, pid, state, free, calls = _HEAD.unpack(block)
            if checksum == crc32(block[4:]):
                return Head(pid, State(state), free, calls)
            if not any(block):
                break
        return Head(0, State.EMPTY, 0, 0)

    def calls(self) -> list[Running]:
        """Every slot that ever held a call, running or not."""
        found = []
        for slot in range(self.slots):
            call = self._read_call(slot)
            if call is None:
                continue
            found.append(call)
        return found

    def running(self) -> list[Running]:
        return [call for call in self.calls() if call.running]

    # --- blocks ---

    def _call_offset(self, slot: int) -> int:
        return self._base + _HEAD_BYTES + slot * _CALL_BYTES

    def _write_head(self) -> None:
        body = _HEAD.pack(0, self._pid, self._state, self._free, self._calls)[4:]
        self._memory[self._base : self._base + _HEAD.size] = crc32(body).to_bytes(4, _BYTE_ORDER) + body

    def _read_call(self, slot: int) -> Running | None:
        start = self._call_offset(slot)
        for _ in range(100):
            (ended,) = _SEQ.unpack_from(self._memory, start + _ENDED_OFFSET)  # before the block: a newer block runs
            block = self._memory[start : start + _CALL.size]
            checksum, seq, runs, name, _, started_ns, deadline_ns, execution, function = _CALL.unpack(block)
            if seq == 0 and checksum == 0:
                return None
            if checksum == crc32(block[4:]):
                names = execution[:runs].decode(errors="replace"), function[:name].decode(errors="replace")
                return Running(slot, seq, seq != ended, *names, started_ns, deadline_ns)
        return None


_BYTE_ORDER: Final[Literal["little", "big"]] = "little" if struct.pack("=H", 1) == b"\x01\x00" else "big"


def _record_bytes(slots: int) -> int:
    return _HEAD_BYTES + slots * _CALL_BYTES
