"""Calls in, workers' slots out: accepts invocations, decides where they run, and follows them to their end.

The dispatcher is synchronous and driven by events alone: a call is submitted, a worker says something, a timer that was
set for a known moment fires. Each event changes state and then asks `assign` what can be sent. There is no task per
call and no polling. The payload bytes a client sent are spliced into the worker's INVOKE, and the worker's into the
client's RESULT. Time, connections and processes are ports, so that tests run it in virtual time.

An async call joins its queue when its record is durable, and its caller is told then; until that moment it only counts.

What belongs to whom: queues.py and slots.py hold state, assign.py, scaling.py, admission.py, recall.py and retry.py
decide, outcomes.py acts on what workers say, resuming.py on who comes back, settlement.py ends calls; here they meet.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, Final

from flashmesh.executions.record import Execution, Kind
from flashmesh.executions.store import Store
from flashmesh.functions.errors import (
    Cancelled,
    EndpointUnavailable,
    FlashmeshError,
    FunctionNotFound,
    ImportFailed,
    QueueFull,
)
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId, FunctionId, WorkerId
from flashmesh.queueing.accepting import Acceptance, no_longer_served
from flashmesh.queueing.admission import admit
from flashmesh.queueing.calls import Accepted, Call, new_call
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.outcomes import Outcomes
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import Clock, EventLog, Reply, WorkerPort, WorkerSource
from flashmesh.queueing.pumping import Pump
from flashmesh.queueing.resuming import Resumption
from flashmesh.queueing.retry import after_failed_start, backoff_s
from flashmesh.queueing.settlement import Settlement, peer_fields
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import AnyFrame, Cancel, Credit, Hello, Invoke, Summary

CANCEL_GRACE_S: Final = 5.0
"""How long after a cancel the record waits for the worker's word; a backstop, as the template kills after 2 s."""
EXTERNAL: Final = "EXTERNAL"
"""Mode of an endpoint whose workers are an adapter of this process."""
FAILED_STARTS: Final = 3
"""Workers in a row that end before they are ready; then the endpoint has failed."""


