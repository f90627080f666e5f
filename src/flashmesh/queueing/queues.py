"""Calls that wait for a slot, per endpoint: bounded, in order of kind and priority, those in back-off apart.

Sync calls (somebody waits on a connection) go before async ones, and within a kind urgent calls before ordinary ones;
but never for ever: after `SHARE` that passed it, one of those behind has its turn. Of one kind and priority the
endpoint's functions take turns (turns.py). A call that comes back without having run goes to the head, where it was.
While a queue is paused its async calls only stand in line.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain, count
from typing import Final

from flashmesh.kit.ids import FunctionId
from flashmesh.queueing.calls import Call
from flashmesh.queueing.turns import Turns

SHARE: Final = 8
"""Calls that may pass one that waits behind them. Higher: async and ordinary work waits longer under steady load."""


class _Line:
    """The calls of one kind."""

    __slots__ = ("ordinary", "passed", "urgent")

    def __init__(self) -> None:
        self.urgent = Turns()
        self.ordinary = Turns()
        self.passed = 0

    def of(self, call: Call) -> Turns:
        return self.urgent if call.urgent else self.ordinary

    def first(self) -> Call:
        """Raises IndexError on an empty line."""
        if self.urgent.by_function and (self.passed < SHARE or not self.ordinary.by_function):
            return self.urgent.head()
        return self.ordinary.head()

    def take(self, call: Call) -> None:
        if call.urgent:
            self.urgent.take(call)
            if self.ordinary.by_function:
                self.passed += 1
        else:
            self.ordinary.take(call)
            self.passed = 0

    def order(self, limit: int) -> list[Call]:
        if not self.urgent.by_function:
            return self.ordinary.order(limit)
        return merge(self.urgent, self.ordinary, self.passed, limit)

    def __bool__(self) -> bool:
        return bool(self.ordinary.by_function or self.urgent.by_function)

    def __len__(self) -> int:
        return len(self.ordinary) + len(self.urgent)

    def __iter__(self) -> Iterator[Call]:
        return chain(self.urgent, self.ordinary)


def merge(first: Iterable[Call], second: Iterable[Call], passed: int, limit: int) -> list[Call]:
    """Up to `limit` calls: those of `first`, with one of `second` after every SHARE of them; `passed` went already."""
    ahead, behind = iter(first), iter(second)
    waiting = next(behind, None)
    found: list[Call] = []
    while len(found) < limit:
        following = next(ahead, None) if waiting is None or passed < SHARE else None
        if following is not None:
            found.append(following)
            passed += 1
        elif waiting is not None:
            found.append(waiting)
            waiting = next(behind, None)
            passed = 0
        else:
            break
    return found


class EndpointQueue:
    """The waiting calls of one endpoint. Knows no bounds itself: see `admit` in admission.py."""

    __slots__ = ("_delayed", "_later", "_order", "_passed", "_sync", "async_bytes", "paused", "size", "sync_bytes",
                 "waiting_async", "waiting_sync")  # fmt: skip

    def __init__(self) -> None:
        self._sync = _Line()
        self._later = _Line()
        self._delayed: list[tuple[float, int, Call]] = []
        self._order = count()
        self._passed = 0
        self.size = 0
        """How many wait, those in back-off included."""
        self.waiting_sync = 0
        self.waiting_async = 0
        """Those included that wait for their record to be stored."""
        self.sync_bytes = self.async_bytes = 0
        """Of their payloads."""
        self.paused = False
        """No async call goes out: each keeps its place."""

    def __len__(self) -> int:
        return self.size

    def reserve(self, call: Call) -> None:
        """Count an async call that has no place in line yet against the backlog's bounds."""
        self.waiting_async += 1
        self.async_bytes += len(call.frame.payload)

    def release(self, call: Call) -> None:
        """Undo `reserve`."""
        self.waiting_async -= 1
        self.async_bytes -= len(call.frame.payload)

    def push(self, call: Call) -> None:
        """Last in its line."""
        (self._later if call.later else self._sync).of(call).append(call)
        self._count(call, 1)

    def push_front(self, call: Call) -> None:
        """First in its line: it was not run, and keeps its place."""
        (self._later if call.later else self._sync).of(call).appendleft(call)
        self._count(call, 1)

    def push_later(self, call: Call, due: float) -> None:
        """In back-off until `due` (monotonic seconds), then first in its line."""
        heapq.heappush(self._delayed, (due, next(self._order), call))
        self._count(call, 1)

    def ripen(self, now: float) -> None:
        """Let calls whose back-off is over take their place."""
        while self._delayed and self._delayed[0][0] <= now:
            call = heapq.heappop(self._delayed)[2]
            (self._later if call.later else self._sync).of(call).appendleft(call)

    def next_due(self) -> float | None:
        """When the next back-off ends; None when nothing is in back-off."""
        return self._delayed[0][0] if self._delayed else None

    @property
    def ready(self) -> int:
        """Calls that could run now if there were slots."""
        return self.size - len(self._delayed) - (len(self._later) if self.paused else 0)

    def oldest(self) -> Call | None:
        """The call that has waited longest in its line, of any function, kind and priority, of those that could run."""
        later = () if self.paused else (self._later.urgent, self._later.ordinary)
        heads = chain.from_iterable(line.heads() for line in (self._sync.urgent, self._sync.ordinary, *later))
        return min(heads, key=lambda call: call.enqueued_at, default=None)

    def waits(self, function: FunctionId, *, sync: bool) -> bool:
        """Whether calls of a function wait for a slot."""
        line = self._sync if sync else self._later
        return line.urgent.waits(function) or line.ordinary.waits(function)

    def first(self) -> Call | None:
        """The call that should run next."""
        sync, later = self._sync, self._later
        if later and not self.paused and (self._passed >= SHARE or not sync):
            return later.first()
        return sync.first() if sync else None

    def peek(self, limit: int) -> list[Call]:
        """The next `limit` calls in the order they should run. Changes nothing."""
        if limit <= 1:
            first = self.first() if limit == 1 else None
            return [] if first is None else [first]
        if not self._later or self.paused:
            return self._sync.order(limit)
        return merge(self._sync.order(limit), self._later.order(limit), self._passed, limit)

    def take(self, call: Call) -> None:
        """Remove a call that goes to a worker."""
        if call.later:
            self._passed = 0
            self._later.take(call)
        else:
            if self._later:
                self._passed += 1
            self._sync.take(call)
        self._count(call, -1)

    def remove(self, call: Call) -> None:
        """Remove a call wherever it stands. One at the head costs nothing."""
        try:
            (self._later if call.later else self._sync).of(call).remove(call)
        except ValueError:
            self._delayed = [entry for entry in self._delayed if entry[2] is not call]
            heapq.heapify(self._delayed)
        self._count(call, -1)

    def drain(self) -> list[Call]:
        """Remove and return everything, in order of kind and priority."""
        calls = [*self._sync, *self._later, *(entry[2] for entry in sorted(self._delayed))]
        for line in (self._sync.urgent, self._sync.ordinary, self._later.urgent, self._later.ordinary):
            line.clear()
        self._delayed.clear()
        for call in calls:
            self._count(call, -1)
        return calls

    def _count(self, call: Call, change: int) -> None:
        call.queued = change > 0
        self.size += change
        if call.later:
            self.waiting_async += change
            self.async_bytes += change * len(call.frame.payload)
        else:
            self.waiting_sync += change
            self.sync_bytes += change * len(call.frame.payload)
