"""Carries out what was decided: calls to workers, more workers, calls taken back. Asked after every event of a lane."""

from collections.abc import Callable

from flashmesh.functions.errors import Cancelled
from flashmesh.queueing.assign import assign, takes_at_once
from flashmesh.queueing.calls import Call
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.ports import Clock, WorkerSource
from flashmesh.queueing.recall import next_look_s, recall
from flashmesh.queueing.scaling import wanted_workers
from flashmesh.queueing.settlement import Settlement
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import AnyFrame


class Pump:
    """`source` may be replaced as long as nothing was asked of it."""

    def __init__(self, *, clock: Clock, settlement: Settlement, source: WorkerSource) -> None:
        self.source = source
        self._clock = clock
        self._settlement = settlement

    def join(self, lane: Lane, call: Call, now: float) -> None:
        """A call takes its place in line, or goes to a worker at once where nobody stands before it."""
        slots = lane.slots
        if not lane.queue.size and slots.uniform:
            serving = slots.serving()
            if len(serving) == 1 and takes_at_once(serving[0], call):
                self._send(lane, call, serving[0], now)
                return
        lane.queue.push(call)
        self.run(lane)

    def _send(self, lane: Lane, call: Call, worker: Worker, now: float) -> None:
        calls = worker.calls
        send: Callable[[AnyFrame], None] = worker.port.send
        if not calls:
            worker.moved_at = now
            send = worker.send_now
        worker.unstarted += 1
        worker.last_used = now
        calls[call.execution.id] = call
        call.worker = worker
        call.execution.build = worker.build
        send(call.invoke(worker.build))
        if len(calls) > worker.slots and lane.recall is None:
            self._watch_waiting(lane, now)

    def run(self, lane: Lane) -> None:
        """Send what can be sent, and see to workers for the rest."""
        queue = lane.queue
        if not queue.size:
            return
        now = self._clock.now()
        if lane.slots.has_room():
            name = lane.plan.name
            for _, call, worker in assign({name: queue}, {name: lane.slots}, now):
                queue.take(call)
                self._send(lane, call, worker, now)
            if not queue.size:
                return
        else:
            queue.ripen(now)
        self.scale(lane, now)
        self._arm(lane, now)

    def pause(self, lane: Lane) -> None:
        """Send no async call any more, and take those back that wait behind one that runs for long."""
        lane.queue.paused = True
        if lane.recall is None:
            self._recall(lane)

    def scale(self, lane: Lane, now: float) -> None:
        """Ask for the workers that the load calls for."""
        if lane.ensured and max(lane.asked, len(lane.slots.serving())) >= lane.plan.workers_max:
            return
        demand = lane.demand(now)
        if demand.waiting and not lane.ensured:
            lane.ensured = True
            self.source.ensure(lane.plan.name)
            if not lane.ensured:
                return  # it failed at once, and `fail_endpoint` has seen to the calls
        wanted = wanted_workers(demand, lane.plan)
        if wanted.workers > demand.workers:
            lane.asked = wanted.workers
            self.source.scale(lane.plan.name, wanted.workers)
        if wanted.look_again_s is not None and lane.look_again is None:
            lane.look_again = self._clock.call_later(wanted.look_again_s, lambda: self._look_again(lane))

    def _look_again(self, lane: Lane) -> None:
        lane.look_again = None
        self.run(lane)

    def _arm(self, lane: Lane, now: float) -> None:
        """Look again when the next back-off is over."""
        due = lane.queue.next_due()
        if due is not None and lane.due is None:
            lane.due = self._clock.call_later(max(0.0, due - now), lambda: self._ripe(lane))

    def _ripe(self, lane: Lane) -> None:
        lane.due = None
        self.run(lane)

    def _watch_waiting(self, lane: Lane, now: float) -> None:
        """See to it that no call waits long at a worker."""
        look_s = next_look_s(lane, now)
        if look_s is not None:
            lane.recall = self._clock.call_later(look_s, lambda: self._recall(lane))

    def _recall(self, lane: Lane) -> None:
        lane.recall = None
        now = self._clock.now()
        for call in reversed(recall(lane, now)):
            if call.cancel:
                self._settlement.raise_into(call, Cancelled("the call was cancelled before it ran"), ran=False)
            else:
                lane.queue.push_front(call)
        self._watch_waiting(lane, now)
        self.run(lane)
