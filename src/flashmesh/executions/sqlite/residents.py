"""The executions that are in memory: all that have not ended, what is not written yet, and a window of ended ones."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from flashmesh.executions.record import Execution
from flashmesh.executions.store import Retention
from flashmesh.kit.ids import ExecutionId

_SLACK: Final = 64
"""How many more than its count the window may hold, so that they leave together: one by one costs more per call."""
_LOOK_S: Final = 1.0
"""How often, at most, the window is looked through for what is too old; whoever asks for an execution always looks."""


class Residents:
    """No I/O. `window` bounds the ended ones that may go: those that a disk has, and those it never gets."""

    def __init__(self, window: Retention) -> None:
        self.by_id: dict[ExecutionId, Execution] = {}
        """In the order they were made."""
        self.keys: dict[tuple[str, str], tuple[bytes, ExecutionId]] = {}
        """(function, idempotency key) → fingerprint of the body, execution."""
        self._bounds = window
        self._slack = min(_SLACK, window.count // 16)
        self._window: deque[Execution] = deque()
        """In the order they ended. Those that were forgotten meanwhile stay until their turn, booked as -1."""
        self._count = 0
        self._bytes = 0
        self._look_at = 0.0
        self._numbered: tuple[dict[int, ExecutionId], dict[int, ExecutionId]] = ({}, {})

    def admit(self, execution: Execution, fingerprint: bytes | None) -> None:
        self.by_id[execution.id] = execution
        if execution.idempotency_key is not None and fingerprint is not None:
            self.keys[(execution.function, execution.idempotency_key)] = (fingerprint, execution.id)

    def holds(self, execution: Execution) -> bool:
        return self.by_id.get(execution.id) is execution

    def forget(self, execution: Execution) -> None:
        if not self.holds(execution):
            return
        del self.by_id[execution.id]
        self._unbook(execution)
        key = execution.idempotency_key
        self.unnumber(execution.ended_no, keyed=key is not None)
        if key is not None:
            known = self.keys.get((execution.function, key))
            if known is not None and known[1] == execution.id:
                del self.keys[(execution.function, key)]

    def number(self, execution: Execution, number: int, *, keyed: bool) -> None:
        """It has ended under this number of its ledger."""
        execution.ended_no = number
        self._numbered[keyed][number] = execution.id

    def overtaken(self, before: int, floor: int, *, keyed: bool, stays: bool = False) -> Iterator[Execution]:
        """Those that a ledger has put out while its floor rose from `before`. `stays`: they will be asked for again."""
        numbered = self._numbered[keyed]
        if not numbered:
            return
        for number in range(before + 1, floor + 1):
            gone = numbered.get(number) if stays else numbered.pop(number, None)
            execution = None if gone is None else self.by_id.get(gone)
            if execution is not None:
                yield execution

    def unnumber(self, number: int | None, *, keyed: bool) -> None:
        if number is not None:
            self._numbered[keyed].pop(number, None)

    def retire(self, execution: Execution, now: float) -> bool:
        """It has ended, and may leave memory when there are others to keep.

        Returns whether it is time to ask what is `leaving`.
        """
        size = execution.size_bytes
        execution.booked = size
        execution.booked_at = now
        self._window.append(execution)
        self._count += 1
        self._bytes += size
        bounds = self._bounds
        return self._count > bounds.count + self._slack or self._bytes > bounds.bytes or now >= self._look_at

    def drop_result(self, execution: Execution) -> None:
        execution.drop_result()
        if execution.booked > 0:
            self._bytes -= execution.booked
            execution.booked = 0

    def leaving(self, now: float, age_s: float) -> list[Execution]:
        """Take out of the window, and of memory, what is beyond its bounds or in it for longer than `age_s`.

        Oldest first. `now` is of the clock that `retire` was told by.
        """
        window, bounds = self._window, self._bounds
        gone: list[Execution] = []
        self._look_at = now + _LOOK_S
        while window:
            execution = window[0]
            if execution.booked >= 0:
                fits = self._count <= bounds.count and self._bytes <= bounds.bytes
                if fits and execution.booked_at >= now - age_s:
                    break
                self.forget(execution)
                gone.append(execution)
            else:
                window.popleft()
        return gone

    def _unbook(self, execution: Execution) -> None:
        if execution.booked >= 0:
            self._count -= 1
            self._bytes -= execution.booked
            execution.booked = -1
            window = self._window
            while window and window[0].booked < 0:
                window.popleft()
