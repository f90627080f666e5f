"""Calls of functions through the session: the frame a request asks for, the wait for its outcome, and the answer.

Bodies go to the worker as the bytes that came, and results come back as the bytes the worker wrote: nothing is parsed
here except JSON's syntax, which is checked before a call is accepted. A client that goes away does not end its call.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Header
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.options import DevOptions
from flashmesh.dev.server.requests import EVENT_STREAM, body_media, wait_ms, wanted_media
from flashmesh.dev.server.route_book import CallMatch, QueueRoute, Verb
from flashmesh.functions.errors import FlashmeshError, LinkLost
from flashmesh.gateway.http import Answer, Headers, Request, Respond
from flashmesh.gateway.identities import new_execution_id
from flashmesh.wire import failures
from flashmesh.wire.arguments import check_json
from flashmesh.wire.client import Invocation
from flashmesh.wire.frames import JSON, Error, Invoke

log = logging.getLogger("flashmesh.dev")

DEFAULT_WAIT_MS: Final = 90_000
_EMPTY: Final = b"{}"


class CallHandler:
    """`run`, `run_sync` or `runsync` of one callable: gateway.http.Handler, for requests that want no events.

    The session is connected.
    """

    __slots__ = ("_door", "_match", "_options")

    def __init__(self, door: SessionDoor, options: DevOptions, match: CallMatch) -> None:
        self._door = door
        self._options = options
        self._match = match

    def __call__(self, request: Request, respond: Respond) -> None:
        route, verb = self._match.route, self._match.verb
        try:
            client = self._door.client
            if client is None:
                raise LinkLost
            wishes = wishes_of(request)
            wait_s = wishes.wait_s(verb, self._options)
            frame = frame_of(route, verb, wishes, good_body(request.body, wishes.content_type))
            Waiting(client.invoke(frame), wishes, respond).start(wait_s)
        except FlashmeshError as error:
            respond(answers.refused(None, failures.of_ours(error)))


def good_body(body: bytes, content_type: str) -> bytes:
    """The body as it is handed on. Raises MalformedRequest, ValidationError."""
    if content_type == JSON:
        if not body.strip():
            return _EMPTY
        check_json(body)
    return body


def frame_of(route: QueueRoute, verb: Verb, wishes: "Wishes", body: bytes) -> Invoke:
    """The call that a request asks for."""
    return Invoke(
        execution=new_execution_id(),
        function=route.function,
        content_type=wishes.content_type,
        accept=JSON if wishes.accept == EVENT_STREAM else wishes.accept,
        meta=wishes.meta("async" if verb == "run" else "sync", wishes.streams(verb)),
        payload=body,
    )


class Waiting:
    """A client that waits for a call. It is answered once: with the outcome, or that the call goes on."""

    __slots__ = ("_invocation", "_respond", "_timer", "_wishes")

    def __init__(self, invocation: Invocation, wishes: "Wishes", respond: Respond) -> None:
        self._invocation = invocation
        self._wishes = wishes
        self._respond = respond
        self._timer: asyncio.TimerHandle

    def start(self, wait_s: float) -> None:
        done = self._invocation.done
        self._timer = done.get_loop().call_later(wait_s, self._still_going)
        done.add_done_callback(self._ended)

    def _ended(self, done: "asyncio.Future[Any]") -> None:
        self._timer.cancel()
        echoed = self._wishes.echoed()
        try:
            outcome = done.result()
        except FlashmeshError as error:
            self._respond(answers.refused(None, failures.of_ours(error)))
            return
        if isinstance(outcome, Error):
            self._respond(answers.refused(outcome.execution, failures.of_frame(outcome), echoed))
        else:
            self._respond(answers.completed(outcome, echoed))

    def _still_going(self) -> None:
        invocation = self._invocation
        invocation.done.remove_done_callback(self._ended)
        word = "IN_PROGRESS" if invocation.started.is_set() else "IN_QUEUE"
        headers = [answers.JSON_TYPE, (b"x-execution-id", invocation.execution.encode()), *self._wishes.echoed()]
        self._respond(Answer(200, headers, answers.dump({"id": invocation.execution, "status": word})))


def wishes_of(request: Request) -> "Wishes":
    """What the request's head asks for; read once from heads that come again. Raises as `Wishes`."""
    headers = request.headers
    if type(headers) is not Headers:
        return Wishes(headers, request.query)
    found: Wishes | None = headers.wishes
    if found is None:
        found = headers.wishes = Wishes(headers, request.query)
    return found


class Wishes:
    """What one request's head asks for."""

    __slots__ = ("accept", "content_type", "idempotency_key", "query", "timeout", "trace")

    def __init__(self, headers: Mapping[bytes, bytes], query: bytes) -> None:
        """Raises UnsupportedMedia."""

        def text(name: bytes) -> str | None:
            value = headers.get(name)
            return None if value is None else value.decode("latin-1")

        content_type, accept, encoding = text(b"content-type"), text(b"accept"), text(b"content-encoding")
        self.query = query
        self.trace = text(b"traceparent") or ""
        self.idempotency_key = text(b"idempotency-key") or ""
        self.timeout = text(b"x-timeout-ms")
        self.content_type = JSON if content_type == JSON and encoding is None else body_media(content_type, encoding)
        self.accept = wanted_media(accept)

    def wait_s(self, verb: Verb, options: DevOptions) -> float:
        """How long the client waits for the outcome. Raises ValidationError."""
        if verb == "run":
            return options.short_wait_s
        return wait_ms(self.query, self.timeout, DEFAULT_WAIT_MS) / 1000

    def streams(self, verb: Verb) -> bool:
        """Whether it wants the items as events."""
        return self.accept == EVENT_STREAM and verb != "run"

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
