"""What the session remembers of an execution, as the queue API shows it."""

from typing import Any

from flashmesh.dev.server import answers
from flashmesh.gateway.api.words import as_json
from flashmesh.wire import failures
from flashmesh.wire.frames import JSON

__all__ = ["as_json", "status_body"]


def status_body(record: dict[str, Any]) -> bytes:
    """`{"id","status","output"?,"error"?,"delayTime","executionTime"}` of an execution; times are milliseconds."""
    word = answers.STATUS_WORDS.get(record["status"], record["status"])
    told: dict[str, Any] = {"id": record["id"], "status": word}
    for name, key in (("delayTime", "queue_ms"), ("executionTime", "run_ms")):
        if record.get(key) is not None:
            told[name] = round(record[key])
    told |= _error_fields(record.get("error"))
    head = answers.dump(told)
    if word != "COMPLETED" or record.get("payload") is None:
        return head
    return head[:-1] + b',"output":' + as_json(record["payload"], record.get("content_type", JSON)) + b"}"


def _error_fields(error: Any) -> dict[str, Any]:
    if not error:
        return {}
    if isinstance(error, bytes):
        error = failures.to_http(failures.unpack(error))
    fields = {"error": error.get("message"), "error_type": error.get("type"), "code": error.get("code")}
    fields |= {key: error[key] for key in ("field", "traceback") if error.get(key)}
    return fields
