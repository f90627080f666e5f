"""One endpoint as the dispatcher sees it: what waits, who works, and what is wrong with it."""

from collections.abc import Mapping
from typing import Any, Final

from flashmesh.executions.states import Status
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import FunctionId, WorkerId
from flashmesh.queueing.calls import Call
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import Timer
from flashmesh.queueing.queues import EndpointQueue
from flashmesh.queueing.scaling import Demand
from flashmesh.queueing.slots import Slots, Worker

_MEMORY: Final = 0.2
"""Weight of the newest run time in the mean. Higher: follows changes faster, less steady."""


class Lost:
    """A worker whose link broke, with the calls it had begun, until the template says how it ended."""

    __slots__ = ("calls", "timer", "worker")

    def __init__(self, worker: Worker, calls: list[Call], timer: Timer) -> None:
        self.worker = worker
        self.calls = calls
        self.timer = timer


class Lane:
    """Plain state; the dispatcher alone changes it."""

    __slots__ = (
        "asked",
        "cancelled",
        "completed",
        "due",
        "ensured",
        "failed",
        "failed_starts",
        "failure",
        "fresh",
        "info",
        "look_again",
        "lost",
        "mean_run_s",
        "peer_calls",
        "plan",
        "problem",
        "queue",
        "recall",
        "retried",
        "seen",
        "slots",
        "stage",
        "withdrawn",
    )

    def __init__(self, plan: EndpointPlan) -> None:
        self.plan = plan
        self.queue = EndpointQueue()
        self.slots = Slots(plan.build)
        self.asked = 0
        """How many workers the source was asked for, less those that have left since."""
        self.ensured = False
        """The source knows that a template is needed."""
        self.failure: FlashmeshError | None = None
        """Why no call can be taken until the next update."""
        self.problem: FlashmeshError | None = None
        """What went wrong last, though calls are still taken: a new build that does not import, say."""
        self.failed_starts = 0
        """Workers in a row that ended before they were ready."""
        self.fresh: frozenset[FunctionId] = frozenset()
        """Functions that only the current build has, while workers of an earlier one still serve."""
        self.info: Mapping[str, Any] = {}
        """What the template said at READY."""
        self.seen: set[WorkerId] = set()
        """Workers that said READY and whose end the template has not reported."""
        self.lost: dict[WorkerId, Lost] = {}
        self.mean_run_s: float | None = None
        self.look_again: Timer | None = None
        self.due: Timer | None = None
        self.recall: Timer | None = None
        """When to look whether calls wait behind one that runs for long."""
        self.completed = self.failed = self.cancelled = 0
        """How the endpoint's calls have ended: `failed` are errors and run-time limits."""
        self.retried = 0
        """Attempts after the first."""
        self.peer_calls = 0
        """Calls that its workers took from peers."""
        self.withdrawn = False
        self.stage = ""
        """What its source is doing about a template: building, starting, warm, or nothing."""

    def ran(self, run_us: int) -> None:
        """Remember how long a call ran."""
        seconds = run_us / 1e6
        mean = self.mean_run_s
        self.mean_run_s = seconds if mean is None else mean + _MEMORY * (seconds - mean)

    def demand(self, now: float) -> Demand:
        serving = self.slots.serving()
        oldest = self.queue.oldest()
        return Demand(
            waiting=self.queue.ready,
            running=sum(len(worker.calls) for worker in serving),
            workers=max(len(serving), self.asked),
            oldest_wait_s=now - oldest.enqueued_at if oldest is not None else 0.0,
            mean_run_s=self.mean_run_s,
        )

    @property
    def state(self) -> str:
        """`failed`, `ready` (a worker is there), what its source says (`building`, `starting`, `warm`), or `cold`."""
        if self.failure is not None:
            return "failed"
        if self.slots.serving():
            return "ready"
        return self.stage or ("starting" if self.ensured and len(self.queue) else "cold")

    def count(self, status: Status) -> None:
        """One more call has ended so."""
        if status is Status.SUCCESS:
            self.completed += 1
        elif status is Status.CANCELLED:
            self.cancelled += 1
        else:
            self.failed += 1

    def health(self) -> dict[str, dict[str, int]]:
        """Jobs and workers by state, in RunPod's words."""
        serving = self.slots.serving()
        begun = sum(len(worker.calls) - worker.unstarted for worker in self.slots.workers.values())
        begun += sum(len(lost.calls) for lost in self.lost.values())
        unstarted = sum(worker.unstarted for worker in self.slots.workers.values())
        busy = sum(1 for worker in serving if worker.calls)
        return {
            "jobs": {
                "completed": self.completed,
                "failed": self.failed,
                "inProgress": begun,
                "inQueue": self.queue.size + unstarted,
                "retried": self.retried,
            },
            "workers": {
                "idle": len(serving) - busy,
                "initializing": max(0, self.asked - len(serving)) if self.failure is None else 0,
                "ready": len(serving),
                "running": busy,
                "throttled": 0,
                "unhealthy": self.failed_starts,
            },
        }

    def status(self) -> dict[str, Any]:
        """For `flash status`: plain values."""
        wrong = self.failure or self.problem
        return {
            "name": self.plan.name,
            "build": self.plan.build,
            "state": self.state,
            "error": None if wrong is None else {"code": wrong.code, "message": str(wrong)},
            "mode": self.plan.mode,
            "functions": sorted(self.plan.functions),
            "queued": len(self.queue),
            "running": self.slots.running(),
            "completed": self.completed,
            "failed": self.failed,
            "cancelled": self.cancelled,
            "retried": self.retried,
            "peer_calls": self.peer_calls,
            "workers_min": self.plan.workers_min,
            "workers_max": self.plan.workers_max,
            "mean_run_ms": None if self.mean_run_s is None else round(self.mean_run_s * 1000, 3),
            "forkable": self.info.get("state") != "not_forkable",
            "reason": self.info.get("reason", ""),
            "workers": len(self.slots.serving()),
            "processes": [_worker_status(worker) for worker in self.slots.workers.values()],
        }


def _worker_status(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "pid": worker.pid,
        "build": worker.build,
        "state": "draining" if worker.draining else ("busy" if worker.calls else "idle"),
        "free": worker.free,
        "running": list(worker.calls),
    }
