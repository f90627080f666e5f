"""Answers of the dev server: failures in one shape, results spliced into their envelope without re-encoding."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh.dev.server.access import Header, Send
from flashmesh.gateway.api.words import QUEUE_WORDS, dump
from flashmesh.wire.frames import BINARY, MSGPACK, Result
from flashmesh.worker.lb.failures import failed

__all__ = [
    "JSON_TYPE", "STATUS_WORDS", "completed", "dump", "failed", "send_bytes", "send_json", "timing_headers",
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
