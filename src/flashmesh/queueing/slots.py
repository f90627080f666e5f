"""What each worker can take, as far as the session knows.

A worker reports `free` (slots not in use, and calls that may wait behind those) in READY, RESULT, ERROR and CREDIT; it
does not count calls that it has not begun. So what may be sent is the last report, minus those. STARTED moves one from
"not begun" to "in use" and leaves the difference as it was.
"""

from collections.abc import Callable
from math import inf

from flashmesh.kit.ids import BuildId, ExecutionId, WorkerId
from flashmesh.queueing.calls import Call
from flashmesh.queueing.ports import WorkerPort
from flashmesh.wire.frames import AnyFrame


class Worker:
    """One worker process that said READY. `draining`: it gets nothing more."""

    __slots__ = (
        "build",
        "calls",
        "draining",
        "external",
        "given_up",
        "id",
        "last_used",
        "moved_at",
        "pid",
        "port",
        "ready_at",
        "remote",
        "reported",
        "send_now",
        "slots",
        "stuck",
        "unacknowledged",
        "unstarted",
    )

    def __init__(
        self,
        id: WorkerId,
        *,
        build: BuildId,
        pid: int,
        port: WorkerPort,
        free: int,
        now: float,
        slots: int = 0,
        remote: bool = False,
        external: bool = False,
    ) -> None:
        """Args:
        free: what it said at READY. slots: calls it runs at a time, as far as it told; 0: take `free` for it.
        remote: on another machine, where a connection may break under a worker that lives.
        external: an adapter in this process; it keeps nothing and begins what it gets.
        """
        self.id = id
        self.build = build
        self.pid = pid
        self.port = port
        self.send_now: Callable[[AnyFrame], None] = getattr(port, "send_now", port.send)
        """For a call that finds it idle."""
        self.reported = free
        self.unstarted = 0
        self.calls: dict[ExecutionId, Call] = {}
        """What it was sent and has not answered."""
        self.given_up: set[ExecutionId] = set()
        """Executions it had begun and overran; another attempt of them does not go to the same process."""
        self.draining = False
        self.slots = max(1, slots or free)
        self.remote = remote
        self.external = external
        self.stuck = False
        """What waited behind its running calls was taken back; until one of them ends nothing is sent ahead."""
        self.unacknowledged = 0
        """Outcomes it keeps until they are stored."""
        self.moved_at = now
        """When it last began or ended a call."""
        self.ready_at = now
        self.last_used = -inf
        """One that was never used comes after all that were: a class's instance stays where the last call found it."""

    @property
    def free(self) -> int:
        """How many calls may be sent now."""
        if self.draining:
            return 0
        room = self.reported - self.unstarted
        return max(0, min(room, self.idle) if self.stuck else room)

    @property
    def idle(self) -> int:
        """Slots without a call of ours. Negative: so many calls wait behind those that run."""
        return self.slots - len(self.calls)

    def close_if_done(self) -> None:
        """End the connection of a worker that leaves, once nothing of either side is missing."""
        if self.draining and not self.calls and not self.unacknowledged:
            self.port.close()

    def waiting(self) -> list[Call]:
        """Calls it has not begun and cannot begin before another one ends, oldest first."""
        waiting = [call for call in self.calls.values() if call.started_at is None]
        soon = max(0, self.slots - (len(self.calls) - len(waiting)))
        return waiting[soon:]


class Slots:
    """The workers of one endpoint.

    As soon as one worker of the current build is ready, those of earlier builds get no more calls: what was saved is
    what runs. Until then they serve.
    """

    __slots__ = ("_serving", "build", "uniform", "workers")

    def __init__(self, build: BuildId) -> None:
        self.build = build
        """The build that should serve."""
        self.workers: dict[WorkerId, Worker] = {}
        self.uniform = True
        """Every worker runs the current build, so that no call can be bound to another one."""
        self._serving: list[Worker] = []

    def serving(self) -> list[Worker]:
        """Workers that new calls may go to, free or not. Not to be changed by the caller."""
        return self._serving

    def add(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        self._sort_out()

    def remove(self, worker: Worker) -> None:
        """No effect when it is gone already."""
        if self.workers.pop(worker.id, None) is not None:
            self._sort_out()

    def drain(self, worker: Worker) -> None:
        """Send it nothing more."""
        worker.draining = True
        self._sort_out()

    def serve(self, build: BuildId) -> None:
        """Another build should serve from now on."""
        self.build = build
        self._sort_out()

    def has_room(self) -> bool:
        """Whether a call could be sent now."""
        for worker in self._serving:
            if worker.reported > worker.unstarted and (not worker.stuck or worker.idle > 0):
                return True
        return False

    def running(self) -> int:
        """Calls handed to any worker, draining ones included."""
        return sum(len(worker.calls) for worker in self.workers.values())

    def _sort_out(self) -> None:
        present = [worker for worker in self.workers.values() if not worker.draining]
        current = [worker for worker in present if worker.build == self.build]
        self._serving = current or present
        self.uniform = len(current) == len(self.workers)
