"""Answers of the dev server: failures in one shape, results spliced into their envelope without re-encoding."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh.dev.server.access import Header, Send
from flashmesh.gateway.api.words import QUEUE_WORDS, dump
from flashmesh.gateway.http import Answer
from flashmesh.wire.failures import ErrorInfo
from flashmesh.wire.frames import BINARY, MSGPACK, Result
from flashmesh.worker.lb.failures import failed

__all__ = [
    "JSON_TYPE", "STATUS_WORDS", "completed", "dump", "failed", "refused", "send_bytes", "send_json",
]  # fmt: skip
JSON_TYPE: Final[Header] = (b"content-type", b"application/json")
MSGPACK_TYPE: Final[Header] = (b"content-type", b"application/x-msgpack")
BINARY_TYPE: Final[Header] = (b"content-type", b"application/octet-stream")

STATUS_WORDS: Final[Mapping[str, str]] = {str(status): word for status, word in QUEUE_WORDS.items()}
"""The queue API's words for the states of an execution."""
_COMPLETED: Final = b'","status":"COMPLETED","output":'


async def send_bytes(send: Send, status: int, headers: list[Header], body: bytes) -> None:
    """Headers and body; `headers` gets the length."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_json(send: Send, status: int, value: Any, headers: Iterable[Header] = ()) -> None:
    await send_bytes(send, status, [JSON_TYPE, *headers], dump(value))


def completed(result: Result, echoed: list[Header]) -> Answer:
    """Of a finished call: JSON in RunPod's envelope, MessagePack and bytes as they are; its id and times as headers."""
    execution, payload = result.execution.encode(), result.payload
    if result.content_type == BINARY:
        kind, body = BINARY_TYPE, payload
    elif result.content_type == MSGPACK:
        kind, body = MSGPACK_TYPE, payload or b"\xc0"
    else:
        kind, body = JSON_TYPE, b"".join((b'{"id":"', execution, _COMPLETED, payload or b"null", b"}"))
    lines = (
        b"x-execution-id: %b\r\nx-cold-start: %b\r\nserver-timing: queue;dur=%.3f, cold;dur=%.3f, run;dur=%.3f\r\n"
        % (
            execution,
            b"true" if result.cold_us else b"false",
            result.queue_us / 1000,
            result.cold_us / 1000,
            result.run_us / 1000,
        )
    )
    return Answer(200, [kind, *echoed], body, lines)


def refused(execution: str | None, info: ErrorInfo, echoed: Iterable[Header] = ()) -> Answer:
    """Of a call that failed."""
    status, headers, body = failed(execution, info)
    return Answer(status, [JSON_TYPE, *headers, *echoed], dump(body))
