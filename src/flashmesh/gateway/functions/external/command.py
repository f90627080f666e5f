"""A function that is a command on this machine: as many processes as its queue calls for, between min and max.

The dispatcher says how many are wanted (`scale`) and hears of every one that is ready or has ended. A process that
ends unasked is replaced after a back-off when the smallest number or waiting calls need it; one that is idle for long
leaves.
"""

from typing import Final

from flashmesh.executions.backoff import backoff_s
from flashmesh.gateway.functions.external.far_end import FarEnd
from flashmesh.gateway.functions.external.per_call import PerCallCarrier
from flashmesh.gateway.functions.external.pipes import Output
from flashmesh.gateway.functions.external.replica import Replica
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.spec import External
from flashmesh.kit.ids import BuildId, EndpointName, WorkerId
from flashmesh.queueing.ports import Timer

_SOONEST_S: Final = 0.05
"""No look for idle processes comes sooner after another, however short their idle time may be."""


def output_of(external: External, around: Surroundings) -> Output:
    return Output(loop=around.loop, wall=around.wall, endpoint=EndpointName(external.name), on_log=around.on_log)


class CommandFunction:
    """What the registry holds of a function whose processes stay."""

    def __init__(self, external: External, build: BuildId, *, around: Surroundings) -> None:
        self._external = external
        self._build = build
        self._around = around
        self._output = output_of(external, around)
        self._replicas: list[Replica] = []
        self._count = 0
        self._wanted = 0
        """Grows when the dispatcher asks, shrinks by each process that leaves: just as the dispatcher counts."""
        self._failures = 0
        """Processes in a row that ended unasked without having answered a call."""
        self._again: Timer | None = None
        self._idle_timer: Timer | None = None
        self._retired = False

    # What the registry and the dispatcher say

    def start(self) -> None:
        self.scale(self._external.processes_min)

    def scale(self, workers: int) -> None:
        """So many are wanted now; fewer only ever by being idle."""
        external = self._external
        self._wanted = max(self._wanted, external.processes_min, min(workers, external.processes_max))
        self._fill()

    def amend(self, external: External) -> None:
        """Its spec was changed in what may be changed."""
        self._external = external
        for replica in self._replicas:
            replica.resize(external.calls_per_process)
        self._wanted = max(external.processes_min, min(self._wanted, external.processes_max))
        self._shrink(now=True)
        self._fill()

    def far_ends(self) -> tuple[FarEnd, ...]:
        return tuple(replica.far_end for replica in self._replicas if replica.far_end is not None)

    @property
    def ready(self) -> int:
        """Processes that take calls."""
        return sum(replica.far_end is not None and replica.staying for replica in self._replicas)

    def retire(self) -> None:
        """Take nothing more; what is in flight finishes, then the processes end."""
        self._retired = True
        self._drop_timers()
        for replica in list(self._replicas):
            replica.retire("removed")

    async def close(self) -> None:
        """End at once, whatever runs."""
        self._retired = True
        self._drop_timers()
        for replica in list(self._replicas):
            replica.kill()
        self._output.close()

    # What replicas say

    def replica_ready(self, replica: Replica) -> None:
        self._arm()

    def replica_leaving(self, replica: Replica) -> None:
        self._one_less()
        self._around.loop.call_soon(self._fill)

    def replica_ended(self, replica: Replica, *, failed: bool, counted: bool) -> None:
        """Before the dispatcher hears of it, who may ask for another one. `counted`: it was known to be leaving."""
        self._replicas.remove(replica)
        if replica.far_end is not None and replica.far_end.succeeded:
            self._failures = 0
        if failed:
            self._failures += 1
        if not counted:
            self._one_less()
        self._around.loop.call_soon(self._fill)

    def _one_less(self) -> None:
        self._wanted = max(0 if self._retired else self._external.processes_min, self._wanted - 1)

    # Acting

    def _active(self) -> int:
        return sum(replica.staying for replica in self._replicas)

    def _fill(self) -> None:
        """Start what is missing; after failures not before a back-off."""
        if self._retired or self._again is not None or self._active() >= self._wanted:
            return
        if self._failures:
            self._again = self._around.loop.call_later(backoff_s(self._failures), self._fill_now)
        else:
            self._fill_now()

    def _fill_now(self) -> None:
        self._again = None
        while not self._retired and self._active() < self._wanted:
            self._count += 1
            try:
                replica = Replica(
                    self._external, self._build, self._count, around=self._around, output=self._output, owner=self
                )
            except OSError as error:
                self._could_not_start(error)
                return
            self._replicas.append(replica)

    def _could_not_start(self, error: OSError) -> None:
        self._failures += 1
        self._one_less()
        name = EndpointName(self._external.name)
        why = f"no process could be started ({error.strerror or error})"
        worker = WorkerId(f"{name}/{self._build}.{self._count}")
        # Not from inside the dispatcher's own asking.
        self._around.loop.call_soon(self._around.dispatcher.worker_gone, name, worker, 1, why)

    def _arm(self) -> None:
        """Look again when the first of them may have been idle for long enough."""
        if self._idle_timer is None and not self._retired and self._active() > self._external.processes_min:
            since = [replica.idle_since for replica in self._replicas if replica.staying]
            now = self._around.loop.time()
            due = min((now if at is None else at) for at in since) + self._external.idle_s
            self._idle_timer = self._around.loop.call_later(max(_SOONEST_S, due - now), self._look)

    def _look(self) -> None:
        self._idle_timer = None
        self._shrink()
        self._arm()

    def _shrink(self, *, now: bool = False) -> None:
        """Let those go that are idle beyond the smallest number. `now`: however short a time."""
        latest = self._around.loop.time() - (0.0 if now else self._external.idle_s)
        spare = self._active() - self._external.processes_min
        for replica in self._replicas[::-1]:
            since = replica.idle_since
            if spare > 0 and since is not None and since <= latest:
                replica.retire("idle")
                spare -= 1

    def _drop_timers(self) -> None:
        for timer in (self._again, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._again = self._idle_timer = None


class PerCallFunction:
    """What the registry holds of a function that gets a process for each call."""

    def __init__(self, external: External, build: BuildId, *, around: Surroundings) -> None:
        name = EndpointName(external.name)
        self._output = output_of(external, around)
        self._carrier = PerCallCarrier(external, around=around, output=self._output)
        self._far_end = FarEnd(
            dispatcher=around.dispatcher,
            loop=around.loop,
            endpoint=name,
            build=build,
            id=WorkerId(f"{name}/{build}.calls"),
            slots=external.spec.concurrency,
            carrier=self._carrier,
        )

    def start(self) -> None:
        self._far_end.ready()

    def scale(self, workers: int) -> None:
        """Nothing to do: each call brings its own process."""

    def amend(self, external: External) -> None:
        self._carrier.external = external
        self._far_end.resize(external.spec.concurrency)

    def far_ends(self) -> tuple[FarEnd, ...]:
        return (self._far_end,)

    @property
    def ready(self) -> int:
        return 0

    def retire(self) -> None:
        self._far_end.drain("removed")

    async def close(self) -> None:
        self._carrier.close()
        self._output.close()