class Dispatcher:
    """See the module. Not thread-safe: everything happens on one thread."""

    def __init__(self, *, store: Store, clock: Clock, source: WorkerSource, log: EventLog) -> None:
        self.store = store
        self._clock = clock
        self._log = log
        self._lanes: dict[EndpointName, Lane] = {}
        self._functions: dict[FunctionId, Lane] = {}
        self._calls: dict[ExecutionId, Call] = {}
        self._paused = False
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

    @property
    def source(self) -> WorkerSource:
        """Who makes workers. A program whose parts need each other sets it once, before the first call."""
        return self._pumping.source

    @source.setter
    def source(self, source: WorkerSource) -> None:
        self._pumping.source = source

    # Endpoints

    def declare(self, plan: EndpointPlan) -> None:
        """Serve an endpoint, or update it: its functions, limits and build. An earlier failure is forgotten."""
        lane = self._lanes.get(plan.name)
        if lane is None:
            lane = self._lanes[plan.name] = Lane(plan)
            lane.queue.paused = self._paused
        else:
            self._update(lane, plan)
        for function in plan.functions:
            self._functions[function] = lane

    def _update(self, lane: Lane, plan: EndpointPlan) -> None:
        for function in lane.plan.functions - plan.functions:
            self._functions.pop(function, None)
        if plan.build != lane.plan.build and lane.slots.workers:
            lane.fresh |= plan.functions - lane.plan.functions
            for call in lane.queue.peek(lane.queue.ready):
                if call.build:
                    call.build = plan.build
        lane.plan = plan
        lane.slots.serve(plan.build)
        lane.failure = lane.problem = None
        lane.failed_starts = 0
        lane.withdrawn = False
        lane.ensured = False
        self._pump(lane)

    def withdraw(self, endpoint: EndpointName, error: FlashmeshError | None = None) -> None:
        """Stop serving an endpoint: what waits fails with `error`, what runs finishes."""
        lane = self._lanes.get(endpoint)
        if lane is None:
            return
        lane.withdrawn = True
        for function in lane.plan.functions:
            if self._functions.get(function) is lane:
                del self._functions[function]
        gone = error or no_longer_served(endpoint)
        for call in lane.queue.drain():
            self._settlement.raise_into(call, gone, ran=False)
        self._forget_if_empty(lane)

    def fail_endpoint(self, endpoint: EndpointName, error: FlashmeshError) -> None:
        """The endpoint cannot run calls: those that wait fail with `error`.

        A module that does not import fails until the next `declare`; after anything else the next call tries again, and
        waiting async calls are tried again by themselves, with back-off, when the endpoint only failed to start.
        """
        lane = self._lanes.get(endpoint)
        if lane is None:
            return
        lane.problem = error
        lane.asked, lane.ensured, lane.failed_starts = len(lane.slots.serving()), False, 0
        if isinstance(error, ImportFailed):
            lane.failure = error
        now = self._clock.now()
        for call in lane.queue.drain():
            call.start_failures += 1
            again = isinstance(error, EndpointUnavailable) and not lane.withdrawn
            if again and after_failed_start(lane.plan, call.kind, failures=call.start_failures, own=call.max_retries):
                lane.retried += 1
                lane.queue.push_later(call, now + backoff_s(call.start_failures))
            else:
                self._settlement.raise_into(call, error, ran=False)
        self._pump(lane)

    def template_ready(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        """A template has tried to import its module; `info` as in frames.Ready."""
        lane = self._lanes.get(endpoint)
        if lane is None or info.get("build", lane.plan.build) != lane.plan.build:
            return  # of a build that has been replaced since
        if info.get("state") == "import_failed":
            self._import_failed(lane, import_error(endpoint, info.get("error") or {}))
            return
        lane.info = info
        lane.problem = None
        self._serve_also(lane, info.get("functions") or ())
        if info.get("state") == "not_forkable":
            self._log("not_forkable", {"endpoint": endpoint, "reason": info.get("reason", "")})
        self._pumping.scale(lane, self._clock.now())

    def _serve_also(self, lane: Lane, functions: Iterable[Mapping[str, Any]]) -> None:
        """Functions that only the import could tell of."""
        found = {FunctionId(str(function["id"])) for function in functions} - lane.plan.functions
        if found:
            lane.plan = dataclasses.replace(lane.plan, functions=lane.plan.functions | found)
            for function in found:
                self._functions.setdefault(function, lane)

    def stage(self, endpoint: EndpointName, stage: str) -> None:
        """What the source is doing about the endpoint's template, for status."""
        lane = self._lanes.get(endpoint)
        if lane is not None:
            lane.stage = stage

    def _import_failed(self, lane: Lane, error: ImportFailed) -> None:
        serving = [worker for worker in lane.slots.serving() if worker.build != lane.plan.build]
        if not serving:
            self.fail_endpoint(lane.plan.name, error)
            return
        lane.problem = error  # the build before it goes on serving what it has
        for call in lane.queue.peek(lane.queue.ready):
            if call.build == lane.plan.build:
                lane.queue.remove(call)
                self._settlement.raise_into(call, error, ran=False)

    def template_lost(self, endpoint: EndpointName) -> None:
        """The endpoint's template has ended. Its workers' links end by themselves. Asked for again if calls wait."""
        lane = self._lanes.get(endpoint)
        if lane is not None:
            for worker in list(lane.slots.serving()):
                self._outcomes.drain(lane, worker)  # dead, or leaving with it: another template makes others
            lane.ensured, lane.asked = False, 0
            lane.seen.clear()
            self._pump(lane)

    # Calls

    def submit(
        self, frame: Invoke, reply: Reply | None, *, kind: Kind = "sync", accepted: Accepted | None = None
    ) -> Execution:
        """Accept a call. `reply` gets its answers under the frame's execution id.

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
        lane = self._functions.get(function)
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
            frame.meta.get("idempotency_key"),
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

    def is_accepted(self, execution: ExecutionId) -> bool:
        """Whether a known execution is accepted for good. False while its record waits to become durable."""
        call = self._calls.get(execution)
        return call is None or not call.uncommitted

    def restore(self, executions: Iterable[Execution]) -> None:
        """At boot, after every endpoint was declared: go on with what the store has as unfinished, oldest first.

        QUEUED ones queue again. RUNNING ones wait RESUME_S for a worker that says that it runs them, or holds their
        outcome; then they run again as the next attempt. Those of endpoints that are not served any more: ERROR.
        """
        self._resumption.restore(executions)

    def pause(self) -> None:
        """Hand out no async call any more, for good: each keeps its place and its record, for the next start.

        Sync calls go on, and so does what runs. `on_requeued` tells of each running call that will not run again here.
        """
        self._paused = True
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

    # Workers

    def worker_ready(self, hello: Hello, free: int, port: WorkerPort, *, remote: bool = False) -> Worker | None:
        """A worker has said HELLO and READY. None: its endpoint is not served, so the link should be closed.

        `remote`: it is on another machine, where a link may break under a worker that lives.
        """
        lane = self._lanes.get(EndpointName(hello.endpoint))
        if lane is None or lane.withdrawn:
            return None
        before = lane.slots.workers.get(WorkerId(hello.worker))
        if before is not None:  # its new connection came before the end of the old one was seen
            self._outcomes.lose(before)
            before.port.close()
        worker = Worker(
            WorkerId(hello.worker),
            build=BuildId(hello.build),
            pid=hello.pid,
            port=port,
            free=free,
            now=self._clock.now(),
            slots=hello.free + len(hello.running) if hello.free else len(hello.running),
            remote=remote,
            external=lane.plan.mode == EXTERNAL,
        )
        lane.slots.add(worker)
        lane.seen.add(worker.id)
        lane.failed_starts = 0
        if worker.build == lane.plan.build:
            lane.fresh = frozenset()
            lane.problem = None
        self._outcomes.adopt(worker, lane)
        if hello.running or hello.held or lane.lost:
            self._resumption.welcome(lane, worker, hello)
        self._pump(lane)
        return worker

    def worker_lost(self, worker: Worker) -> None:
        """A worker's link has ended."""
        self._outcomes.lose(worker)

    def worker_gone(self, endpoint: EndpointName, worker: WorkerId, status: int, reason: str) -> None:
        """The template has seen a worker's process end. `status` as from waitpid (negative: signal)."""
        lane = self._lanes.get(endpoint)
        if lane is None:
            return
        if worker in lane.seen:
            self._outcomes.gone(lane, worker, status, reason)
            lane.seen.discard(worker)  # not before: a worker that was seen dies with a reason
            if status == 0 and len(lane.queue):
                lane.asked = len(
                    lane.slots.serving()
                )  # one that leaves by itself lowers its template's demand: ask again
                self._pump(lane)
            self._forget_if_empty(lane)
            return
        lane.asked = max(len(lane.slots.serving()), lane.asked - 1)
        if status == 0:
            self._pump(lane)
            return
        lane.failed_starts += 1
        how = reason or _how(status)
        if lane.failed_starts >= FAILED_STARTS:
            message = (
                f"workers of {endpoint} end before they are ready ({how}). `flash logs` shows what they printed; "
                "the next call tries again"
            )
            self.fail_endpoint(endpoint, EndpointUnavailable(message))
        else:
            self._clock.call_later(backoff_s(lane.failed_starts), lambda: self._pump(lane))

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

    def _forget_if_empty(self, lane: Lane) -> None:
        if lane.withdrawn and not lane.slots.workers and not lane.lost:
            self._lanes.pop(lane.plan.name, None)

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


def effective_limit_ms(asked_ms: int, declared_ms: int) -> int:
    """The tighter of two run-time limits, of which 0 is none."""
    return min(asked_ms, declared_ms) if asked_ms and declared_ms else asked_ms or declared_ms


def import_error(endpoint: str, error: Mapping[str, Any]) -> ImportFailed:
    """What callers are told when a module does not import: file, line, reason."""
    where = error.get("file") or endpoint
    if error.get("line"):
        where = f"{where}:{error['line']}"
    reason = error.get("reason") or "the import failed"
    failed = ImportFailed(f"{where}: {reason}. Correct the file and save it")
    traceback = error.get("traceback")
    if traceback:
        failed.add_note(str(traceback))
    return failed


def _how(status: int) -> str:
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
