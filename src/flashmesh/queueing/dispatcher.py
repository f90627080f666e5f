"""Calls in, workers' slots out: accepts invocations, decides where they run, and follows them to their end.

The dispatcher is synchronous and driven by events alone: a call is submitted, a worker says something, a timer that was
set for a known moment fires. Each event changes state and then asks `assign` what can be sent. There is no task per
call and no polling. The payload bytes a client sent are spliced into the worker's INVOKE, and the worker's into the
client's RESULT. Time, connections and processes are ports, so that tests run it in virtual time.

An async call joins its queue when its record is durable, and its caller is told then; until that moment it only counts.

What belongs to whom: queues.py and slots.py hold state, assign.py, scaling.py, admission.py, recall.py and retry.py
decide, outcomes.py acts on what workers say, resuming.py on who comes back, settlement.py ends calls; here they meet.
"""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from flashmesh.executions.record import Execution, Kind
from flashmesh.executions.store import Store
from flashmesh.functions.errors import (
    Cancelled,
    FunctionNotFound,
    QueueFull,
)
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId, WorkerId
from flashmesh.queueing.accepting import Acceptance
from flashmesh.queueing.admission import admit, line_is_full
from flashmesh.queueing.calls import Accepted, Call, new_call
from flashmesh.queueing.endpoints import Endpoints
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.outcomes import REMOTE_RESUME_S, Outcomes
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import Clock, EventLog, Reply, WorkerSource
from flashmesh.queueing.pumping import Pump
from flashmesh.queueing.resuming import Resumption
from flashmesh.queueing.settlement import Settlement, peer_fields
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import AnyFrame, Cancel, Credit, Invoke, Summary

CANCEL_GRACE_S: Final = 5.0
"""How long after a cancel the record waits for the worker's word; a backstop, as the template kills after 2 s."""


