"""Streams of the queue API: a generator's items as server-sent events, live or of an execution by its id.

Every item is an event without a name whose data is the item as JSON; the end is an event `end` or `error` whose
data has the execution's id and status. A live stream belongs to its client: when that goes away, the call is cancelled.
"""

import asyncio
from typing import Any, Final

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Header, Receive, Send
from flashmesh.dev.server.results import as_json, status_body
from flashmesh.wire import failures
from flashmesh.wire.client import Invocation, SessionClient
from flashmesh.wire.frames import JSON, Error, Result

_START: Final[list[Header]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_PING_S: Final = 15.0
"""Proxies and browsers drop streams that are silent for longer, commonly 30 to 60 s."""
_POLL_S: Final = 20.0
_FINAL: Final = frozenset({"SUCCESS", "ERROR", "TIMEOUT", "CANCELLED"})


async def stream_call(invocation: Invocation, receive: Receive, send: Send, headers: list[Header]) -> None:
    """Answer a call with its items as they come.

    The status line waits for the body to begin, so that a call that cannot begin is answered with its own status.
    """
    async with asyncio.TaskGroup() as group:
        gone = group.create_task(_cancel_when_gone(receive, invocation))
        try:
            await invocation.started.wait()
            early = invocation.done.result() if invocation.done.done() else None
            if isinstance(early, Error) and not early.ran:
                status, more, body = answers.failed(early.execution, failures.of_frame(early))
                await answers.send_json(send, status, body, [*more, *headers])
                return
            await _begin(send, [*headers, (b"x-execution-id", invocation.execution.encode())])
            ping = group.create_task(_ping(send))
            try:
                async for item in invocation.items():
                    await _event(send, item)
            finally:
                ping.cancel()
            await _finish(send, await invocation.done)
        finally:
            gone.cancel()


async def read_stream(client: SessionClient, execution: str) -> bytes:
    """RunPod's `/stream/{id}`: `{"status", "stream": [{"output"}…]}` of what came since the last time."""
    found = await client.query("stream", id=execution)
    items = b",".join(b'{"output":' + item + b"}" for item in _items(found))
    return b'{"status":"' + _word(found).encode() + b'","stream":[' + items + b"]}"


async def follow_stream(client: SessionClient, execution: str, receive: Receive, send: Send) -> None:
    """The same as events, until the execution has ended. A reader that goes away does not end it."""
    found = await client.query("stream", id=execution)
    await _begin(send, [(b"x-execution-id", execution.encode())])
    async with asyncio.TaskGroup() as group:
        ping = group.create_task(_ping(send))
        gone = group.create_task(_until_gone(receive))
        while not gone.done():
            for item in _items(found):
                await _event(send, item)
            if found["status"] in _FINAL and not found["items"]:
                record = await client.query("execution", id=execution)
                await _end(send, record)
                break
            found = await client.query("stream", id=execution, after=found.get("next"), wait=_POLL_S)
        ping.cancel()
        gone.cancel()


def _items(found: dict[str, Any]) -> list[bytes]:
    content_type = found.get("content_type", JSON)
    if content_type == JSON:
        return list(found["items"])
    return [as_json(item, content_type) for item in found["items"]]


def _word(found: dict[str, Any]) -> str:
    return answers.STATUS_WORDS.get(found["status"], str(found["status"]))


async def _begin(send: Send, headers: list[Header]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [*_START, *headers]})


async def _event(send: Send, data: bytes, name: bytes = b"") -> None:
    lines = b"".join(b"data: " + line + b"\n" for line in data.splitlines() or [b""])
    head = b"event: " + name + b"\n" if name else b""
    await send({"type": "http.response.body", "body": head + lines + b"\n", "more_body": True})


async def _finish(send: Send, outcome: Result | Error) -> None:
    if isinstance(outcome, Error):
        _, _, body = answers.failed(outcome.execution, failures.of_frame(outcome))
        await _event(send, answers.dump(body), b"error")
    else:
        if outcome.items < 0:  # not a generator: its one result
            await _event(send, as_json(outcome.payload, outcome.content_type))
        await _event(send, answers.dump({"id": outcome.execution, "status": "COMPLETED"}), b"end")
    await send({"type": "http.response.body", "body": b""})


async def _end(send: Send, record: dict[str, Any]) -> None:
    name = b"end" if record["status"] == "SUCCESS" else b"error"
    await _event(send, status_body({**record, "payload": None}), name)
    await send({"type": "http.response.body", "body": b""})


async def _ping(send: Send) -> None:
    while True:
        await asyncio.sleep(_PING_S)
        await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel_when_gone(receive: Receive, invocation: Invocation) -> None:
    await _until_gone(receive)
    invocation.cancel()
