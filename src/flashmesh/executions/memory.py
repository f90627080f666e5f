"""Executions in this process's memory: what `flash run` uses. Nothing outlives the process."""

import time
from collections import OrderedDict
from collections.abc import Callable

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Retention, fingerprint
from flashmesh.functions.errors import DuplicateExecution, ExecutionNotFound, IdempotencyConflict
from flashmesh.kit.ids import ExecutionId

_SWEEP_S = 1.0
"""How often, at most, calls that end look for others that are too old; whoever asks for one always looks."""


class MemoryStore:
    """The Store port over dictionaries.

    Ended executions are kept in the order they ended, those with an idempotency key apart: the count bounds the former
    only, and the bytes bound takes just the result from the latter, so a key stays known for its whole age.
    """

    def __init__(self, *, now: Callable[[], float] = time.time, retention: Retention | None = None) -> None:
        """`now` gives UTC seconds, as `Execution.ended_at`."""
        self._now = now
        self._retention = retention or Retention()
        self._executions: dict[ExecutionId, Execution] = {}
        # OrderedDict: the first entry is found at once, where a dict walks over those deleted before it.
        self._ended: OrderedDict[ExecutionId, int] = OrderedDict()
        self._ended_keyed: OrderedDict[ExecutionId, int] = OrderedDict()
        self._ended_bytes = 0
        self._sweep_at = 0.0
        self._keys: dict[tuple[str, str], tuple[bytes, ExecutionId]] = {}

    def create(self, execution: Execution) -> Execution:
        if execution.id in self._executions:
            raise DuplicateExecution(f"an execution {execution.id} exists already. Make a new id for every call")
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
        self._executions[execution.id] = execution
        return execution

    def get(self, execution: ExecutionId) -> Execution:
        self._evict_old()
        try:
            return self._executions[execution]
        except KeyError:
            raise ExecutionNotFound(
                f"no execution {execution} is known; it may be too old to be kept. `flash status` shows what runs"
            ) from None

    def start(self, execution: Execution, attempt: int, *, at: float, worker: str, build: str) -> None:
        execution.advance(Event.START, attempt)
        execution.started_at = at
        execution.worker = worker
        execution.build = build

    def requeue(self, execution: Execution, attempt: int) -> None:
        execution.advance(Event.REQUEUE, attempt)
        execution.started_at = None
        execution.worker = ""

    def finish(self, execution: Execution, attempt: int, outcome: Outcome, *, at: float) -> None:
        execution.advance(outcome.event, attempt)
        execution.ended_at = at
        execution.payload = b""
        execution.result = outcome.result
        execution.result_type = outcome.result_type
        execution.error_code = outcome.error_code
        execution.error_message = outcome.error_message
        execution.run_us = outcome.run_us
        if self._executions.get(execution.id) is not execution:
            return
        size = execution.size_bytes
        (self._ended if execution.idempotency_key is None else self._ended_keyed)[execution.id] = size
        self._ended_bytes += size
        if (
            len(self._ended) > self._retention.count
            or self._ended_bytes > self._retention.bytes
            or at >= self._sweep_at
        ):
            self._evict()

    def recent(self, *, function: str | None = None, status: Status | None = None, limit: int = 100) -> list[Execution]:
        self._evict_old()
        found: list[Execution] = []
        for execution in reversed(self._executions.values()):
            if len(found) >= limit:
                break
            if (function is None or execution.function == function) and (status is None or execution.status is status):
                found.append(execution)
        return found

    def unfinished(self) -> list[Execution]:
        return [execution for execution in self._executions.values() if not execution.ended]

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
            while ended:
                ended_at = self._executions[next(iter(ended))].ended_at
                if ended_at is None or ended_at >= oldest:
                    break
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
            execution.result, execution.items, execution.result_evicted = b"", None, True
            self._ended_bytes -= size
            self._ended_keyed[kept] = 0
