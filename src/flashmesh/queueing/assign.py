"""Which waiting call goes to which worker: a decision over plain state, made anew at every event."""

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Final, NamedTuple

from flashmesh.kit.ids import EndpointName
from flashmesh.queueing.calls import Call
from flashmesh.queueing.queues import EndpointQueue
from flashmesh.queueing.slots import Slots, Worker

AHEAD_BYTES: Final = 256 * 1024
"""Payload up to which a call may wait at a worker that is busy. Higher: more memory there, for calls that take long."""


class Dispatch(NamedTuple):
    """Send `call` to `worker`."""

    endpoint: EndpointName
    call: Call
    worker: Worker


def assign(
    queues: Mapping[EndpointName, EndpointQueue], slots: Mapping[EndpointName, Slots], now: float
) -> list[Dispatch]:
    """Everything that can be sent now. Endpoints take turns, one call each: none holds up another's first call.

    Within an endpoint: calls in the queue's order, each to the worker with most free slots, and when none has one to
    wait where fewest wait; of several to the one used last (its caches are warm, and the others may go idle and leave).
    A large call waits here and not at a worker. A call bound to a build waits for a worker of it without holding up
    those behind it; the next attempt of a call does not go to a worker that overran it. Changes neither queues nor
    slots, save that calls whose back-off is over at `now` take their place in line.
    """
    if len(queues) == 1:
        ((name, queue),) = queues.items()
        return _for_endpoint(name, queue, slots[name], now)
    turns = [found for name in queues if (found := _for_endpoint(name, queues[name], slots[name], now))]
    return [dispatch for dispatch in chain.from_iterable(zip_longest(*turns)) if dispatch is not None]


def takes_at_once(worker: Worker, call: Call) -> bool:
    """Whether the only worker there is can have the only call there is."""
    if worker.reported <= worker.unstarted or worker.given_up:
        return False
    idle = worker.slots > len(worker.calls)
    return idle or not (worker.stuck or len(call.frame.payload) > AHEAD_BYTES)


def _for_endpoint(name: EndpointName, queue: EndpointQueue, slots: Slots, now: float) -> list[Dispatch]:
    queue.ripen(now)
    serving = slots.serving()
    if len(serving) == 1 and slots.uniform and not serving[0].given_up:  # the commonest case, without the bookkeeping
        return _to_one(name, queue, serving[0])
    free = {worker: room for worker in serving if (room := worker.free) > 0}
    if not free:
        return []
    found: list[Dispatch] = []
    sent: dict[Worker, int] = {}
    wanted = sum(free.values())
    picky = not slots.uniform or any(worker.given_up for worker in free)
    for call in queue.peek(queue.ready if picky else wanted):
        chosen = _choose(free, sent, call)
        if chosen is None:
            continue
        found.append(Dispatch(name, call, chosen))
        free[chosen] -= 1
        sent[chosen] = sent.get(chosen, 0) + 1
        wanted -= 1
        if not wanted:
            break
    return found


def _to_one(name: EndpointName, queue: EndpointQueue, worker: Worker) -> list[Dispatch]:
    idle = worker.slots - len(worker.calls)
    return [
        Dispatch(name, call, worker)
        for place, call in enumerate(queue.peek(worker.free))
        if place < idle or len(call.frame.payload) <= AHEAD_BYTES
    ]


def _choose(free: dict[Worker, int], sent: dict[Worker, int], call: Call) -> Worker | None:
    best: Worker | None = None
    most = 0
    large = len(call.frame.payload) > AHEAD_BYTES
    for worker, left in free.items():
        idle = min(left, worker.slots - len(worker.calls) - sent.get(worker, 0))
        if not left or (best is not None and idle < most) or (large and idle <= 0):
            continue
        if (call.build and worker.build != call.build) or (worker.given_up and call.execution.id in worker.given_up):
            continue
        if best is None or idle > most or worker.last_used > best.last_used:
            best, most = worker, idle
    return best
