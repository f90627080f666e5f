"""Goes on with calls of before: a server's after its restart, a worker's after its link broke.

A worker that dials again says what it still runs and which outcomes it holds. Calls among them go on under their
attempt; a call that no worker claims in time runs again as the next attempt. What a worker claims and somebody
else has, or what has ended, is stopped there and its outcome is acknowledged and left aside.
"""

from collections.abc import Callable, Iterable, MutableMapping

from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.functions.errors import Cancelled, EndpointUnavailable
from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.queueing.calls import Call, new_call
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.outcomes import RESUME_S, Outcomes
from flashmesh.queueing.ports import Clock
from flashmesh.queueing.settlement import Settlement
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import Cancel, Hello, Invoke, read_attempt_ref


class Resumption:
    """Works on the dispatcher's own lanes and calls. `limit_ms` says the run-time limit of a call of a lane."""

    def __init__(
        self,
        *,
        clock: Clock,
        settlement: Settlement,
        outcomes: Outcomes,
        lanes: MutableMapping[EndpointName, Lane],
        calls: MutableMapping[ExecutionId, Call],
        limit_ms: Callable[[Lane, Execution], int],
        pump: Callable[[Lane], None],
        requeue: Callable[[Execution], None],
    ) -> None:
        self._clock = clock
        self._settlement = settlement
        self._outcomes = outcomes
        self._lanes = lanes
        self._calls = calls
        self._limit_ms = limit_ms
        self._pump = pump
        self._requeue = requeue
        self._awaited: dict[ExecutionId, Call] = {}
        self.patience_s = RESUME_S

    def restore(self, executions: Iterable[Execution]) -> None:
        """Take over what is stored as unfinished, oldest first. Endpoints that are not served any more: ERROR."""
        touched: dict[EndpointName, Lane] = {}
        for execution in executions:
            call = self._calls[execution.id] = self._call_of(execution)
            lane = self._lanes.get(execution.endpoint)
            if lane is None or lane.withdrawn:
                message = f"{execution.endpoint} is not served any more since the server was started again. Deploy it"
                self._settlement.raise_into(call, EndpointUnavailable(message), ran=call.started_at is not None)
                continue
            call.limit_ms = self._limit_ms(lane, execution)
            touched[execution.endpoint] = lane
            if execution.status is Status.RUNNING:
                self._awaited[execution.id] = call
            else:
                lane.queue.push(call)
        if self._awaited:
            self._clock.call_later(self.patience_s, self._run_again)
        for lane in touched.values():
            self._pump(lane)

    def _call_of(self, execution: Execution) -> Call:
        frame = Invoke(
            execution.id,
            execution.function,
            content_type=execution.content_type,
            accept=execution.accept,
            meta=dict(execution.meta),
            payload=execution.payload,
        )
        now, wall = self._clock.now(), self._clock.wall()
        call = new_call(execution, frame, None, execution.kind, now)
        call.restored = True
        call.submitted_at = now - max(0.0, wall - execution.created_at)
        if execution.status is Status.RUNNING:
            call.started_at = now - max(0.0, wall - (execution.started_at or wall))
        return call

    def _run_again(self) -> None:
        """Nobody runs them any more: the next attempt, first in line and in their order."""
        awaited, self._awaited = self._awaited, {}
        touched: dict[EndpointName, Lane] = {}
        for call in reversed(awaited.values()):
            execution = call.execution
            if call.cancel:
                self._settlement.raise_into(call, Cancelled(), ran=True)
                continue
            lane = self._lanes.get(execution.endpoint)
            if lane is None or lane.withdrawn or lane.failure is not None:
                gone = (lane.failure if lane is not None else None) or EndpointUnavailable(
                    f"{execution.endpoint} is no longer served. `flash status` lists what is"
                )
                self._settlement.raise_into(call, gone, ran=True)
                continue
            self._requeue(execution)
            lane.retried += 1
            call.started_at = None
            call.enqueued_at = self._clock.now()
            lane.queue.push_front(call)
            touched[execution.endpoint] = lane
        for lane in touched.values():
            self._pump(lane)

    def forget(self, call: Call) -> None:
        """It has ended; nobody need claim it."""
        self._awaited.pop(call.execution.id, None)

    def welcome(self, lane: Lane, worker: Worker, hello: Hello) -> None:
        """A worker has dialled, for the first time or again: what it claims goes on, what it lost is over."""
        lost = lane.lost.pop(worker.id, None)
        for ref in hello.running:
            execution, attempt = read_attempt_ref(ref)
            if not self._claim(lane, worker, execution, attempt):
                worker.port.send(Cancel(execution, attempt=attempt))
        for ref in hello.held:
            execution, attempt = read_attempt_ref(ref)
            if self._claim(lane, worker, execution, attempt):
                self._calls[ExecutionId(execution)].kept = True  # whatever kind of call it is: it is kept there now
        if lost is not None:
            self._outcomes.bury(lane, lost, "came back without it", hello.begun)

    def _claim(self, lane: Lane, worker: Worker, id: str, attempt: int) -> bool:
        call = self._calls.get(ExecutionId(id))
        if call is None or call.execution.ended or call.uncommitted or call.execution.endpoint != lane.plan.name:
            return False
        if attempt < call.attempt or call.cancel:
            return False
        now = self._clock.now()
        if call.queued:
            lane.queue.remove(call)
        elif call.worker is not None:
            if call.worker.id != worker.id or call.worker is worker:
                return False  # somebody else has it
        elif self._awaited.pop(call.execution.id, None) is None:
            return False
        call.moved = max(0, attempt - call.execution.attempt)
        call.worker = worker
        worker.calls[call.execution.id] = call
        call.execution.build = worker.build
        if call.execution.status is Status.QUEUED:
            self._outcomes.begin(lane, call, worker, now)
        elif call.timer is None and call.started_at is not None:
            call.execution.worker = worker.id
            self._outcomes.limit(lane, call, now - call.started_at)
        return True
