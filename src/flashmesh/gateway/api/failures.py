"""Failures as the two faces tell them: refusals (nothing was accepted), and executions that did not succeed. Pure."""

import math
from functools import lru_cache
from typing import Any, Final, Literal

from flashmesh.functions.errors import FlashmeshError, QueueFull, ValidationError
from flashmesh.gateway.api.words import FUNCTION_WORDS, QUEUE_WORDS, dump, status_of_code
from flashmesh.gateway.http import AS_JSON, JSON_TYPE, Answer, Header
from flashmesh.wire import failures
from flashmesh.wire.failures import ErrorInfo

Face = Literal["functions", "queue"]
REJECT_REASON: Final = b"x-queue-reject-reason"


class InvalidRequest(ValidationError):
    """The request is not as this route wants it."""

    status = 400

    def __init__(self, message: str | None = None, *, field: str | None = None, details: tuple[str, ...] = ()) -> None:
        super().__init__(message, field=field)
        self.details = details or ((named(field, str(self)),) if field else ())


def failure(error: FlashmeshError, *, face: Face) -> Answer:
    """The answer to a request that was refused.

    Functions API: `{"error": CODE, "message", "details"?}`. Queue API: `{"error": message, "error_type", "code",
    "field"?}`, where RunPod's clients look for words.
    """
    if type(error) is QueueFull:
        return _queue_full(str(error), math.ceil(error.retry_after), error.reason, face)
    headers: list[Header] = [JSON_TYPE]
    status = error.status
    if status in (429, 503):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(getattr(error, "retry_after", None) or 1))))
    allowed = getattr(error, "allowed", None)
    if allowed:
        headers.append((b"allow", ", ".join(allowed).encode()))
    execution = getattr(error, "execution", None)
    if execution:
        headers.append((b"x-execution-id", str(execution).encode()))
    return Answer(status, headers, dump(_told(error, face)))


@lru_cache(maxsize=256)
def _queue_full(message: str, retry_after: int, reason: str, face: Face) -> Answer:
    """Made once, not for each of the thousands that a flood brings: turning callers away must cost less than a call."""
    error = QueueFull(message)
    lines = b"retry-after: %d\r\n%b: %b\r\n" % (max(1, retry_after), REJECT_REASON, reason.encode())
    return Answer(error.status, AS_JSON, dump(_told(error, face)), lines)


def _told(error: FlashmeshError, face: Face) -> dict[str, Any]:
    message = str(error)
    field = getattr(error, "field", None)
    body: dict[str, Any]
    if face == "functions":
        body = {"error": error.code, "message": message}
        details = getattr(error, "details", None) or ((named(field, message),) if field else ())
        if details:
            body["details"] = list(details)
        return body
    body = {"error": message, "error_type": type(error).__name__, "code": error.code}
    if field:
        body["field"] = field
    return body


def named(field: str, message: str) -> str:
    """`field: message`."""
    return message if message.startswith(f"{field}:") else f"{field}: {message}"


def error_object(info: ErrorInfo) -> dict[str, Any]:
    """`error` of an execution in the functions API."""
    told = failures.to_http(info)
    error: dict[str, Any] = {"code": info.code, "message": told["message"] or told["type"], "type": told["type"]}
    error |= {key: told[key] for key in ("field", "traceback") if told.get(key)}
    return error


def error_fields(info: ErrorInfo) -> dict[str, Any]:
    """The fields of a failed job in the queue API."""
    told = failures.to_http(info)
    fields: dict[str, Any] = {
        "error": told["message"] or told["type"],
        "error_type": told["type"],
        "code": info.code,
    }
    fields |= {key: told[key] for key in ("field", "traceback") if told.get(key)}
    return fields


def function_word(code: str) -> str:
    return FUNCTION_WORDS[status_of_code(code)]


def queue_word(code: str) -> str:
    return QUEUE_WORDS[status_of_code(code)]
