"""When a template must look at its workers' records for calls that ran too long. Decisions only; nanoseconds."""

from collections.abc import Iterable
from typing import Final

from flashmesh.worker.records import Running

GRACE_S: Final = 2.0
"""After SIGUSR1, before SIGKILL of the group."""
RECHECK_S: Final = (0.02, 0.1, 0.5)
"""A CANCEL can overtake the start of its call; it is tried again after these pauses."""


def overdue(calls: Iterable[Running], now_ns: int) -> list[Running]:
    return [call for call in calls if call.running and 0 < call.deadline_ns <= now_ns]


def next_check_ns(calls: Iterable[Running], *, workers: int, limit_ns: int, now_ns: int) -> int | None:
    """When a deadline can pass at the earliest, None = not without a word from a worker.

    A call that starts after this look has at least the endpoint's whole limit before it; one with a shorter deadline of
    its own is announced by its worker. So nothing is polled.
    """
    times = [call.deadline_ns for call in calls if call.running and call.deadline_ns > now_ns]
    if limit_ns and workers:
        times.append(now_ns + limit_ns)
    return min(times, default=None)
