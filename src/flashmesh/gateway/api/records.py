"""An execution as each face shows it, spliced from the bytes its worker sent. Pure."""

from typing import Any

from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.gateway.api.failures import error_fields, error_object
from flashmesh.gateway.api.words import FUNCTION_WORDS, QUEUE_WORDS, as_json, delay_ms, dump, moment, run_ms
from flashmesh.gateway.calls import EvictedResult
from flashmesh.queueing.settlement import output
from flashmesh.wire.failures import ErrorInfo, unpack


def error_of(execution: Execution) -> ErrorInfo:
    """What went wrong with a failed execution."""
    if execution.result and execution.status is not Status.SUCCESS:
        return unpack(execution.result)
    return ErrorInfo(code=execution.error_code, type=execution.error_code, message=execution.error_message)


def execution_fields(execution: Execution) -> dict[str, Any]:
    """ExecutionStatus of the functions API, without its output."""
    fields: dict[str, Any] = {
        "executionId": execution.id,
        "function": execution.function,
        "endpoint": execution.endpoint,
        "kind": execution.kind,
        "status": FUNCTION_WORDS[execution.status],
        "createdAt": moment(execution.created_at),
        "startedAt": moment(execution.started_at),
        "finishedAt": moment(execution.ended_at),
        "attempt": execution.attempt,
        "coldStart": execution.cold_us > 0,
        "initDurationMs": round(execution.cold_us / 1000) if execution.cold_us else None,
        "queueMs": round(execution.queue_us / 1000, 3),
        "runMs": round(execution.run_us / 1000, 3),
    }
    more = {
        "worker": execution.worker,
        "retriedFrom": retried_from(execution),
        "traceId": execution.meta.get("trace"),
        "metadata": execution.meta.get("metadata"),
    }
    fields |= {key: value for key, value in more.items() if value}
    if execution.error_code:
        fields["error"] = error_object(error_of(execution))
    return fields


def retried_from(execution: Execution) -> str | None:
    """The execution whose request this one runs again."""
    found: str | None = getattr(execution, "retried_from", None) or execution.meta.get("retried_from")
    return found


def execution_body(execution: Execution) -> bytes:
    """ExecutionStatus with its output. Raises EvictedResult."""
    head = dump(execution_fields(execution))
    if execution.status is not Status.SUCCESS:
        return head
    return head[:-1] + b',"output":' + json_output(execution) + b"}"


def json_output(execution: Execution) -> bytes:
    """A successful execution's result as JSON. Raises EvictedResult."""
    if execution.result_evicted:
        raise EvictedResult(execution.id)
    payload, media = output(execution)
    return as_json(payload, media)


def job_fields(execution: Execution) -> dict[str, Any]:
    """RunPod's status of a job, without its output."""
    fields: dict[str, Any] = {"id": execution.id, "status": QUEUE_WORDS[execution.status]}
    if execution.started_at is not None or execution.ended:
        fields["delayTime"] = delay_ms(execution)
    if execution.ended:
        fields["executionTime"] = run_ms(execution)
    if execution.worker:
        fields["workerId"] = execution.worker
    before = retried_from(execution)
    if before:
        fields["retriedFrom"] = before
    if execution.error_code:
        fields |= error_fields(error_of(execution))
    return fields


def job_body(execution: Execution, *, payload: bool = True) -> bytes:
    """RunPod's status of a job. Raises EvictedResult."""
    head = dump(job_fields(execution))
    if not payload or execution.status is not Status.SUCCESS:
        return head
    return head[:-1] + b',"output":' + json_output(execution) + b"}"
