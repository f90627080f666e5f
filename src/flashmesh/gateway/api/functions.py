"""`POST /v1/functions/{name}:invoke` and `:enqueue`, as callbacks."""

from typing import Any, Final

from flashmesh.functions.errors import FlashmeshError, WaitTimedOut
from flashmesh.gateway.api.bodies import read_invocation
from flashmesh.gateway.api.failures import error_object, failure, function_word
from flashmesh.gateway.api.timing import identity_line, timing_lines
from flashmesh.gateway.api.wishes import Wishes, wishes_of
from flashmesh.gateway.api.words import FUNCTION_WORDS, dump
from flashmesh.gateway.calls import Accepting, Calls, Waiting
from flashmesh.gateway.directory import Callee
from flashmesh.gateway.http import AS_JSON, JSON_TYPE, Answer, Header, Request, Respond, pairs
from flashmesh.gateway.identities import new_execution_id
from flashmesh.wire import failures
from flashmesh.wire.failures import of_ours
from flashmesh.wire.frames import JSON, MSGPACK, Error, Invoke, Result
from flashmesh.wire.media import EVENT_STREAM

DEFAULT_WAIT_MS: Final = 30_000
_HEAD: Final = b'{"executionId":"'
_SUCCESS: Final = b'","status":"success","output":'


def frame_of(callee: Callee, request: Request, wishes: Wishes, mode: str) -> Invoke:
    """The call a request asks for: the client's bytes, checked only. Raises as `read_invocation`."""
    meta: dict[str, Any] = wishes.meta(mode)
    if wishes.content_type == JSON:
        metadata = read_invocation(request.body).metadata
        if metadata:
            meta["metadata"] = metadata
    if request.principal:
        meta["principal"] = request.principal
    if callee.named:
        meta["endpoint"] = callee.endpoint
    return Invoke(
        new_execution_id(),
        callee.function,
        0,
        "",
        wishes.content_type,
        JSON if wishes.accept == EVENT_STREAM else wishes.accept,
        0,
        meta,
        0,
        request.body,
    )


class InvokeHandler:
    """`:invoke` of one function."""

    __slots__ = ("_callee", "_calls", "_default_ms", "_named")
    face: Final = "functions"

    def __init__(self, calls: Calls, callee: Callee) -> None:
        self._calls = calls
        self._callee = callee
        self._named = callee.endpoint if callee.named else None
        self._default_ms = callee.wait_ms or DEFAULT_WAIT_MS

    def __call__(self, request: Request, respond: Respond) -> None:
        full = self._calls.refusal(self._callee.function, self._named)
        if full is not None:
            respond(failure(full, face="functions"))
            return
        try:
            wishes = wishes_of(request)
            wait_s = wishes.wait_s(self._default_ms, self._callee.max_wait_ms)
            frame = frame_of(self._callee, request, wishes, "sync")
            self._calls.wait_for(frame, _Invocation(self._calls, respond, wishes.echoed), wait_s)
        except FlashmeshError as error:
            respond(failure(error, face="functions"))

    def streamed(self, request: Request) -> tuple[Invoke, list[Header]]:
        """The call with its items as they come, and what its answer repeats. Raises as `frame_of`."""
        wishes = wishes_of(request)
        frame = frame_of(self._callee, request, wishes, "sync")
        frame.meta["stream"] = True
        return frame, pairs(wishes.echoed)


class _Invocation(Waiting):
    """A client of `:invoke`."""

    __slots__ = ("_calls", "_echoed", "_respond")

    def __init__(self, calls: Calls, respond: Respond, echoed: bytes) -> None:
        super().__init__()
        self._calls = calls
        self._respond = respond
        self._echoed = echoed

    def ended(self, frame: Result | Error) -> None:
        identity = self.execution.id.encode()
        if isinstance(frame, Error):
            info = failures.of_frame(frame)
            body = dump(
                {
                    "executionId": self.execution.id,
                    "status": function_word(info.code),
                    "output": None,
                    "error": error_object(info),
                }
            )
            headers = [JSON_TYPE]
            if info.retry_after is not None or failures.http_status(info) in (429, 503):
                headers.append((b"retry-after", b"%d" % max(1, round(info.retry_after or 1))))
            lines = identity_line(self.execution.id) + self._echoed
            self._respond(Answer(failures.http_status(info), headers, body, lines))
            return
        media = frame.content_type
        if media == JSON:
            body = b"".join((_HEAD, identity, _SUCCESS, frame.payload or b"null", b"}"))
            headers = AS_JSON
        else:
            body = frame.payload or (b"\xc0" if media == MSGPACK else b"")
            headers = [(b"content-type", media.encode())]
        elapsed_us = int((self._calls.clock.now() - self.since) * 1e6)
        self._respond(Answer(200, headers, body, timing_lines(identity, frame, elapsed_us) + self._echoed))

    def still_going(self) -> None:
        execution = self.execution
        error = error_object(of_ours(WaitTimedOut()))
        body = {
            "executionId": execution.id,
            "status": FUNCTION_WORDS[execution.status],
            "output": None,
            "error": error,
        }
        self._respond(Answer(408, AS_JSON, dump(body), identity_line(execution.id) + self._echoed))


class EnqueueHandler:
    """`:enqueue` of one function."""

    __slots__ = ("_callee", "_calls")
    face: Final = "functions"

    def __init__(self, calls: Calls, callee: Callee) -> None:
        self._calls = calls
        self._callee = callee

    def __call__(self, request: Request, respond: Respond) -> None:
        try:
            wishes = wishes_of(request)
            frame = frame_of(self._callee, request, wishes, "async")
            self._calls.accept(frame, Enqueued(respond, frame.execution, wishes.echoed))
        except FlashmeshError as error:
            respond(failure(error, face="functions"))


class Enqueued(Accepting):
    """A client of `:enqueue`. `asked` is the id its call was to have; a replay has the first call's."""

    __slots__ = ("_asked", "_echoed", "_respond")

    def __init__(self, respond: Respond, asked: str, echoed: bytes) -> None:
        super().__init__()
        self._respond = respond
        self._asked = asked
        self._echoed = echoed

    def accepted(self) -> None:
        execution = self.execution
        identity = execution.id.encode()
        new = not self._asked or execution.id == self._asked
        word = b"queued" if new else FUNCTION_WORDS[execution.status].encode()
        body = b"".join((_HEAD, identity, b'","status":"', word, b'"}'))
        self._respond(Answer(202, AS_JSON, body, identity_line(execution.id) + self._echoed))

    def refused(self, error: FlashmeshError) -> None:
        self._respond(failure(error, face="functions"))
