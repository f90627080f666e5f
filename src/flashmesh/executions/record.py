"""The record of one run of a function: what was asked, where it stands, what came of it."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from flashmesh.executions.items import ItemBuffer
from flashmesh.executions.states import FINAL, Event, Status, next_status
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

Kind = Literal["sync", "async"]
_START, _REQUEUE = Event.START, Event.REQUEUE  # an enum's attribute costs five times a global


class StaleAttempt(FlashmeshError):
    """An answer came from an attempt that is over; it was left aside."""

    code = "STALE_ATTEMPT"
    status = 409


class Execution(msgspec.Struct, eq=False):
    """One run. Its store alone changes it, through `advance`.

    Times are UTC seconds since the epoch. `payload` is the bytes the client sent, dropped when the execution succeeds;
    `result` is the bytes the worker sent, of type `result_type`; a failure's is the packed ErrorInfo of `wire`.
    """

    id: ExecutionId
    function: FunctionId
    endpoint: EndpointName
    kind: Kind
    created_at: float
    content_type: str = ""
    accept: str = ""
    payload: bytes = b""
    meta: Mapping[str, Any] = {}
    idempotency_key: str | None = None
    status: Status = Status.QUEUED
    attempt: int = 1
    """Number of the attempt that is running, or (QUEUED) comes next. An answer to an earlier one is stale."""
    started_at: float | None = None
    """When the body of the last attempt began."""
    ended_at: float | None = None
    worker: str = ""
    build: str = ""
    error_code: str = ""
    error_message: str = ""
    result: bytes = b""
    result_type: str = ""
    result_evicted: bool = False
    """The result was dropped to keep the store within its bytes; the record is kept for its idempotency key."""
    run_us: int = 0
    queue_us: int = 0
    cold_us: int = 0
    items: ItemBuffer | None = None
    """What a generator yielded; None for a plain function."""
    deadline_ms: int = 0
    """The run-time limit that was asked for with the call; 0 = none. After a restart the worker is given it again."""
    retried_from: ExecutionId | None = None
    """The execution that a client has repeated by making this one."""
    payload_dropped: bool = False
    """`payload` is no more: it succeeded, or its bytes had to go or were lost. Otherwise a client may have it repeated.
    """
    row: int = 0
    """Its number in its store: later executions have higher ones."""
    ended_no: int | None = None
    """Its number among those that have ended, where its store counts them."""
    booked: int = -1
    """Bytes that its store holds for it since it ended; -1: it has not, or is not in memory any more."""
    booked_at: float = 0.0
    """Since when, on a clock that nobody sets."""

    @property
    def ended(self) -> bool:
        return self.status in FINAL

    @property
    def size_bytes(self) -> int:
        """What keeping it costs beyond the record itself: payload, result and items."""
        return len(self.payload) + len(self.result) + (self.items.bytes if self.items is not None else 0)

    def advance(self, event: Event, attempt: int) -> None:
        """Apply one event of the transition table on behalf of `attempt`.

        Raises:
            StaleAttempt: `attempt` is not the current one.
            IllegalTransition: the table has no such transition. In both cases nothing has changed.
        """
        if attempt != self.attempt:
            raise StaleAttempt(f"attempt {attempt} of execution {self.id} is over; attempt {self.attempt} counts")
        self.status = next_status(self.status, event)
        if event is _REQUEUE:
            self.attempt += 1

    def begin(self, attempt: int, *, at: float, worker: str, build: str) -> None:
        """QUEUED → RUNNING. Raises as `advance`."""
        self.advance(_START, attempt)
        self.started_at = at
        self.worker = worker
        self.build = build

    def wait_again(self, attempt: int) -> None:
        """RUNNING → QUEUED. Raises as `advance`."""
        self.advance(Event.REQUEUE, attempt)
        self.started_at = None
        self.worker = ""

    def end(self, attempt: int, outcome: "Outcome", *, at: float) -> None:
        """Enter a final state. Raises as `advance`."""
        self.advance(outcome.event, attempt)
        self.ended_at = at
        if outcome.event is Event.SUCCEED:
            self.payload, self.payload_dropped = b"", True
        self.result = outcome.result
        self.result_type = outcome.result_type
        self.error_code = outcome.error_code
        self.error_message = outcome.error_message
        self.run_us = outcome.run_us

    def drop_result(self) -> None:
        """Make room: the record stays, what was asked and what came of it do not."""
        self.drop_payload()
        self.result, self.items, self.result_evicted = b"", None, True

    def drop_payload(self) -> None:
        """It cannot be run again."""
        self.payload, self.payload_dropped = b"", True


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended for good. `event` is SUCCEED, FAIL, TIME_OUT or CANCEL."""

    event: Event
    result: bytes = b""
    result_type: str = ""
    error_code: str = ""
    error_message: str = ""
    run_us: int = 0
