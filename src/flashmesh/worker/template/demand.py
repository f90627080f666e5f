"""How many workers an endpoint should have, and when its template must look at the peer socket. Decisions only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

from flashmesh.worker.records import Head, State

SETTLE_S: Final = 0.002
"""A connection that waits this long is not about to be taken by a worker that just became free."""
SETTLE_MAX_S: Final = 0.25
PATIENCE_S: Final = 0.25
"""A worker that starts counts as free for this long; one with slow start-up hooks must not hold others back."""


@dataclass(frozen=True, slots=True)
class Crew:
    """An endpoint's workers of the current build, leaving and re-entrant ones aside."""

    live: int = 0
    starting: int = 0
    """Not READY yet, and younger than PATIENCE_S."""
    free: int = 0
    """Workers with a free slot."""
    fresh: int = 0
    """Workers that nobody has taken yet, starting ones included."""


def crew_of(workers: Iterable[tuple[Head, float]]) -> Crew:
    """Count (head, age in seconds) of each worker."""
    live = starting = free = fresh = 0
    for head, age in workers:
        live += 1
        ready = head.state is State.READY
        begins = head.state in (State.EMPTY, State.STARTING)
        starting += begins and age < PATIENCE_S
        free += ready and head.free > 0
        fresh += begins or (ready and head.free > 0 and not head.calls)
    return Crew(live, starting, free, fresh)


@dataclass(frozen=True, slots=True)
class Limits:
    """`demand` is what the session asked for last; `one_shot` = JOB mode."""

    minimum: int = 0
    maximum: int = 1
    demand: int = 0
    one_shot: bool = False


def forks_wanted(crew: Crew, limits: Limits, *, taken: bool = False) -> int:
    """Workers to start now.

    In JOB mode one fresh worker is kept ready from the first call on (`taken`: a worker was just taken or used up).
    """
    target = max(limits.minimum, limits.demand)
    if limits.one_shot and taken and crew.fresh == 0:
        target = max(target, crew.live + 1)
    return max(0, min(limits.maximum, target) - crew.live)


class _Stays(Protocol):
    @property
    def permanent(self) -> bool: ...


_Worker = TypeVar("_Worker", bound=_Stays)


def surplus(workers: Sequence[_Worker], limits: Limits) -> list[_Worker]:
    """Who leaves when the limits have become these: the first of those beyond the maximum, and of those that would
    stay for ever beyond the minimum."""
    leave = list(workers[: max(0, len(workers) - limits.maximum)])
    permanent = [worker for worker in workers if worker.permanent]
    too_many = len(permanent) - limits.minimum - sum(worker.permanent for worker in leave)
    return leave + [worker for worker in permanent if worker not in leave][: max(0, too_many)]


def watches(crew: Crew, limits: Limits) -> bool:
    """Whether a waiting peer is a reason to start a worker: nobody is free or about to be, and one may be made."""
    return crew.live < limits.maximum and crew.free == 0 and crew.starting == 0


def settle_s(crew: Crew, forks: int) -> float:
    """How long the socket must stay readable: nothing to wait for without workers, else 2 ms, doubled per fork."""
    return 0.0 if crew.live == 0 else min(SETTLE_MAX_S, SETTLE_S * 2**forks)


def start_pause_s(failures: int) -> float:
    """The pause after `failures` workers in a row that died before they were ready: none, 0.2, 0.4 … 30 s."""
    return 0.0 if failures <= 1 else min(30.0, 0.1 * 2 ** (failures - 1))
