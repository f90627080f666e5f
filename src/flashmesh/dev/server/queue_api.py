"""The queue API of the dev server: run, run_sync, runsync, status and cancel of functions that workers run.

Bodies go to the worker as the bytes that came, and results come back as the bytes the worker wrote: nothing is parsed
here except JSON's syntax, which is checked before a call is accepted. A client that goes away does not end its call.
"""

from typing import Any, Final

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Header, Receive, Scope, Send
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.options import DevOptions
from flashmesh.dev.server.requests import EVENT_STREAM, body_media, header, read_body, wait_ms, wanted_media
from flashmesh.dev.server.results import status_body
from flashmesh.dev.server.route_book import CallMatch, ChoiceMatch, LookMatch, QueueRoute, Verb
from flashmesh.dev.server.selection import Selected, choose
from flashmesh.dev.server.streams import follow_stream, read_stream, stream_call
from flashmesh.kit.ids import new_execution_id
from flashmesh.wire import failures
from flashmesh.wire.arguments import check_json
from flashmesh.wire.client import Invocation
from flashmesh.wire.frames import JSON, Error, Invoke, Result

DEFAULT_WAIT_MS: Final = 90_000
_EMPTY: Final = b"{}"


class QueueApi:
    """Answers the queue's routes through the session."""

    def __init__(self, door: SessionDoor, options: DevOptions) -> None:
        self._door = door
        self._options = options

    async def call(self, match: CallMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """POST to one callable."""
        wishes = Wishes(scope)
        body = await self._body(wishes, scope, receive)
        await self._invoke(match.route, match.verb, wishes, body, receive, send)

    async def choose(self, choice: ChoiceMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """POST to a file with several callables: the body says which. Raises MalformedRequest, FunctionNotFound."""
        wishes = Wishes(scope)
        body = await self._body(wishes, scope, receive)
        selected: Selected = choose(choice, body, wishes.content_type)
        wishes.content_type = selected.content_type
        await self._invoke(selected.route, choice.verb, wishes, selected.body, receive, send)

    async def _body(self, wishes: "Wishes", scope: Scope, receive: Receive) -> bytes:
        options = self._options
        body = await read_body(scope, receive, limit_bytes=options.max_body_bytes, limit_s=options.body_limit_s)
        if wishes.content_type == JSON:
            if not body.strip():
                return _EMPTY
            check_json(body)
        return body

    async def _invoke(
        self, route: QueueRoute, verb: Verb, wishes: "Wishes", body: bytes, receive: Receive, send: Send
    ) -> None:
        wait_s = self._options.short_wait_s
        if verb != "run":
            wait_s = wait_ms(wishes.query, wishes.timeout, DEFAULT_WAIT_MS) / 1000
        streams = wishes.accept == EVENT_STREAM and verb != "run"
        frame = Invoke(
            execution=new_execution_id(),
            function=route.function,
            content_type=wishes.content_type,
            accept=JSON if wishes.accept == EVENT_STREAM else wishes.accept,
            meta=wishes.meta("async" if verb == "run" else "sync", streams),
            payload=body,
        )
        client = self._door.client or await self._door.get()
        invocation = client.invoke(frame)
        if streams:
            await stream_call(invocation, receive, send, wishes.echoed())
            return
        outcome = await _outcome(invocation, wait_s)
        await self._answer(invocation, outcome, wishes, send)

    async def _answer(
        self, invocation: Invocation, outcome: Result | Error | None, wishes: "Wishes", send: Send
    ) -> None:
        if outcome is None:
            word = "IN_PROGRESS" if invocation.started.is_set() else "IN_QUEUE"
            headers = [(b"x-execution-id", invocation.execution.encode()), *wishes.echoed()]
            await answers.send_json(send, 200, {"id": invocation.execution, "status": word}, headers)
            return
        if isinstance(outcome, Error):
            status, headers, body = answers.failed(outcome.execution, failures.of_frame(outcome))
            await answers.send_json(send, status, body, [*headers, *wishes.echoed()])
            return
        headers, content = answers.completed(outcome.execution, outcome)
        headers += answers.timing_headers(outcome.execution, outcome)
        headers += wishes.echoed()
        await answers.send_bytes(send, 200, headers, content)

    async def look(self, match: LookMatch, scope: Scope, receive: Receive, send: Send) -> None:
        """GET status, cancel or stream of one execution. Raises ExecutionNotFound."""
        client = self._door.client or await self._door.get()
        if match.verb == "stream" and wanted_media(header(scope, b"accept")) == EVENT_STREAM:
            await follow_stream(client, match.execution, receive, send)
            return
        if match.verb == "stream":
            body = await read_stream(client, match.execution)
        else:
            if match.verb == "cancel":
                await client.query("cancel", id=match.execution)
            body = status_body(await client.query("execution", id=match.execution, payload=match.verb == "status"))
        await answers.send_bytes(send, 200, [answers.JSON_TYPE, (b"x-execution-id", match.execution.encode())], body)


async def _outcome(invocation: Invocation, wait_s: float) -> Result | Error | None:
    """The final frame, or None when the wait is over first; the call goes on either way.

    As `invocation.wait`, at a third of its cost: this is what every request of every function does.
    """
    done = invocation.done
    if done.done():
        return done.result()
    loop = done.get_loop()
    woken = loop.create_future()

    def wake(_: object = None) -> None:
        if not woken.done():
            woken.set_result(None)

    timer = loop.call_later(wait_s, wake)
    done.add_done_callback(wake)
    try:
        await woken
    finally:
        timer.cancel()
        done.remove_done_callback(wake)
    return done.result() if done.done() else None


class Wishes:
    """What one request's headers ask for, read in one pass."""

    __slots__ = ("accept", "content_type", "idempotency_key", "query", "timeout", "trace")

    def __init__(self, scope: Scope) -> None:
        """Raises UnsupportedMedia."""
        content_type = accept = encoding = None
        self.trace = self.idempotency_key = ""
        self.timeout: str | None = None
        self.query: bytes = scope["query_string"]
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value.decode("latin-1")
            elif name == b"accept":
                accept = value.decode("latin-1")
            elif name == b"traceparent":
                self.trace = value.decode("latin-1")
            elif name == b"idempotency-key":
                self.idempotency_key = value.decode("latin-1")
            elif name == b"x-timeout-ms":
                self.timeout = value.decode("latin-1")
            elif name == b"content-encoding":
                encoding = value.decode("latin-1")
        self.content_type = JSON if content_type == JSON and encoding is None else body_media(content_type, encoding)
        self.accept = wanted_media(accept)

    def meta(self, mode: str, streams: bool) -> dict[str, Any]:
        meta: dict[str, Any] = {"mode": mode}
        if streams:
            meta["stream"] = True
        if self.trace:
            meta["trace"] = self.trace
        if self.idempotency_key:
            meta["idempotency_key"] = self.idempotency_key
        return meta

    def echoed(self) -> list[Header]:
        """Headers of the request that belong on its answer."""
        return [(b"traceparent", self.trace.encode("latin-1"))] if self.trace else []