class Dispatcher:
    """See the module. Not thread-safe: everything happens on one thread."""

    def __init__(self, *, store: Store, clock: Clock, source: WorkerSource, log: EventLog) -> None:
        self.store = store
        self._clock = clock
        self._log = log
        self._lanes: dict[EndpointName, Lane] = {}
        self._calls: dict[ExecutionId, Call] = {}
        self.on_ended: list[Callable[[Execution], None]] = []
        """Called after an execution has ended and its callers were answered."""
        self.on_requeued: list[Callable[[Execution], None]] = []
        """Called after a running execution was put back in line for another attempt."""
        self.on_refused: list[Callable[[FunctionId], None]] = []
        """Told of each call that found its queue full."""
        self.on_summary: list[Callable[[EndpointName, WorkerId, Summary], None]] = []
        """Called with what a worker says of calls that it took from peers."""
        self._settlement = Settlement(store=store, clock=clock, log=log, ended=self._ended)
        self._pumping = Pump(clock=clock, settlement=self._settlement, source=source)
        self._pump = self._pumping.run
        self._acceptance = Acceptance(
            store=store, clock=clock, settlement=self._settlement, calls=self._calls, join=self._pumping.join
        )
        self._outcomes = Outcomes(
            store=store,
            clock=clock,
            settlement=self._settlement,
            pump=self._pump,
            stop=self._stop_by_force,
            summarize=self._summarize,
            requeue=self._requeue,
        )
        self.worker_frame: Callable[[Worker, AnyFrame], None] = self._outcomes.take
        """A worker said something. Frames about calls it was not given are ignored."""
        self._resumption = Resumption(
            clock=clock,
            settlement=self._settlement,
            outcomes=self._outcomes,
            lanes=self._lanes,
            calls=self._calls,
            limit_ms=lambda lane, execution: effective_limit_ms(
                execution.deadline_ms, lane.plan.limit_ms(execution.function)
            ),
            pump=self._pump,
            requeue=self._requeue,
        )

        self._endpoints = endpoints = Endpoints(
            lanes=self._lanes,
            clock=clock,
            log=log,
            settlement=self._settlement,
            outcomes=self._outcomes,
            resumption=self._resumption,
            pump=self._pump,
            scale=self._pumping.scale,
        )
        self._functions = endpoints.functions
        self.on_failed = endpoints.on_failed
        """Told of each endpoint that has no worker and cannot get one, and why."""
        # Endpoints and their workers: endpoints.py tells of each.
        self.declare, self.withdraw, self.fail_endpoint = endpoints.declare, endpoints.withdraw, endpoints.fail_endpoint
        self.template_ready, self.template_lost = endpoints.template_ready, endpoints.template_lost
        self.stage = endpoints.stage
        self.worker_ready, self.worker_lost = endpoints.worker_ready, endpoints.worker_lost
        self.worker_gone = endpoints.worker_gone

    @property
    def source(self) -> WorkerSource:
        """Who makes workers. A program whose parts need each other sets it once, before the first call."""
        return self._pumping.source

    @source.setter
    def source(self, source: WorkerSource) -> None:
        self._pumping.source = source

    # Calls

    def submit(
        self, frame: Invoke, reply: Reply | None, *, kind: Kind = "sync", accepted: Accepted | None = None
    ) -> Execution:
        """Accept a call. `reply` gets its answers under the frame's execution id.

        A call whose meta names an `endpoint` is that endpoint's, whatever others serve a function of that id.

        The same idempotency key with the same body attaches `reply` to the first call, whose execution is returned.

        Args:
            accepted: told None once the call is accepted for good: an async one when its record is durable (before
                this returns where the store has no disk), a sync one at once. Told StoreUnavailable when the record
                could not be written: nothing was accepted then, and the execution is forgotten. Without it `reply`
                gets that error.

        Raises:
            FunctionNotFound, QueueFull, DuplicateExecution, IdempotencyConflict, StoreUnavailable, or why the endpoint
            cannot run calls. Nothing was accepted then.
        """
        function = FunctionId(frame.function)
        named = frame.meta.get("endpoint")
        lane = self._functions.get(function) if named is None else self._named(named, function)
        if lane is None:
            raise self._not_found(function)
        if lane.failure is not None:
            raise lane.failure
        now = self._clock.now()
        if not lane.slots.has_room() or (kind == "async" and lane.queue.waiting_async):
            try:
                admit(
                    lane.plan,
                    lane.queue,
                    function=function,
                    sync=kind == "sync",
                    size_bytes=len(frame.payload),
                    mean_run_s=lane.mean_run_s,
                )
            except QueueFull:
                for told in self.on_refused:
                    told(function)
                raise
        execution = Execution(
            ExecutionId(frame.execution),
            function,
            lane.plan.name,
            kind,
            self._clock.wall(),
            frame.content_type,
            frame.accept,
            frame.payload,
            frame.meta,
            frame.meta.get("idempotency_key") if named is None else key_within(named, frame.meta),
        )
        if frame.deadline_ms:
            execution.deadline_ms = frame.deadline_ms
        if "retried_from" in frame.meta:
            execution.retried_from = frame.meta["retried_from"]
        known = self.store.create(execution)
        if known is not execution:
            self._acceptance.attach(known, execution.id, reply, accepted)
            return known
        call = new_call(execution, frame, reply, kind, now)
        declared_ms = lane.plan.limit_ms(function)
        if declared_ms or frame.deadline_ms:
            call.limit_ms = effective_limit_ms(frame.deadline_ms, declared_ms)
        if (lane.fresh and function in lane.fresh) or (frame.build and frame.build == lane.plan.build):
            call.build = lane.plan.build
        self._calls[execution.id] = call
        if kind == "async":
            self._acceptance.commit(lane, call, accepted)
        else:
            self._pumping.join(lane, call, now)
            if accepted is not None:
                accepted(None)
        return execution

    def refusal(self, function: FunctionId, endpoint: EndpointName | None = None) -> QueueFull | None:
        """Why a sync call would be refused, whatever it says: it need not be read then, and counts as refused.

        None: `submit` decides. `endpoint`: as a call's meta names it.
        """
        lane = self._functions.get(function) if endpoint is None else self._named(endpoint, function)
        if lane is None or lane.queue.waiting_sync < lane.plan.queue_size or lane.failure is not None:
            return None
        if lane.slots.has_room():
            return None
        full = line_is_full(lane.plan, lane.queue, function=function, mean_run_s=lane.mean_run_s)
        if full is not None:
            for told in self.on_refused:
                told(function)
        return full

    def is_accepted(self, execution: ExecutionId) -> bool:
        """Whether a known execution is accepted for good. False while its record waits to become durable."""
        call = self._calls.get(execution)
        return call is None or not call.uncommitted

    def restore(self, executions: Iterable[Execution], *, elsewhere: bool = False) -> None:
        """At boot, after every endpoint was declared: go on with what the store has as unfinished, oldest first.

        QUEUED ones queue again. RUNNING ones wait RESUME_S for a worker that says that it runs them, or holds their
        outcome; then they run again as the next attempt. Those of endpoints that are not served any more: ERROR.
        `elsewhere`: workers may be on other machines, and take REMOTE_RESUME_S to come back.
        """
        if elsewhere:
            self._resumption.patience_s = REMOTE_RESUME_S
        self._resumption.restore(executions)

    def pause(self) -> None:
        """Hand out no async call any more, for good: each keeps its place and its record, for the next start.

        Sync calls go on, and so does what runs. `on_requeued` tells of each running call that will not run again here.
        """
        self._endpoints.paused = True
        for lane in self._lanes.values():
            self._pumping.pause(lane)

    def purge(self, endpoint: EndpointName) -> int:
        """Cancel everything that waits for a worker of an endpoint. How many calls that were."""
        lane = self._lanes.get(endpoint)
        if lane is None:
            return 0
        purged = lane.queue.drain()
        for call in purged:
            self._settlement.raise_into(call, Cancelled("the queue was purged before the call ran"), ran=False)
        return len(purged)

    def _named(self, endpoint: str, function: FunctionId) -> Lane | None:
        """The endpoint that a call names, if it serves the function."""
        lane = self._lanes.get(EndpointName(endpoint))
        return lane if lane is not None and not lane.withdrawn and function in lane.plan.functions else None

    def _not_found(self, function: FunctionId) -> FunctionNotFound:
        near = get_close_matches(function, self._functions, n=1)
        hint = f" Did you mean {near[0]}?" if near else " `flash status` lists what is."
        return FunctionNotFound(f"no function {function} is served here.{hint}")

    def cancel(self, execution: ExecutionId) -> Execution:
        """Stop an execution: one that waits ends at once, one that runs when its worker has stopped it.

        One that has ended is left as it is. Raises ExecutionNotFound.
        """
        call = self._calls.get(execution)
        if call is None:
            return self.store.get(execution)
        if call.queued or call.uncommitted:
            if call.queued:
                self._lanes[call.execution.endpoint].queue.remove(call)
            self._settlement.raise_into(call, Cancelled("the call was cancelled before it ran"), ran=False)
        elif not call.cancel:
            call.cancel = "cancel"
            self._stop_by_force(call, "cancel")
            call.stop_timer()
            call.timer = self._clock.call_later(CANCEL_GRACE_S, lambda: self._give_up_on(call))
        return call.execution

    def _give_up_on(self, call: Call) -> None:
        self._settlement.raise_into(call, Cancelled(), ran=call.started_at is not None)

    def _stop_by_force(self, call: Call, reason: str) -> None:
        """Tell the worker, and the template that can enforce it."""
        if call.worker is not None:
            call.worker.port.send(Cancel(call.id, "timeout" if reason == "timeout" else "cancel"))
        self.source.cancel(call.execution.endpoint, call.id)

    def reader_gone(self, execution: ExecutionId) -> None:
        """The only reader of a streamed call has left: nobody can have its items, so it is cancelled."""
        call = self._calls.get(execution)
        if call is not None and call.stream and not call.waiters:
            call.reply = None
            self.cancel(execution)

    def credit(self, execution: ExecutionId, items: int) -> None:
        """The reader of a streamed call can take `items` more."""
        call = self._calls.get(execution)
        if call is not None and call.worker is not None and call.stream:
            call.worker.port.send(Credit(execution, 0, items))

    def items_taken(self, execution: ExecutionId) -> None:
        """Somebody read from the execution's item buffer: there may be room for more."""
        call = self._calls.get(execution)
        if call is not None:
            self._outcomes.grant(call)

    # What follows

    def _ended(self, call: Call) -> None:
        execution = call.execution
        self._calls.pop(execution.id, None)
        if call.restored:
            self._resumption.forget(call)
        lane = self._lanes.get(execution.endpoint)
        if lane is not None:
            lane.count(execution.status)
        for told in self.on_ended:
            told(execution)

    def _requeue(self, execution: Execution) -> None:
        self.store.requeue(execution, execution.attempt)
        for told in self.on_requeued:
            told(execution)

    def _summarize(self, lane: Lane, worker: Worker, summary: Summary) -> None:
        """Calls of peers: a closing line each, and they count for scaling."""
        for peer_call in summary.calls:
            lane.peer_calls += 1
            lane.ran(peer_call.run_us)
            self._log("invocation", peer_fields(lane.plan.name, worker.id, peer_call))
        if summary.dropped:
            self._log("summary_dropped", {"endpoint": lane.plan.name, "worker": worker.id, "calls": summary.dropped})
        for told in self.on_summary:
            told(lane.plan.name, worker.id, summary)

    # Looking

    def execution(self, execution: ExecutionId) -> Execution:
        """Its record. Raises ExecutionNotFound."""
        call = self._calls.get(execution)
        return call.execution if call is not None else self.store.get(execution)

    def watch(self, execution: ExecutionId, watcher: Callable[[], None]) -> Callable[[], None] | None:
        """Call `watcher` at every item the execution yields and at its end, until the returned function is called.

        None when it has ended: nothing will happen any more.
        """
        call = self._calls.get(execution)
        if call is None:
            return None
        watchers = call.watchers = call.watchers or []
        watchers.append(watcher)
        return lambda: watchers.remove(watcher)

    def status(self) -> dict[str, Any]:
        """Endpoints with their queues and workers, as plain values."""
        lanes = sorted(self._lanes.values(), key=lambda lane: lane.plan.name)
        return {"endpoints": [lane.status() for lane in lanes if not lane.withdrawn]}

    def unfinished(self) -> list[Execution]:
        """Executions that wait or run now, in the order they came."""
        return [call.execution for call in self._calls.values()]

    @property
    def in_flight(self) -> int:
        """Executions that have not ended: waiting, running, or about to be accepted."""
        return len(self._calls)

    def running_of(self, endpoint: EndpointName) -> int:
        """Calls of an endpoint that its workers run now; 0 when it is not served."""
        lane = self._lanes.get(endpoint)
        return 0 if lane is None else lane.health()["jobs"]["inProgress"]

    def health(self, endpoint: EndpointName) -> dict[str, dict[str, int]]:
        """Its jobs and workers by state, in RunPod's words. Raises FunctionNotFound.

        `{"jobs": {completed, failed, inProgress, inQueue, retried}, "workers": {idle, initializing, ready, running,
        throttled, unhealthy}}`; jobs that ended count from the start of this process.
        """
        self.plan(endpoint)
        return self._lanes[endpoint].health()

    def plan(self, endpoint: EndpointName) -> EndpointPlan:
        """The endpoint's plan as declared last. Raises FunctionNotFound."""
        lane = self._lanes.get(endpoint)
        if lane is None or lane.withdrawn:
            raise FunctionNotFound(f"no endpoint {endpoint} is served here. `flash status` lists what is.")
        return lane.plan


def key_within(endpoint: str, meta: Mapping[str, Any]) -> str | None:
    """The idempotency key of a call that names its endpoint: another endpoint's function of that name is another."""
    key = meta.get("idempotency_key")
    return None if key is None else f"{endpoint}:{key}"


def effective_limit_ms(asked_ms: int, declared_ms: int) -> int:
    """The tighter of two run-time limits, of which 0 is none."""
    return min(asked_ms, declared_ms) if asked_ms and declared_ms else asked_ms or declared_ms
