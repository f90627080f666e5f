"""What workers say about calls, and what follows: an answer, an item, another attempt, another place in the queue."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from flashmesh.executions.items import ItemBuffer, too_long
from flashmesh.executions.record import Execution
from flashmesh.executions.store import Store
from flashmesh.functions.errors import Cancelled, PayloadTooLarge, TimedOut, WorkerLost
from flashmesh.kit.ids import ExecutionId, WorkerId
from flashmesh.queueing.acknowledging import Acknowledgements
from flashmesh.queueing.calls import GRANT_BYTES, GRANT_ITEMS, Call
from flashmesh.queueing.lane import Lane, Lost
from flashmesh.queueing.ports import Clock
from flashmesh.queueing.retry import after_exception, after_lost_worker, after_timeout, backoff_s
from flashmesh.queueing.settlement import Settlement
from flashmesh.queueing.slots import Worker
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import AnyFrame, Cancel, Chunk, Credit, Drain, Error, Result, Started, Summary

BUSY: Final = "BUSY"
"""A worker's answer to a call that it has no place for: certainly not run."""
BACKSTOP_S: Final = 5.0
"""The template enforces run-time limits; a call that outlives its limit by this much is ended here."""
LAST_WORDS_S: Final = 0.25
"""How long a call of a lost worker waits for the template to say how that worker ended."""
RESUME_S: Final = 2.0
"""How long it waits for a worker that may well live because a server before this one started it."""
REMOTE_RESUME_S: Final = 5.0
"""The same for workers on other machines, which pause for up to 2 s between two attempts to connect."""
TEMPORARY: Final = frozenset({"WORKER_LOST", "ENDPOINT_UNREACHABLE", "EXTERNAL_BUSY"})
"""Codes by which the far end of an external function says that the same call may well succeed a little later."""
LONGEST_ASKED_S: Final = 300.0
"""An external function's Retry-After beyond this is cut to it."""


