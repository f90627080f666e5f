"""What the faces answer, as structs: the OpenAPI document is made of them, and the tests read real answers with them.

The answers themselves are spliced from bytes and never pass through these.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

FunctionWord = Literal["queued", "running", "success", "error", "timeout", "cancelled"]
JobWord = Literal["IN_QUEUE", "IN_PROGRESS", "COMPLETED", "FAILED", "TIMED_OUT", "CANCELLED"]
Moment = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Milliseconds = Annotated[float, Meta(ge=0)]


class Refusal(Struct, forbid_unknown_fields=True):
    """The request was not taken. `error` is a code, `message` ends in what to do, `details` name fields."""

    error: str
    message: str
    details: list[str] | UnsetType = UNSET


class ExecutionError(Struct, forbid_unknown_fields=True):
    """Why an execution failed."""

    code: str
    message: str
    type: str
    field: str | UnsetType = UNSET
    traceback: str | UnsetType = UNSET


class InvocationResponse(Struct, forbid_unknown_fields=True):
    """How a call ended, or (408) where it stands."""

    executionId: str  # noqa: N815
    status: FunctionWord
    output: Any = None
    error: ExecutionError | UnsetType = UNSET


class EnqueueResponse(Struct, forbid_unknown_fields=True):
    """An accepted call; `queued` unless the idempotency key names one that has gone further."""

    executionId: str  # noqa: N815
    status: FunctionWord


class ExecutionStatus(Struct, forbid_unknown_fields=True):
    """An execution. Times are UTC; `initDurationMs` is what starting a worker took, null when one was there."""

    executionId: str  # noqa: N815
    function: str
    endpoint: str
    kind: Literal["sync", "async"]
    status: FunctionWord
    createdAt: Moment  # noqa: N815
    startedAt: Moment | None  # noqa: N815
    finishedAt: Moment | None  # noqa: N815
    attempt: Annotated[int, Meta(ge=1)]
    coldStart: bool  # noqa: N815
    initDurationMs: int | None  # noqa: N815
    queueMs: Milliseconds  # noqa: N815
    runMs: Milliseconds  # noqa: N815
    worker: str | UnsetType = UNSET
    retriedFrom: str | UnsetType = UNSET  # noqa: N815
    traceId: str | UnsetType = UNSET  # noqa: N815
    metadata: dict[str, Any] | UnsetType = UNSET
    error: ExecutionError | UnsetType = UNSET
    output: Any = None


class ExecutionList(Struct, forbid_unknown_fields=True):
    """Newest first, without outputs. `next`: give it as `after` for the following page; null on the last."""

    executions: list[ExecutionStatus]
    next: str | None


class CompletionError(Struct):
    """Why an external function failed."""

    code: str | None = None
    message: str | None = None


class InvocationResult(Struct, forbid_unknown_fields=True):
    """How an external function that answered 202 has ended."""

    success: bool
    output: Any = None
    error: CompletionError | None = None


class FunctionResponse(Struct):
    """A function as it is served. `timeoutMs` null: its calls have no limit."""

    name: str
    executionMode: str | UnsetType | None = UNSET  # noqa: N815
    concurrency: int | UnsetType | None = UNSET
    timeoutMs: int | UnsetType | None = UNSET  # noqa: N815
    queueSize: int | UnsetType | None = UNSET  # noqa: N815
    maxRetries: int | UnsetType | None = UNSET  # noqa: N815


class JobRefusal(Struct, forbid_unknown_fields=True):
    """The request was not taken. `error` says why in words."""

    error: str
    error_type: str
    code: str
    field: str | UnsetType = UNSET


class Accepted(Struct, forbid_unknown_fields=True):
    """An accepted job."""

    id: str
    status: JobWord


class JobStatus(Struct, forbid_unknown_fields=True):
    """A job. Times are milliseconds."""

    id: str
    status: JobWord
    delayTime: Annotated[int, Meta(ge=0)] | UnsetType = UNSET  # noqa: N815
    executionTime: Annotated[int, Meta(ge=0)] | UnsetType = UNSET  # noqa: N815
    workerId: str | UnsetType = UNSET  # noqa: N815
    retriedFrom: str | UnsetType = UNSET  # noqa: N815
    output: Any = None
    error: str | UnsetType = UNSET
    error_type: str | UnsetType = UNSET
    code: str | UnsetType = UNSET
    field: str | UnsetType = UNSET
    traceback: str | UnsetType = UNSET


class StreamedItem(Struct, forbid_unknown_fields=True):
    output: Any


class JobStream(Struct, forbid_unknown_fields=True):
    """What a job has yielded since the last time it was asked."""

    status: JobWord
    stream: list[StreamedItem]


class JobCounts(Struct, forbid_unknown_fields=True):
    completed: int
    failed: int
    inProgress: int  # noqa: N815
    inQueue: int  # noqa: N815
    retried: int


class WorkerCounts(Struct, forbid_unknown_fields=True):
    idle: int
    initializing: int
    ready: int
    running: int
    throttled: int
    unhealthy: int


class EndpointHealth(Struct, forbid_unknown_fields=True):
    """How many jobs and workers of an endpoint are in which state."""

    jobs: JobCounts
    workers: WorkerCounts


class Purged(Struct, forbid_unknown_fields=True):
    """How many waiting jobs were cancelled."""

    removed: int
    status: Literal["completed"]


class Health(Struct, forbid_unknown_fields=True):
    status: Literal["ok"]


class Unready(Struct, forbid_unknown_fields=True):
    """An endpoint that cannot run calls, or without `endpoint` what keeps the server from serving at all.

    The message is shown to whoever may see more than that.
    """

    code: str
    endpoint: str | UnsetType = UNSET
    message: str | UnsetType = UNSET


class Readiness(Struct, forbid_unknown_fields=True):
    """Whether the server can serve. `degraded`: it does, but for the endpoints among the reasons."""

    status: Literal["ok", "degraded", "unavailable"]
    reasons: list[Unready] | UnsetType = UNSET


class Greeting(Struct, forbid_unknown_fields=True):
    message: str
    docs: str


STRUCTS: tuple[type[Struct], ...] = (
    Refusal,
    InvocationResponse,
    EnqueueResponse,
    ExecutionStatus,
    ExecutionList,
    InvocationResult,
    FunctionResponse,
    JobRefusal,
    Accepted,
    JobStatus,
    JobStream,
    EndpointHealth,
    Purged,
    Health,
    Readiness,
    Greeting,
)


def component_schemas(*more: type[Any]) -> dict[str, Any]:
    """JSON schemas by name, of the answers and of `more` structs."""
    _, found = msgspec.json.schema_components((*STRUCTS, *more), ref_template="#/components/schemas/{name}")
    return dict(found)
