"""Which item of a fan-out starts next and which result is given out next: the decision, without any waiting."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Outcome:
    """How one item ended: a value, or the exception it raised."""

    __slots__ = ("error", "value")

    def __init__(self, value: Any = None, error: BaseException | None = None) -> None:
        self.value = value
        self.error = error


class Window:
    """At most `concurrency` items run; in order, finished ones wait for their turn, at most three times as many.

    That bound keeps one slow item from collecting the results of all the others in memory.
    """

    __slots__ = ("_concurrency", "_finished", "_next", "_ordered", "running")

    def __init__(self, concurrency: int, *, ordered: bool) -> None:
        self._concurrency = concurrency
        self._ordered = ordered
        self._finished: dict[int, Outcome] = {}
        self._next = 0
        self.running = 0

    def has_room(self) -> bool:
        return self.running < self._concurrency and len(self._finished) < 3 * self._concurrency

    def start(self) -> None:
        self.running += 1

    def finish(self, index: int, outcome: Outcome) -> list[Outcome]:
        """Item `index` ended. Returns the outcomes to give out now."""
        self.running -= 1
        if not self._ordered:
            return [outcome]
        self._finished[index] = outcome
        ready = []
        while self._next in self._finished:
            ready.append(self._finished.pop(self._next))
            self._next += 1
        return ready
