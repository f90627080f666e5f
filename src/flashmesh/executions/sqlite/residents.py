"""The executions that are in memory: all that have not ended, what is not written yet, and a window of ended ones."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from flashmesh.executions.record import Execution
from flashmesh.executions.store import Retention
from flashmesh.kit.ids import ExecutionId

_LOOK_S: Final = 1.0
"""How often, at most, the window is looked through for what is too old; whoever asks for an execution always looks."""


class Residents:
    """No I/O. `window` bounds the ended ones that may go: those that a disk has, and those it never gets."""

    def __init__(self, window: Retention) -> None:
        self.by_id: dict[ExecutionId, Execution] = {}
        """In the order they were made."""
        self.keys: dict[tuple[str, str], tuple[bytes, ExecutionId]] = {}
        """(function, idempotency key) → fingerprint of the body, execution."""
        self._window_bounds = window
        self._window: OrderedDict[ExecutionId, tuple[int, int | None, float]] = OrderedDict()
        """Bytes, the number in a ledger, and since when it may go."""
        self._window_bytes = 0
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
        size, number, _ = self._window.pop(execution.id, (0, None, 0.0))
        self._window_bytes -= size
        key = execution.idempotency_key
        self.unnumber(number, keyed=key is not None)
        if key is not None:
            known = self.keys.get((execution.function, key))
            if known is not None and known[1] == execution.id:
                del self.keys[(execution.function, key)]

    def number(self, execution: Execution, number: int, *, keyed: bool) -> None:
        """It has ended under this number of its ledger."""
        self._numbered[keyed][number] = execution.id

    def may_go(self, execution: Execution) -> bool:
        """Whether a disk has it, or never gets it."""
        return execution.id in self._window

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

    def retire(self, execution: Execution, now: float, number: int | None = None) -> bool:
        """It has ended, and may leave memory when there are others to keep. `number` as it was told before.

        Returns whether it is time to ask what is `leaving`.
        """
        size = execution.size_bytes
        self._window[execution.id] = (size, number, now)
        self._window_bytes += size
        return (
            len(self._window) > self._window_bounds.count
            or self._window_bytes > self._window_bounds.bytes
            or now >= self._look_at
        )

    def drop_result(self, execution: Execution) -> None:
        execution.drop_result()
        size, number, since = self._window.get(execution.id, (0, None, 0.0))
        if size:
            self._window_bytes -= size
            self._window[execution.id] = (0, number, since)

    def leaving(self, now: float, age_s: float) -> list[Execution]:
        """Take out of the window, and of memory, what is beyond its bounds or in it for longer than `age_s`.

        Oldest first.
        """
        window, bounds = self._window, self._window_bounds
        gone: list[Execution] = []
        self._look_at = now + _LOOK_S
        while window:
            oldest = next(iter(window))
            fits = len(window) <= bounds.count and self._window_bytes <= bounds.bytes
            if fits and window[oldest][2] >= now - age_s:
                break
            execution = self.by_id[oldest]
            self.forget(execution)
            gone.append(execution)
        return gone