class Outcomes:
    """Applies workers' frames to their calls. `pump` is asked whenever slots or queues have changed."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        settlement: Settlement,
        pump: Callable[[Lane], None],
        stop: Callable[[Call, str], None],
        summarize: Callable[[Lane, Worker, Summary], None],
        requeue: Callable[[Execution], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._settlement = settlement
        self._pump = pump
        self._stop = stop
        self._summarize = summarize
        self._requeue = requeue
        self._acknowledgements = Acknowledgements(store=store, clock=clock)
        self._lanes: dict[Worker, Lane] = {}

    def adopt(self, worker: Worker, lane: Lane) -> None:
        """Frames of `worker` concern `lane` from now on."""
        self._lanes[worker] = lane

    def take(self, worker: Worker, frame: AnyFrame) -> None:
        """One frame of a worker. Others than a worker's are ignored."""
        lane = self._lanes.get(worker)
        if lane is None:
            return
        if isinstance(frame, Result):  # the commonest first
            self._result(lane, worker, frame)
        elif isinstance(frame, Started):
            self._started(lane, worker, frame.execution, frame.attempt)
        elif isinstance(frame, Chunk):
            self._chunk(worker, frame)
        elif isinstance(frame, Error):
            self._error(lane, worker, frame)
        elif isinstance(frame, Credit):
            worker.reported = frame.free
            if worker.external:  # it may get more slots, or fewer
                worker.slots = frame.free + len(worker.calls) - worker.unstarted
            self._pump(lane)
        elif isinstance(frame, Drain):
            self.drain(lane, worker)
        elif isinstance(frame, Summary):
            self._summarize(lane, worker, frame)

    # One call's life

    def _started(self, lane: Lane, worker: Worker, execution: str, attempt: int) -> None:
        call = worker.calls.get(ExecutionId(execution))
        if call is None or attempt != call.attempt:
            worker.reported -= 1  # taken back a moment too late: it takes a slot all the same
            worker.port.send(Cancel(execution, attempt=attempt))  # it may have been sent here again
            return
        if call.worker is not worker or call.started_at is not None:
            return
        worker.unstarted -= 1
        worker.reported -= 1
        if len(worker.calls) - worker.unstarted > worker.slots:
            worker.slots = len(worker.calls) - worker.unstarted
        now = worker.moved_at = self._clock.now()
        if call.execution.ended:
            call.started_at = now
            return
        self.begin(lane, call, worker, now)
        if not call.unheard:
            call.answer(Started(call.frame.execution, call.execution.attempt, worker.id, call.execution.cold_us > 0))

    def begin(self, lane: Lane, call: Call, worker: Worker, now: float) -> None:
        """The body of a queued call runs from here on."""
        execution = call.execution
        call.started_at = now
        waited_us = int((now - call.submitted_at) * 1e6)
        cold_us = 0
        if worker.ready_at > call.enqueued_at:
            cold_us = min(waited_us, int((worker.ready_at - call.enqueued_at) * 1e6))
        execution.cold_us, execution.queue_us = cold_us, waited_us - cold_us
        self._store.start(execution, execution.attempt, at=self._clock.wall(), worker=worker.id, build=worker.build)
        if call.limit_ms:
            self.limit(lane, call, 0.0)

    def _begun_unannounced(self, lane: Lane, call: Call, worker: Worker, then: float) -> None:
        """A fast call's end is the first that is heard of it."""
        self.begin(lane, call, worker, max(call.submitted_at, then))
        if not call.unheard:
            call.answer(Started(call.frame.execution, call.execution.attempt, worker.id, call.execution.cold_us > 0))

    def limit(self, lane: Lane, call: Call, run_s: float) -> None:
        """End a call that has run for `run_s` seconds already if it outlives its limit by far."""
        if call.limit_ms and not call.cancel:
            left_s = max(0.0, call.limit_ms / 1000 - run_s) + BACKSTOP_S
            call.timer = self._clock.call_later(left_s, lambda: self._overdue(lane, call))

    def _overdue(self, lane: Lane, call: Call) -> None:
        call.cancel = "timeout"
        self._stop(call, "timeout")
        worker = call.worker
        if worker is not None:  # whatever it still says of this call comes too late
            worker.calls.pop(call.id, None)
            worker.given_up.add(call.id)
            call.worker = None
        self._timed_out(lane, call, None)

    def _answered(self, lane: Lane, worker: Worker, frame: Result | Error) -> Call | None:
        """Book the slot of a call that a worker has answered. None: it is not its to answer, or has ended since."""
        worker.reported = frame.free
        worker.stuck = False
        id = ExecutionId(frame.execution)
        call = worker.calls.get(id)
        if call is None or frame.attempt != call.attempt:
            worker.given_up.discard(id)
            self._acknowledgements.when_durable(worker, id)
            return None
        del worker.calls[id]
        if call.started_at is None:
            worker.unstarted -= 1
        if call.execution.ended or call.worker is not worker:
            self._acknowledgements.when_durable(worker, id)
            return None
        call.worker = None
        return call

    def _result(self, lane: Lane, worker: Worker, frame: Result) -> None:
        call = self._answered(lane, worker, frame)
        if call is not None:
            now = worker.moved_at = self._clock.now()
            if call.started_at is None:
                self._begun_unannounced(lane, call, worker, now - frame.run_us / 1e6)
            lane.ran(frame.run_us)
            self._settlement.succeed(call, frame)
            if call.kept:
                self._acknowledgements.when_durable(worker, call.id)
        if frame.begins:
            self._started(lane, worker, frame.begins, frame.begins_attempt)
        if worker.draining:
            worker.close_if_done()
        if lane.queue.size:
            self._pump(lane)

    def _error(self, lane: Lane, worker: Worker, frame: Error) -> None:
        call = self._answered(lane, worker, frame)
        if call is not None:
            now = worker.moved_at = self._clock.now()
            if not frame.ran and call.started_at is None:
                self._not_run(lane, call, frame)
            else:
                if call.started_at is None:
                    self._begun_unannounced(lane, call, worker, now - frame.run_us / 1e6)
                lane.ran(frame.run_us)
                self._failed(lane, call, frame)
            if call.kept and frame.code != BUSY:
                self._acknowledgements.when_durable(worker, call.id)
        worker.close_if_done()
        self._pump(lane)

    def _not_run(self, lane: Lane, call: Call, frame: Error) -> None:
        if call.cancel:
            self._settlement.raise_into(call, Cancelled("the call was cancelled before it ran"), ran=False)
        elif frame.code == BUSY:
            lane.queue.push_front(call)
        else:
            self._settlement.fail(call, frame)

    def _failed(self, lane: Lane, call: Call, frame: Error) -> None:
        plan, attempt, yielded = lane.plan.of(call.execution.function), call.execution.attempt, call.yielded > 0
        if call.cancel == "list":
            self._settlement.raise_into(call, too_long(), ran=True)
        elif call.cancel == "cancel" and frame.code in ("CANCELLED", "TIMEOUT"):
            self._settlement.raise_into(call, Cancelled(), ran=True)
        elif frame.code == "TIMEOUT":
            self._timed_out(lane, call, frame)
        elif frame.code in TEMPORARY and plan.mode == "EXTERNAL":
            self._temporary(lane, call, frame)
        elif frame.code in ("USER_ERROR", "EXTERNAL_ERROR") and plan.retries and not call.cancel:
            info = unpack(frame.payload)
            name = f"{info.module}.{info.qualname}" if info.qualname else info.type
            if after_exception(plan, name, attempt=attempt, yielded=yielded):
                self._again(lane, call)
            else:
                self._settlement.fail(call, frame)
        else:
            self._settlement.fail(call, frame)

    def _timed_out(self, lane: Lane, call: Call, frame: Error | None) -> None:
        if call.cancel == "cancel":
            self._settlement.raise_into(call, Cancelled(), ran=True)
        elif after_timeout(
            lane.plan.of(call.execution.function), attempt=call.execution.attempt, yielded=call.yielded > 0
        ):
            call.cancel = ""
            self._again(lane, call)
            self._pump(lane)
        elif frame is not None:
            self._settlement.fail(call, frame)
        else:
            limit = f"{call.limit_ms} ms"
            error = TimedOut(f"{call.execution.function} ran longer than its limit of {limit} and was stopped")
            self._settlement.raise_into(call, error, ran=True)

    def _temporary(self, lane: Lane, call: Call, frame: Error) -> None:
        execution = call.execution
        keyed = execution.idempotency_key is not None
        plan, yielded = lane.plan.of(execution.function), call.yielded > 0
        if not call.cancel and after_lost_worker(
            plan, call.kind, attempt=execution.attempt, keyed=keyed, yielded=yielded, own=call.max_retries
        ):
            self._again(lane, call, min(LONGEST_ASKED_S, unpack(frame.payload).retry_after or 0.0))
        else:
            self._settlement.fail(call, frame)

    def _again(self, lane: Lane, call: Call, not_before_s: float = 0.0) -> None:
        """Another attempt, after a back-off and not before `not_before_s` seconds from now."""
        execution, now = call.execution, self._clock.now()
        call.stop_timer()
        delay = max(not_before_s, backoff_s(execution.attempt))
        self._requeue(execution)
        lane.retried += 1
        call.worker = call.started_at = None
        call.enqueued_at = now + delay
        lane.queue.push_later(call, call.enqueued_at)

    # Streams

    def _chunk(self, worker: Worker, frame: Chunk) -> None:
        call = worker.calls.get(ExecutionId(frame.execution))
        if call is None or call.worker is not worker or call.execution.ended or not frame.item:
            return
        if frame.attempt != call.attempt:
            return
        call.yielded += 1
        if call.stream:
            call.answer(Chunk(call.frame.execution, call.execution.attempt, True, True, frame.data))
            return
        execution = call.execution
        if execution.items is None:
            execution.items = ItemBuffer()
        call.owed_items += 1
        call.owed_bytes += len(frame.data)
        try:
            execution.items.add(frame.data)
        except PayloadTooLarge:
            if not call.cancel:
                call.cancel = "list"
                self._stop(call, "cancel")
            return
        self.grant(call)
        if call.watchers:
            call.tell_watchers()

    def grant(self, call: Call) -> None:
        """Give the worker credits back for items received, as far as the buffer has room."""
        items = call.execution.items
        if call.worker is None or items is None or call.cancel or not call.owed_items:
            return
        if (call.owed_items >= GRANT_ITEMS or call.owed_bytes >= GRANT_BYTES) and items.room() > 0:
            call.worker.port.send(Credit(call.id, 0, call.owed_items))
            call.owed_items = call.owed_bytes = 0

    # Workers that leave

    def drain(self, lane: Lane, worker: Worker) -> None:
        """It takes nothing more, finishes what it runs, and its place is free for another one."""
        if worker.draining:
            return
        lane.slots.drain(worker)
        lane.asked = max(len(lane.slots.serving()), lane.asked - 1)
        worker.close_if_done()
        self._pump(lane)

    def lose(self, worker: Worker) -> None:
        """A worker's link has ended: calls it cannot have begun keep their place, others wait for its last words."""
        lane = self._lanes.pop(worker, None)
        if lane is None:
            return
        lane.slots.remove(worker)
        if not worker.draining:
            lane.asked = max(len(lane.slots.serving()), lane.asked - 1)
        calls = [call for call in worker.calls.values() if call.worker is worker and not call.execution.ended]
        worker.calls.clear()
        self._not_begun(lane, [call for call in calls if certainly_waits(call, worker)])
        begun = [call for call in calls if call.worker is worker]
        if begun and worker.id in lane.seen:
            patience = REMOTE_RESUME_S if worker.remote else LAST_WORDS_S
            timer = self._clock.call_later(patience, lambda: self._give_up(lane, worker.id))
            lane.lost[worker.id] = Lost(worker, begun, timer)
        elif begun:
            self._attempted(lane, worker, begun, "its process ended")
        self._pump(lane)

    def _not_begun(self, lane: Lane, calls: list[Call]) -> None:
        """Their worker is gone, and they never ran there: they stand first in line again, in their order."""
        for call in reversed(calls):
            call.worker = None
            if call.cancel:
                self._settlement.raise_into(call, Cancelled("the call was cancelled before it ran"), ran=False)
            else:
                lane.queue.push_front(call)

    def gone(self, lane: Lane, worker: WorkerId, status: int, reason: str, begun: Collection[str]) -> None:
        """The template says how a worker ended, and what it had begun last."""
        present = lane.slots.workers.get(worker)
        if present is not None:
            self.lose(present)
            present.port.close()
        lost = lane.lost.pop(worker, None)
        if lost is not None:
            self.bury(lane, lost, end_of(status, reason), begun)

    def _give_up(self, lane: Lane, worker: WorkerId) -> None:
        lost = lane.lost.pop(worker, None)
        if lost is not None:
            self.bury(lane, lost, "its connection ended", None)

    def bury(self, lane: Lane, lost: Lost, how: str, begun: Collection[str] | None) -> None:
        """See to a lost worker's calls. `begun`: what its slots had begun last; None: nobody knows, and they count as
        begun."""
        lost.timer.cancel()
        calls = [call for call in lost.calls if call.worker is lost.worker and not call.execution.ended]
        if begun is not None:
            ran = count_begun(calls, begun)
            self._not_begun(lane, [call for call in calls[ran:] if call.started_at is None])
        self._attempted(lane, lost.worker, calls, how)
        self._pump(lane)

    def _attempted(self, lane: Lane, worker: Worker, calls: list[Call], how: str) -> None:
        """Calls that had begun on a worker that is gone, as far as is known: this attempt is over."""
        now = self._clock.now()
        for call in calls:
            execution = call.execution
            if execution.ended or call.worker is not worker:
                continue
            if call.started_at is None:
                self.begin(lane, call, worker, now)
            call.worker = None
            if call.cancel == "list":
                self._settlement.raise_into(call, too_long(), ran=True)
            elif call.cancel == "cancel":
                self._settlement.raise_into(call, Cancelled(), ran=True)
            elif call.limit_ms and call.started_at is not None and now - call.started_at >= call.limit_ms / 1000:
                self._timed_out(lane, call, None)
            elif after_lost_worker(
                lane.plan.of(execution.function),
                call.kind,
                attempt=execution.attempt,
                keyed=execution.idempotency_key is not None,
                yielded=call.yielded > 0,
                own=call.max_retries,
            ):
                self._again(lane, call)
            else:
                message = (
                    f"the worker that ran {execution.function} died before it answered: {worker.id} {how}. "
                    "The next call gets a fresh one; add `retries=` to have this call repeated"
                )
                self._settlement.raise_into(call, WorkerLost(message), ran=True)


def certainly_waits(call: Call, worker: Worker) -> bool:
    """Whether a worker that has said nothing about the call cannot have begun it.

    Workers of this machine begin some without a word (worker/line.py); never one whose record or limit needs it.
    """
    announced = call.kept or call.limit_ms or worker.remote or worker.external
    return call.started_at is None and bool(announced)


def count_begun(calls: Sequence[Call], last: Collection[str]) -> int:
    """How many of a worker's calls, in the order they were sent, it had begun: it begins them in that order, and `last`
    holds the last ones."""
    return max((number for number, call in enumerate(calls, 1) if call.execution.id in last), default=0)


def end_of(status: int, reason: str) -> str:
    """How a process ended, for people. `status` as from waitpid, negative = signal."""
    if reason and status >= 0:
        return reason
    if status == -9:
        return "was killed (signal 9; the system does that when memory runs out)"
    if status < 0:
        return f"was killed by signal {-status}"
    return f"ended with exit status {status}"
