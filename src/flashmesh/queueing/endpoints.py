"""Endpoints as the dispatcher serves them: declared, updated, taken away, failed; and their workers, from READY to
the end."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from flashmesh.functions.errors import EndpointUnavailable, FlashmeshError, ImportFailed
from flashmesh.kit.ids import BuildId, EndpointName, FunctionId, WorkerId
from flashmesh.queueing.accepting import no_longer_served
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.outcomes import Outcomes
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import Clock, EventLog, WorkerPort
from flashmesh.queueing.resuming import Resumption
from flashmesh.queueing.retry import after_failed_start, backoff_s
from flashmesh.queueing.settlement import Settlement
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import Hello

EXTERNAL: Final = "EXTERNAL"
"""Mode of an endpoint whose workers are an adapter of this process."""
FAILED_STARTS: Final = 3
"""Workers in a row that end before they are ready; then the endpoint has failed."""


class Endpoints:
    """`lanes` and `functions` are the dispatcher's own tables, kept here. `paused`: of lanes that are yet to come."""

    def __init__(
        self,
        *,
        lanes: dict[EndpointName, Lane],
        clock: Clock,
        log: EventLog,
        settlement: Settlement,
        outcomes: Outcomes,
        resumption: Resumption,
        pump: Callable[[Lane], None],
        scale: Callable[[Lane, float], None],
    ) -> None:
        self.lanes = lanes
        self.functions: dict[FunctionId, Lane] = {}
        self.paused = False
        self.on_failed: list[Callable[[EndpointName, FlashmeshError], None]] = []
        self._clock = clock
        self._log = log
        self._settlement = settlement
        self._outcomes = outcomes
        self._resumption = resumption
        self._pump = pump
        self._scale = scale

    def declare(self, plan: EndpointPlan) -> None:
        """Serve an endpoint, or update it: its functions, limits and build. An earlier failure is forgotten."""
        lane = self.lanes.get(plan.name)
        if lane is None:
            lane = self.lanes[plan.name] = Lane(plan)
            lane.queue.paused = self.paused
        else:
            self._update(lane, plan)
        if not plan.by_name_only:
            for function in plan.functions:
                self.functions[function] = lane

    def _update(self, lane: Lane, plan: EndpointPlan) -> None:
        for function in lane.plan.functions - plan.functions:
            if self.functions.get(function) is lane:
                del self.functions[function]
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
        lane = self.lanes.get(endpoint)
        if lane is None:
            return
        lane.withdrawn = True
        for function in lane.plan.functions:
            if self.functions.get(function) is lane:
                del self.functions[function]
        gone = error or no_longer_served(endpoint)
        for call in lane.queue.drain():
            self._settlement.raise_into(call, gone, ran=False)
        self._forget_if_empty(lane)

    def fail_endpoint(self, endpoint: EndpointName, error: FlashmeshError) -> None:
        """The endpoint cannot run calls: those that wait fail with `error`.

        A module that does not import fails until the next `declare`; after anything else the next call tries again, and
        waiting async calls are tried again by themselves, with back-off, when the endpoint only failed to start.
        """
        lane = self.lanes.get(endpoint)
        if lane is None:
            return
        if not lane.slots.serving():
            for told in self.on_failed:
                told(endpoint, error)
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
        lane = self.lanes.get(endpoint)
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
        self._scale(lane, self._clock.now())

    def _serve_also(self, lane: Lane, functions: Iterable[Mapping[str, Any]]) -> None:
        """Functions that only the import could tell of."""
        found = {FunctionId(str(function["id"])) for function in functions} - lane.plan.functions
        if found:
            lane.plan = dataclasses.replace(lane.plan, functions=lane.plan.functions | found)
            if not lane.plan.by_name_only:
                for function in found:
                    self.functions.setdefault(function, lane)

    def stage(self, endpoint: EndpointName, stage: str) -> None:
        """What the source is doing about the endpoint's template, for status."""
        lane = self.lanes.get(endpoint)
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
        lane = self.lanes.get(endpoint)
        if lane is not None:
            for worker in list(lane.slots.serving()):
                self._outcomes.drain(lane, worker)  # dead, or leaving with it: another template makes others
            lane.ensured, lane.asked = False, 0
            lane.seen.clear()
            self._pump(lane)

    # Workers

    def worker_ready(self, hello: Hello, free: int, port: WorkerPort, *, remote: bool = False) -> Worker | None:
        """A worker has said HELLO and READY. None: its endpoint is not served, so the link should be closed.

        `remote`: it is on another machine, where a link may break under a worker that lives.
        """
        lane = self.lanes.get(EndpointName(hello.endpoint))
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

    def worker_gone(
        self, endpoint: EndpointName, worker: WorkerId, status: int, reason: str, begun: Collection[str] = ()
    ) -> None:
        """The template has seen a worker's process end. `status` as from waitpid (negative: signal); `begun`: the last
        executions that it began."""
        lane = self.lanes.get(endpoint)
        if lane is None:
            return
        if worker in lane.seen:
            self._outcomes.gone(lane, worker, status, reason, begun)
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

    def _forget_if_empty(self, lane: Lane) -> None:
        if lane.withdrawn and not lane.slots.workers and not lane.lost:
            self.lanes.pop(lane.plan.name, None)


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
