"""Server-sent events: the items of a call as they come, of an execution by its id, and lines of output.

Every item is an event without a name whose data is the item as JSON; the end is an event `end` or `error` whose data
has the execution's id and status. The stream of a call belongs to its client: when that goes away, the call is
cancelled. A reader of an execution that was accepted for later can leave without ending it.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from flashmesh.executions.items import MAX_UNREAD_ITEMS
from flashmesh.executions.record import Execution
from flashmesh.gateway.api.asgi import Receive, Send, send_answer
from flashmesh.gateway.api.failures import Face, error_fields, error_object, function_word, queue_word
from flashmesh.gateway.api.queue import STREAM_BYTES
from flashmesh.gateway.api.records import execution_fields, job_fields
from flashmesh.gateway.api.words import as_json, dump
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.http import JSON_TYPE, Answer, Header
from flashmesh.queueing.logbook import LogBook, LogFilter, line_body
from flashmesh.wire import failures
from flashmesh.wire.frames import AnyFrame, Chunk, Error, Invoke, Log, Result, Started

_START: Final[list[Header]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
PING_S: Final = 15.0
"""Proxies and browsers drop streams that are silent for longer, commonly 30 to 60 s."""
GRANT_ITEMS: Final = 16
"""Items a client has taken before the worker may send as many more."""
MAX_BEHIND_LINES: Final = 1000
"""Lines of output that wait for a reader; beyond it they are counted and left out."""


def event(data: bytes, name: bytes = b"") -> bytes:
    """One server-sent event."""
    lines = b"".join(b"data: " + line + b"\n" for line in data.splitlines() or [b""])
    return (b"event: " + name + b"\n" if name else b"") + lines + b"\n"


class EventStream:
    """One answer that is a stream: keeps it alive while nothing comes, and knows when its reader has gone."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.gone = asyncio.Event()
        self.news = asyncio.Event()
        """Set by whoever has something to tell."""

    async def begin(self, headers: list[Header]) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": [*_START, *headers]})

    async def write(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data})

    async def watch_client(self) -> None:
        """Until the client has gone."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone.set()
        self.news.set()

    async def wait(self, seconds: float = PING_S) -> bool:
        """Until there is news, or `seconds` have passed. Whether there is."""
        try:
            async with asyncio.timeout(seconds):
                await self.news.wait()
        except TimeoutError:
            return False
        self.news.clear()
        return True


class LiveCall:
    """The reader of a streamed call: the dispatcher's `Reply` for it."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self.started = False
        self.items: deque[bytes] = deque()
        self.last: Result | Error | None = None

    def send(self, frame: AnyFrame) -> None:
        if isinstance(frame, Chunk):
            self.items.append(frame.data)
        elif isinstance(frame, Started):
            self.started = True
        elif isinstance(frame, Result | Error):
            self.last = frame
        self._stream.news.set()


async def stream_call(
    calls: Calls, frame: Invoke, receive: Receive, send: Send, headers: list[Header], *, face: Face
) -> None:
    """Answer a call with its items as they come. Raises what `submit` raises.

    The status line waits for the body to begin, so that a call that cannot begin is answered with its own status.
    """
    stream = EventStream(receive, send)
    live = LiveCall(stream)
    execution = calls.dispatcher.submit(frame, live, kind="sync")
    async with asyncio.TaskGroup() as group:
        client = group.create_task(stream.watch_client())
        try:
            await _tell_call(calls, execution, live, stream, send, headers, face)
        finally:
            client.cancel()
            if live.last is None:
                calls.dispatcher.reader_gone(execution.id)


async def _tell_call(
    calls: Calls,
    execution: Execution,
    live: LiveCall,
    stream: EventStream,
    send: Send,
    headers: list[Header],
    face: Face,
) -> None:
    identity: list[Header] = [(b"x-execution-id", execution.id.encode()), *headers]
    while not live.started and live.last is None and not stream.gone.is_set():
        await stream.wait()
    if isinstance(live.last, Error) and not live.last.ran:
        await send_answer(failed_call(execution, live.last, identity, face), send)
        return
    await stream.begin(identity)
    taken = 0
    while not stream.gone.is_set():
        while live.items and not stream.gone.is_set():
            await stream.write(event(live.items.popleft()))
            taken += 1
            if taken == GRANT_ITEMS or not live.items:
                calls.dispatcher.credit(execution.id, taken)
                taken = 0
        if live.last is not None:
            await stream.end(last_event(execution, live.last, face))
            return
        if not await stream.wait():
            await stream.write(b":\n\n")


