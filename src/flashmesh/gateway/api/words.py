"""Each face's words for the states of an execution, and the pieces its answers are spliced from. Pure."""

from datetime import UTC, datetime
from typing import Final

from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.wire.frames import JSON, MSGPACK
from flashmesh.wire.plain_json import dump as dump

FUNCTION_WORDS: Final = {
    Status.QUEUED: "queued",
    Status.RUNNING: "running",
    Status.SUCCESS: "success",
    Status.ERROR: "error",
    Status.TIMEOUT: "timeout",
    Status.CANCELLED: "cancelled",
}
"""The functions API's words."""
QUEUE_WORDS: Final = {
    Status.QUEUED: "IN_QUEUE",
    Status.RUNNING: "IN_PROGRESS",
    Status.SUCCESS: "COMPLETED",
    Status.ERROR: "FAILED",
    Status.TIMEOUT: "TIMED_OUT",
    Status.CANCELLED: "CANCELLED",
}
"""The queue API's words, as RunPod's clients know them."""
_CODES: Final = {"TIMEOUT": Status.TIMEOUT, "CANCELLED": Status.CANCELLED}


def status_of_code(code: str) -> Status:
    """The final state that an error of this code ends an execution in."""
    return _CODES.get(code, Status.ERROR)


def moment(seconds: float | None) -> str | None:
    """UTC seconds as RFC 3339 with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def as_json(payload: bytes, content_type: str) -> bytes:
    """A stored result as JSON text; what was kept in another form is turned into it."""
    if content_type == JSON or not content_type:
        return payload or b"null"
    from flashmesh.wire import values  # only for results that a client asked for in another form

    return values.encode(values.decode(payload, content_type) if content_type == MSGPACK else payload, JSON)


def run_ms(execution: Execution) -> int:
    return round(execution.run_us / 1000)


def delay_ms(execution: Execution) -> int:
    """How long it waited before its body began, cold start included."""
    return round((execution.queue_us + execution.cold_us) / 1000)
