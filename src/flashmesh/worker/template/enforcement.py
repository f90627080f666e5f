"""Ends calls that were cancelled or ran too long: a signal first, the process's group two seconds later."""

import os
import signal
import time
from collections.abc import Iterable

from flashmesh.worker.eventloop import EventLoop, Timer
from flashmesh.worker.records import Reason, Running
from flashmesh.worker.template.deadlines import GRACE_S, RECHECK_S, next_check_ns, overdue
from flashmesh.worker.template.generation import Generation, Worker


class Enforcement:
    """Reads all workers' records when a deadline may have passed, and at no other time."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._generations: list[Generation] = []
        self._timer: Timer | None = None
        self._asked: set[tuple[int, int, int, int]] = set()  # generation, pid, slot, seq

    def attend(self, generations: Iterable[Generation]) -> None:
        """These are the generations now; look, and plan the next look."""
        self._generations = list(generations)
        self._look()

    def forget(self, generation: Generation) -> None:
        self._generations = [other for other in self._generations if other is not generation]
        self._asked = {asked for asked in self._asked if asked[0] != id(generation)}

    def cancel(self, execution: str, reason: Reason, *, attempt: int = 0) -> None:
        """End this execution wherever it runs. It may be about to start, so it is looked for again a few times."""
        for generation in self._generations:
            found = generation.find(execution)
            if found is not None:
                self._end(generation, *found, reason)
                return
        if attempt < len(RECHECK_S):
            self._loop.later(RECHECK_S[attempt], lambda: self.cancel(execution, reason, attempt=attempt + 1))

    def _look(self) -> None:
        now_ns = time.monotonic_ns()
        times = []
        for generation in self._generations:
            limit_ns = generation.spec.resource.execution_timeout_ms * 1_000_000
            calls = []
            for worker in generation.workers.values():
                running = worker.record.running()
                calls += running
                for call in overdue(running, now_ns):
                    self._end(generation, worker, call, "timeout")
            at = next_check_ns(calls, workers=len(generation.workers), limit_ns=limit_ns, now_ns=now_ns)
            if at is not None:
                times.append(at)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = self._loop.later((min(times) - now_ns) / 1e9 + 0.0005, self._look)

    def _end(self, generation: Generation, worker: Worker, call: Running, reason: Reason) -> None:
        key = (id(generation), worker.pid, call.slot, call.seq)
        if key in self._asked or not worker.pid:
            return
        self._asked.add(key)
        worker.record.demand(call, reason)
        try:
            os.kill(worker.pid, signal.SIGUSR1)
        except ProcessLookupError:
            return

        def insist() -> None:
            self._asked.discard(key)
            if generation.workers.get(worker.index) is worker and any(
                still.slot == call.slot and still.seq == call.seq for still in worker.record.running()
            ):
                generation.kill(worker, f"{reason} {call.execution}")

        self._loop.later(GRACE_S, insist)
