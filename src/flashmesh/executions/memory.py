"""Executions in this process's memory: what `flash run` uses. Nothing outlives the process."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import islice

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Status
from flashmesh.executions.store import Retention, StoreUnavailable, already_exists, fingerprint, unknown
from flashmesh.functions.errors import IdempotencyConflict
from flashmesh.kit.clock import SteadyClock
from flashmesh.kit.ids import ExecutionId

_SWEEP_S = 1.0
"""How often, at most, calls that end look for others that are too old; whoever asks for one always looks."""


class MemoryStore:
    """The Store port over dictionaries.

    Ended executions are kept in the order they ended, those with an idempotency key apart: the count bounds the former
    only, and the bytes bound takes just the result from the latter, so a key stays known for its whole age.
    """

    unavailable: Exception | None = None
    """There is no disk to be full."""

    def __init__(self, *, now: Callable[[], float] | None = None, retention: Retention | None = None) -> None:
        """`now` gives seconds of a clock that nobody sets; by it ages are told. Default SteadyClock."""
        self._now = now or SteadyClock()
        self._retention = retention or Retention()
        self._executions: dict[ExecutionId, Execution] = {}
        # OrderedDict: the first entry is found at once, where a dict walks over those deleted before it.
        self._ended: OrderedDict[ExecutionId, int] = OrderedDict()
        self._ended_keyed: OrderedDict[ExecutionId, int] = OrderedDict()
        self._ended_bytes = 0
        self._sweep_at = 0.0
        self._keys: dict[tuple[str, str], tuple[bytes, ExecutionId]] = {}
        self._row = 0

    def create(self, execution: Execution) -> Execution:
        if execution.id in self._executions:
            raise already_exists(execution.id)
        key = execution.idempotency_key
        if key is not None:
            self._evict_old()
            known = self._keys.get((execution.function, key))
            body = fingerprint(execution.function, execution.content_type, execution.payload)
            if known is not None:
                if known[0] != body:
                    raise IdempotencyConflict
                return self._executions[known[1]]
            self._keys[(execution.function, key)] = (body, execution.id)
        self._row += 1
        execution.row = self._row
        self._executions[execution.id] = execution
        return execution

    def get(self, execution: ExecutionId) -> Execution:
        self._evict_old()
        try:
            return self._executions[execution]
        except KeyError:
            raise unknown(execution) from None

    def start(self, execution: Execution, attempt: int, *, at: float, worker: str, build: str) -> None:
        execution.begin(attempt, at=at, worker=worker, build=build)

    def requeue(self, execution: Execution, attempt: int) -> None:
        execution.wait_again(attempt)

    def finish(self, execution: Execution, attempt: int, outcome: Outcome, *, at: float) -> None:
        execution.end(attempt, outcome, at=at)
        if self._executions.get(execution.id) is not execution:
            return
        size, now = execution.size_bytes, self._now()
        execution.booked_at = now
        (self._ended if execution.idempotency_key is None else self._ended_keyed)[execution.id] = size
        self._ended_bytes += size
        if (
            len(self._ended) > self._retention.count
            or self._ended_bytes > self._retention.bytes
            or now >= self._sweep_at
        ):
            self._evict()

    def payload(self, execution: Execution) -> bytes | None:
        return None if execution.payload_dropped else execution.payload

    def recent(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        after: ExecutionId | None = None,
    ) -> list[Execution]:
        self._evict_old()
        before = None if after is None else self.get(after).row
        matching = (
            execution
            for execution in reversed(self._executions.values())
            if (before is None or execution.row < before)
            and (function is None or execution.function == function)
            and (status is None or execution.status is status)
        )
        return list(islice(matching, limit))

    def unfinished(self) -> list[Execution]:
        return [execution for execution in self._executions.values() if not execution.ended]

    def when_durable(
        self, then: Callable[[StoreUnavailable | None], None], *, about: ExecutionId | None = None
    ) -> None:
        then(None)

    def _evict(self) -> None:
        retention = self._retention
        while len(self._ended) > retention.count:
            self._forget(self._ended)
        while self._ended_bytes > retention.bytes and self._ended:
            self._forget(self._ended)
        if self._ended_bytes > retention.bytes:
            self._drop_results()
        if self._now() >= self._sweep_at:
            self._evict_old()

    def _evict_old(self) -> None:
        now = self._now()
        self._sweep_at = now + _SWEEP_S
        oldest = now - self._retention.age_s
        for ended in (self._ended, self._ended_keyed):
            while ended and self._executions[next(iter(ended))].booked_at < oldest:
                self._forget(ended)

    def _forget(self, ended: OrderedDict[ExecutionId, int]) -> None:
        """Evict the execution that ended first among `ended`."""
        oldest, size = ended.popitem(last=False)
        self._ended_bytes -= size
        execution = self._executions.pop(oldest)
        if execution.idempotency_key is not None:
            del self._keys[(execution.function, execution.idempotency_key)]

    def _drop_results(self) -> None:
        """Take the results of the oldest keyed executions until the bytes fit; their keys stay known."""
        for kept, size in self._ended_keyed.items():
            if self._ended_bytes <= self._retention.bytes:
                return
            if not size:
                continue
            execution = self._executions[kept]
            execution.drop_result()
            self._ended_bytes -= size
            self._ended_keyed[kept] = 0
