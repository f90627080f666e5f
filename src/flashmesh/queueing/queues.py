"""Calls that wait for a slot, per endpoint: bounded, two priorities, those in back-off apart.

Sync calls (somebody waits on a connection) go before async ones, but never for ever: after `SHARE` of them one async
call has its turn. A call that comes back without having run goes to the head, where it was.
"""

import heapq
from collections import deque
from itertools import count
from typing import Final

from flashmesh.queueing.calls import Call

SHARE: Final = 8
"""Sync calls that may pass a waiting async one. Higher: async work waits longer under steady sync load."""


class EndpointQueue:
    """The waiting calls of one endpoint. Knows no bounds itself: see `admit` in admission.py."""

    __slots__ = ("_delayed", "_lines", "_order", "_passed", "async_bytes", "size", "waiting_async", "waiting_sync")

    def __init__(self) -> None:
        self._lines: tuple[deque[Call], deque[Call]] = (deque(), deque())
        self._delayed: list[tuple[float, int, Call]] = []
        self._order = count()
        self._passed = 0
        self.size = 0
        """How many wait, those in back-off included."""
        self.waiting_sync = 0
        self.waiting_async = 0
        self.async_bytes = 0

    def __len__(self) -> int:
        return self.size

    def push(self, call: Call) -> None:
        """Last in its line."""
        self._lines[call.priority].append(call)
        self._count(call, 1)

    def push_front(self, call: Call) -> None:
        """First in its line: it was not run, and keeps its place."""
        self._lines[call.priority].appendleft(call)
        self._count(call, 1)

    def push_later(self, call: Call, due: float) -> None:
        """In back-off until `due` (monotonic seconds), then first in its line."""
        heapq.heappush(self._delayed, (due, next(self._order), call))
        self._count(call, 1)

    def ripen(self, now: float) -> None:
        """Let calls whose back-off is over take their place."""
        while self._delayed and self._delayed[0][0] <= now:
            call = heapq.heappop(self._delayed)[2]
            self._lines[call.priority].appendleft(call)

    def next_due(self) -> float | None:
        """When the next back-off ends; None when nothing is in back-off."""
        return self._delayed[0][0] if self._delayed else None

    @property
    def ready(self) -> int:
        """Calls that could run now if there were slots."""
        return self.size - len(self._delayed)

    def oldest(self) -> Call | None:
        """The call that has waited longest in its line, of either priority."""
        heads = [line[0] for line in self._lines if line]
        return min(heads, key=lambda call: call.enqueued_at) if heads else None

    def peek(self, limit: int) -> list[Call]:
        """The next `limit` calls in the order they should run. Changes nothing."""
        sync, later = self._lines
        if limit <= 0 or not (sync or later):
            return []
        if limit == 1:
            return [later[0] if later and (not sync or self._passed >= SHARE) else sync[0]]
        found: list[Call] = []
        passed, first, second = self._passed, 0, 0
        while len(found) < limit:
            if second < len(later) and (first >= len(sync) or passed >= SHARE):
                found.append(later[second])
                second += 1
                passed = 0
            elif first < len(sync):
                found.append(sync[first])
                first += 1
                passed += 1
            else:
                break
        return found

    def take(self, call: Call) -> None:
        """Remove a call that goes to a worker."""
        if call.priority:
            self._passed = 0
        elif self._lines[1]:
            self._passed += 1
        self.remove(call)

    def remove(self, call: Call) -> None:
        """Remove a call wherever it stands. One at the head costs nothing."""
        line = self._lines[call.priority]
        if line and line[0] is call:
            line.popleft()
        elif call in line:
            line.remove(call)
        else:
            self._delayed = [entry for entry in self._delayed if entry[2] is not call]
            heapq.heapify(self._delayed)
        self._count(call, -1)

    def drain(self) -> list[Call]:
        """Remove and return everything, in order."""
        calls = [*self._lines[0], *self._lines[1], *(entry[2] for entry in sorted(self._delayed))]
        for line in self._lines:
            line.clear()
        self._delayed.clear()
        self.size = self.waiting_sync = self.waiting_async = self.async_bytes = 0
        for call in calls:
            call.queued = False
        return calls

    def _count(self, call: Call, change: int) -> None:
        call.queued = change > 0
        self.size += change
        if call.priority:
            self.waiting_async += change
            self.async_bytes += change * len(call.frame.payload)
        else:
            self.waiting_sync += change
