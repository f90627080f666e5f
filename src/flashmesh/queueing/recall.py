"""Takes calls back that wait at a worker behind one that runs for long, so that another worker can have them."""

from typing import Final

from flashmesh.queueing.calls import Call
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import Discard

RECALL_S: Final = 0.02
"""How long a worker's calls may run before what waits behind them goes elsewhere. What was sent ahead is about 2 ms of
work, so a lower value would take back calls that are about to begin; a higher one makes them wait longer."""
_SOONEST_S: Final = 0.001


def next_look_s(lane: Lane, now: float) -> float | None:
    """In how many seconds a call may have waited too long behind another one; None: none waits so."""
    if lane.plan.workers_max <= 1 and len(lane.slots.serving()) <= 1 and not lane.queue.paused:
        return None  # there is no elsewhere
    waits = [worker.moved_at for worker in lane.slots.workers.values() if not worker.external and worker.waiting()]
    return max(_SOONEST_S, min(waits) + RECALL_S - now) if waits else None


def recall(lane: Lane, now: float) -> list[Call]:
    """Take back what waits behind calls that run too long: told to their workers, and theirs no more. Oldest first."""
    found: list[Call] = []
    for worker in lane.slots.workers.values():
        if worker.unstarted and not worker.external and now - worker.moved_at >= RECALL_S:
            found += _take_back(worker)
    return found


def _take_back(worker: Worker) -> list[Call]:
    waiting = worker.waiting()
    for call in waiting:
        del worker.calls[call.execution.id]
        worker.unstarted -= 1
        worker.stuck = True
        worker.port.send(Discard(call.execution.id, call.attempt))
        call.worker = None
        call.moved += 1
    return waiting
