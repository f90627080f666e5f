"""Answers of the dev server: failures in one shape, results spliced into their envelope without re-encoding."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh.dev.server.access import Header, Send
from flashmesh.gateway.api.failures import raised
from flashmesh.gateway.api.words import QUEUE_WORDS, dump
from flashmesh.wire import failures
from flashmesh.wire.failures import ErrorInfo
from flashmesh.wire.frames import BINARY, MSGPACK, Result

__all__ = [
    "JSON_TYPE", "STATUS_WORDS", "completed", "dump", "failed", "raised", "send_bytes", "send_json", "timing_headers",
]  # fmt: skip
JSON_TYPE: Final[Header] = (b"content-type", b"application/json")
MSGPACK_TYPE: Final[Header] = (b"content-type", b"application/x-msgpack")
BINARY_TYPE: Final[Header] = (b"content-type", b"application/octet-stream")

STATUS_WORDS: Final[Mapping[str, str]] = {str(status): word for status, word in QUEUE_WORDS.items()}
"""The queue API's words for the states of an execution."""
_FAILED_WORDS: Final = {"TIMEOUT": "TIMED_OUT", "CANCELLED": "CANCELLED"}
_PLACE: Final = re.compile(r"(?P<file>[^:\n]+):(?P<line>\d+): (?P<reason>.+?)(?:\. Correct the file.*)?$", re.DOTALL)
"""How the message of a failed import begins: the place in the user's file, then why."""
_COMPLETED: Final = b'","status":"COMPLETED","output":'


async def send_bytes(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    """Headers and body; `headers` gets the length."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: Any, headers: Iterable[Header] = ()) -> None:
    await send_bytes(send, status, [JSON_TYPE, *headers], dump(value))


def completed(execution: str, result: Result) -> tuple[list[Header], bytes]:
    """Content type and body of a finished call: JSON in RunPod's envelope, MessagePack and bytes as they are."""
    payload = result.payload
    if result.content_type == BINARY:
        return [BINARY_TYPE], payload
    if result.content_type == MSGPACK:
        return [MSGPACK_TYPE], payload or b"\xc0"
    return [JSON_TYPE], b'{"id":"' + execution.encode() + _COMPLETED + (payload or b"null") + b"}"


def timing_headers(execution: str, result: Result) -> list[Header]:
    """X-Execution-Id, X-Cold-Start, Server-Timing (milliseconds)."""
    timing = "queue;dur=%.3f, cold;dur=%.3f, run;dur=%.3f" % (  # noqa: UP031 - half the time of an f-string here
        result.queue_us / 1000,
        result.cold_us / 1000,
        result.run_us / 1000,
    )
    return [
        (b"x-execution-id", execution.encode()),
        (b"x-cold-start", b"true" if result.cold_us else b"false"),
        (b"server-timing", timing.encode()),
    ]


def failed(execution: str | None, info: ErrorInfo, **more: Any) -> tuple[int, list[Header], dict[str, Any]]:
    """Status, headers and body of a call that failed: RunPod's fields, then what Python users want to know."""
    told = failures.to_http(info)
    body: dict[str, Any] = {"id": execution} if execution is not None else {}
    body |= {
        "status": _FAILED_WORDS.get(info.code, "FAILED"),
        "error": told["message"] or told["type"],
        "error_type": told["type"],
        "code": info.code,
    }
    if told.get("field"):
        body["field"] = told["field"]
    if info.code == "IMPORT_FAILED" and (place := _PLACE.match(told["message"])):
        body |= {"file": place["file"], "line": int(place["line"]), "reason": place["reason"]}
    body |= {key: value for key, value in more.items() if value is not None}
    if told.get("traceback"):
        body["traceback"] = told["traceback"]
    headers: list[Header] = [(b"x-execution-id", execution.encode())] if execution is not None else []
    status = failures.http_status(info)
    if info.retry_after is not None or status == 429:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(info.retry_after or 1))))
    return status, headers, body