def failed_call(execution: Execution, error: Error, headers: list[Header], face: Face) -> Answer:
    """A streamed call that did not begin, as the face answers one that was not streamed."""
    info = failures.of_frame(error)
    if face == "functions":
        told = {"executionId": execution.id, "status": function_word(info.code), "output": None}
        body = dump(told | {"error": error_object(info)})
        return Answer(failures.http_status(info), [JSON_TYPE, *headers], body)
    body = dump({"id": execution.id, "status": queue_word(info.code)} | error_fields(info))
    return Answer(200, [JSON_TYPE, *headers], body)


def last_event(execution: Execution, last: Result | Error, face: Face) -> bytes:
    """What closes a streamed call; the one result of a function that yields nothing goes before it."""
    if isinstance(last, Error):
        return event(failed_call(execution, last, [], face).body, b"error")
    before = event(as_json(last.payload, last.content_type)) if last.items < 0 else b""
    word = {"executionId": execution.id, "status": "success"}
    if face == "queue":
        word = {"id": execution.id, "status": "COMPLETED"}
    return before + event(dump(word), b"end")


async def follow_execution(
    calls: Calls, execution: Execution, receive: Receive, send: Send, *, face: Face, after: int | None = None
) -> None:
    """Items of an accepted execution, from where the last reader stopped, until it has ended."""
    stream = EventStream(receive, send)
    await stream.begin([(b"x-execution-id", execution.id.encode())])
    unwatch = calls.dispatcher.watch(execution.id, stream.news.set)
    async with asyncio.TaskGroup() as group:
        client = group.create_task(stream.watch_client())
        try:
            await _tell_execution(calls, execution, stream, face, after)
        finally:
            client.cancel()
            if unwatch is not None:
                unwatch()


async def _tell_execution(
    calls: Calls, execution: Execution, stream: EventStream, face: Face, after: int | None
) -> None:
    while not stream.gone.is_set():
        items, taken = execution.items, list[bytes]()
        if items is not None:
            taken, after = items.take(after, MAX_UNREAD_ITEMS, STREAM_BYTES)
            calls.dispatcher.items_taken(execution.id)
        media = execution.result_type or execution.accept
        for item in taken:
            await stream.write(event(as_json(item, media)))
        if taken:
            continue
        if execution.ended:
            fields = execution_fields(execution) if face == "functions" else job_fields(execution)
            name = b"error" if execution.error_code else b"end"
            await stream.end(event(dump(fields), name))
            return
        if not await stream.wait():
            await stream.write(b":\n\n")


async def follow_logs(
    logbook: LogBook, wanted: LogFilter, receive: Receive, send: Send, *, tail: int, follow: bool
) -> None:
    """The last lines, and with `follow` those that come, as events; a slow reader is told how many it missed."""
    stream = EventStream(receive, send)
    lines: deque[dict[str, Any]] = deque(line_body(line) for line in logbook.tail(wanted, tail))
    dropped = 0

    def pass_on(line: Log) -> None:
        nonlocal dropped
        if len(lines) >= MAX_BEHIND_LINES:
            dropped += 1
        else:
            lines.append(line_body(line, dropped=dropped))
            dropped = 0
        stream.news.set()

    stop: Callable[[], None] = logbook.follow(wanted, pass_on) if follow else lambda: None
    await stream.begin([])
    async with asyncio.TaskGroup() as group:
        client = group.create_task(stream.watch_client())
        try:
            while not stream.gone.is_set():
                while lines and not stream.gone.is_set():
                    await stream.write(event(dump(lines.popleft())))
                if not follow:
                    await stream.end(event(b"{}", b"end"))
                    return
                if not await stream.wait():
                    await stream.write(b":\n\n")
        finally:
            stop()
            client.cancel()
