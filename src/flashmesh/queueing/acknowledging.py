"""Tells workers which outcomes they need not keep any more: those of the records that are stored."""

from typing import Final

from flashmesh.executions.store import Store, StoreUnavailable
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.ports import Clock
from flashmesh.queueing.slots import Worker
from flashmesh.wire.frames import Ack

AGAIN_S: Final = 1.0
"""How long after a commit that failed the store is asked again. The worker keeps the outcome meanwhile."""


class Acknowledgements:
    """All that became due within one turn of the loop leave as one ACK per worker."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._due: dict[Worker, list[str]] = {}

    def when_durable(self, worker: Worker, execution: ExecutionId) -> None:
        """Acknowledge an outcome once what was said of it to the store is durable.

        One that nobody wants too, of an attempt that is over or of a call that has ended: what ended it must be stored.
        """
        if not worker.external:
            worker.unacknowledged += 1
            self._ask(worker, execution)

    def _ask(self, worker: Worker, execution: ExecutionId) -> None:
        self._store.when_durable(lambda error: self._stored(worker, execution, error), about=execution)

    def _stored(self, worker: Worker, execution: ExecutionId, error: StoreUnavailable | None) -> None:
        if error is not None:
            self._clock.call_later(AGAIN_S, lambda: self._ask(worker, execution))
            return
        worker.unacknowledged -= 1
        if not self._due:
            self._clock.call_later(0, self._send)
        self._due.setdefault(worker, []).append(execution)

    def _send(self) -> None:
        due, self._due = self._due, {}
        for worker, executions in due.items():
            worker.port.send(Ack(executions))
            worker.close_if_done()
