"""Which waiting call goes to which worker: a decision over plain state, made anew at every event."""

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import NamedTuple

from flashmesh.kit.ids import EndpointName
from flashmesh.queueing.calls import Call
from flashmesh.queueing.queues import EndpointQueue
from flashmesh.queueing.slots import Slots, Worker


class Dispatch(NamedTuple):
    """Send `call` to `worker`."""

    endpoint: EndpointName
    call: Call
    worker: Worker


def assign(
    queues: Mapping[EndpointName, EndpointQueue], slots: Mapping[EndpointName, Slots], now: float
) -> list[Dispatch]:
    """Everything that can be sent now. Endpoints take turns, one call each: none holds up another's first call.

    Within an endpoint: calls in the queue's order, each to the worker with most free slots, of several to the one used
    last (its caches are warm, and the others may go idle and leave). A call bound to a build waits for a worker of it
    without holding up those behind it; the next attempt of a call does not go to a worker that overran it. Changes
    neither queues nor slots, save that calls whose back-off is over at `now` take their place in line.
    """
    turns = [found for name in queues if (found := _for_endpoint(name, queues[name], slots[name], now))]
    if len(turns) == 1:
        return turns[0]
    return [dispatch for dispatch in chain.from_iterable(zip_longest(*turns)) if dispatch is not None]


def _for_endpoint(name: EndpointName, queue: EndpointQueue, slots: Slots, now: float) -> list[Dispatch]:
    queue.ripen(now)
    free = {worker: room for worker in slots.serving() if (room := worker.reported - worker.unstarted) > 0}
    if not free:
        return []
    if queue.size == 1 and len(free) == 1 and slots.uniform:  # by far the commonest case, without the bookkeeping
        worker = next(iter(free))
        return [Dispatch(name, call, worker) for call in queue.peek(1) if call.execution.id not in worker.given_up]
    found: list[Dispatch] = []
    wanted = sum(free.values())
    picky = not slots.uniform or any(worker.given_up for worker in free)
    for call in queue.peek(queue.ready if picky else wanted):
        chosen = _choose(free, call)
        if chosen is None:
            continue
        found.append(Dispatch(name, call, chosen))
        free[chosen] -= 1
        wanted -= 1
        if not wanted:
            break
    return found


def _choose(free: dict[Worker, int], call: Call) -> Worker | None:
    best: Worker | None = None
    most = 0
    for worker, left in free.items():
        if left < most or not left or (call.build and worker.build != call.build):
            continue
        if worker.given_up and call.execution.id in worker.given_up:
            continue
        if left > most or best is None or worker.last_used > best.last_used:
            best, most = worker, left
    return best
