"""The queue API as RunPod's clients know it: run, runsync, status, stream, cancel, retry, purge-queue, health.

A failed job is 200 with FAILED and its error; only a request that cannot be taken is refused with 4xx or 5xx.
"""

from collections.abc import Callable
from typing import Any, Final

from flashmesh.executions.items import MAX_UNREAD_ITEMS
from flashmesh.executions.record import Execution
from flashmesh.functions.errors import (
    ExecutionNotFound,
    FlashmeshError,
    FunctionNotFound,
    MalformedRequest,
)
from flashmesh.gateway.api.bodies import EMPTY_OBJECT, Job, read_job
from flashmesh.gateway.api.failures import error_fields, failure, queue_word
from flashmesh.gateway.api.queue_paths import QueuePath, parse
from flashmesh.gateway.api.records import job_body, job_fields
from flashmesh.gateway.api.timing import identity_line, timing_lines
from flashmesh.gateway.api.wishes import (
    MAX_WAIT_MS,
    NORMAL_PRIORITY,
    WAIT_MS,
    Wishes,
    milliseconds,
    query_value,
    wishes_of,
)
from flashmesh.gateway.api.words import QUEUE_WORDS, as_json, dump
from flashmesh.gateway.calls import Accepting, Calls, Waiting
from flashmesh.gateway.directory import ANYWHERE, Callee, Directory, Where
from flashmesh.gateway.http import AS_JSON, JSON_TYPE, Answer, Header, Request, Respond, pairs
from flashmesh.gateway.identities import new_execution_id
from flashmesh.gateway.selection import body_without_name, given_input, name_in, pick
from flashmesh.kit.ids import ExecutionId
from flashmesh.wire import failures
from flashmesh.wire.frames import JSON, MSGPACK, Error, Invoke, Result
from flashmesh.wire.media import EVENT_STREAM

DEFAULT_WAIT_MS: Final = 90_000
STREAM_WAIT_MS: Final = 5_000
"""How long `/stream` waits for something new: RunPod's client asks again at once, and gives up after 10 s."""
STREAM_BYTES: Final = 4 * 1024 * 1024
"""Items of one `/stream` answer stop after this many bytes."""


class QueueTarget:
    """What `/v2/{endpoint}[/{function}]` stands for. `name` is the endpoint as it was asked for."""

    __slots__ = ("callees", "endpoint", "name")

    def __init__(self, name: str, callees: tuple[Callee, ...]) -> None:
        self.name = name
        self.callees = callees
        self.endpoint = callees[0].endpoint

    @classmethod
    def of(cls, directory: Directory, path: QueuePath, where: Where = ANYWHERE) -> "QueueTarget":
        """Raises FunctionNotFound (listing the endpoint's names), AmbiguousFunction."""
        callees = directory.endpoint(path.endpoint, where)
        target = cls(path.endpoint, callees)
        if path.function is None:
            return target
        chosen = pick([callee.function for callee in callees], path.function)
        if chosen is None:
            raise FunctionNotFound(f"{target.name} has no function `{path.function}`. It has: {target.names()}.")
        return cls(path.endpoint, tuple(callee for callee in callees if callee.function == chosen))

    def names(self) -> str:
        return ", ".join(short_name(callee, self.callees) for callee in self.callees)

    def choose(self, body: bytes, content_type: str, verb: str) -> tuple[Callee, bytes, str]:
        """The callable a body names, and the body it is to get. Raises MalformedRequest, FunctionNotFound."""
        if len(self.callees) == 1:
            return self.callees[0], body, content_type
        given = given_input(body, content_type)
        named = name_in(given)
        if named is None or given is None:
            first = short_name(self.callees[0], self.callees)
            raise MalformedRequest(
                f"{self.name} has several functions: {self.names()}. "
                f"Send it to /v2/{self.name}/{first}/{verb} or another of them."
            )
        chosen = pick([callee.function for callee in self.callees], named)
        if chosen is None:
            raise FunctionNotFound(f"{self.name} has no function `{named}`. It has: {self.names()}.")
        callee = next(callee for callee in self.callees if callee.function == chosen)
        return callee, *body_without_name(given)


def short_name(callee: Callee, callees: tuple[Callee, ...]) -> str:
    """The shortest end of a callable's id that no other callable of its endpoint shares."""
    parts = callee.function.split(".")
    for count in range(1, len(parts)):
        name = ".".join(parts[-count:])
        if pick([other.function for other in callees], name) == callee.function:
            return name
    return callee.function


def frame_of(target: QueueTarget, verb: str, request: Request, wishes: Wishes) -> Invoke:
    """The call a request asks for: the client's bytes unless they select a callable. Raises as `read_job`."""
    body = request.body
    job: Job | None = None
    if wishes.content_type == JSON:
        if body:
            job = read_job(body)
        if not body.strip():
            body = EMPTY_OBJECT
    callee, body, content_type = target.choose(body, wishes.content_type, verb)
    meta: dict[str, Any] = wishes.meta("async" if verb == "run" else "sync")
    limit_ms = 0
    if job is not None:
        limit_ms = _put(meta, job)
    if request.principal:
        meta["principal"] = request.principal
    if callee.named:
        meta["endpoint"] = callee.endpoint
    return Invoke(
        new_execution_id(),
        callee.function,
        0,
        "",
        content_type,
        JSON if wishes.accept == EVENT_STREAM else wishes.accept,
        limit_ms,
        meta,
        0,
        body,
    )


def _put(meta: dict[str, Any], job: Job) -> int:
    """A job's own wishes into its call's meta. Returns the run-time limit, 0 = none."""
    if job.webhook is not None:
        meta["webhook"] = job.webhook
    if job.metadata:
        meta["metadata"] = job.metadata
    policy = job.policy
    if policy is None:
        return 0
    meta["policy"] = {
        name: value
        for name in ("executionTimeout", "ttl", "lowPriority")
        if (value := getattr(policy, name)) is not None
    }
    if policy.lowPriority:
        meta["priority"] = NORMAL_PRIORITY
    return policy.executionTimeout or 0


class RunHandler:
    """POST `/run`: 200 IN_QUEUE as soon as the store has it."""

    __slots__ = ("_calls", "_target")
    face: Final = "queue"

    def __init__(self, calls: Calls, target: QueueTarget) -> None:
        self._calls = calls
        self._target = target

    def __call__(self, request: Request, respond: Respond) -> None:
        try:
            wishes = wishes_of(request)
            frame = frame_of(self._target, "run", request, wishes)
            self._calls.accept(frame, _Queued(respond, frame.execution, wishes.echoed))
        except FlashmeshError as error:
            respond(failure(error, face="queue"))


class _Queued(Accepting):
    """A client of `/run` or `/retry`. `asked` is the id its call was to have; a replay has the first call's."""

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
        word = b"IN_QUEUE" if new else QUEUE_WORDS[execution.status].encode()
        body = b"".join((b'{"id":"', identity, b'","status":"', word, b'"}'))
        self._respond(Answer(200, AS_JSON, body, identity_line(execution.id) + self._echoed))

    def refused(self, error: FlashmeshError) -> None:
        self._respond(failure(error, face="queue"))


class RunSyncHandler:
    """POST `/runsync` and `/run_sync`: the job's end, or after the wait where it stands."""

    __slots__ = ("_calls", "_target")
    face: Final = "queue"

    def __init__(self, calls: Calls, target: QueueTarget) -> None:
        self._calls = calls
        self._target = target

    def __call__(self, request: Request, respond: Respond) -> None:
        try:
            wishes = wishes_of(request)
            wait_s = wait_of(request, wishes)
            frame = frame_of(self._target, "runsync", request, wishes)
            self._calls.wait_for(frame, _Job(self._calls, respond, wishes.echoed), wait_s)
        except FlashmeshError as error:
            respond(failure(error, face="queue"))

    def streamed(self, request: Request) -> tuple[Invoke, list[Header]]:
        """The call with its items as they come, and what its answer repeats. Raises as `frame_of`."""
        wishes = wishes_of(request)
        frame = frame_of(self._target, "runsync", request, wishes)
        frame.meta["stream"] = True
        return frame, pairs(wishes.echoed)


def wait_of(request: Request, wishes: Wishes) -> float:
    """Seconds: `?wait=` (1000…300000 ms), else `X-Timeout-Ms`, else 90 s. Raises InvalidRequest."""
    asked_s = wishes.wait_s(DEFAULT_WAIT_MS, MAX_WAIT_MS)
    text = query_value(request.query, b"wait") if request.query else None
    return asked_s if text is None else milliseconds(text, WAIT_MS, "wait") / 1000


class _Job(Waiting):
    """A client of `/runsync`."""

    __slots__ = ("_calls", "_echoed", "_respond")

    def __init__(self, calls: Calls, respond: Respond, echoed: bytes) -> None:
        super().__init__()
        self._calls = calls
        self._respond = respond
        self._echoed = echoed

    def ended(self, frame: Result | Error) -> None:
        execution = self.execution
        identity = execution.id.encode()
        if isinstance(frame, Error):
            info = failures.of_frame(frame)
            body = dump(job_fields(execution) | {"status": queue_word(info.code)} | error_fields(info))
            self._respond(Answer(200, AS_JSON, body, identity_line(execution.id) + self._echoed))
            return
        media = frame.content_type
        headers: list[Header]
        if media == JSON:
            body = b"".join(
                (
                    b'{"delayTime":%d,"executionTime":%d,"id":"'
                    % ((frame.queue_us + frame.cold_us) // 1000, frame.run_us // 1000),
                    identity,
                    b'","status":"COMPLETED","workerId":"',
                    execution.worker.encode(),
                    b'","output":',
                    frame.payload or b"null",
                    b"}",
                )
            )
            headers = AS_JSON
        else:
            body = frame.payload or (b"\xc0" if media == MSGPACK else b"")
            headers = [(b"content-type", media.encode())]
        elapsed_us = int((self._calls.clock.now() - self.since) * 1e6)
        self._respond(Answer(200, headers, body, timing_lines(identity, frame, elapsed_us) + self._echoed))

    def still_going(self) -> None:
        execution = self.execution
        body = dump({"id": execution.id, "status": QUEUE_WORDS[execution.status]})
        self._respond(Answer(200, AS_JSON, body, identity_line(execution.id) + self._echoed))


class QueueHandlers:
    """Handlers of what is not a call. Each reads its address again: few are asked twice."""

    def __init__(self, calls: Calls, directory: Directory) -> None:
        self._calls = calls
        self._directory = directory

    def job(self, request: Request) -> tuple[QueueTarget, Execution]:
        """Raises FunctionNotFound, AmbiguousFunction; ExecutionNotFound: no such job at this endpoint."""
        path = parse(request.path)
        if path is None:
            raise FunctionNotFound("There is nothing here. /docs lists what is.")
        target = QueueTarget.of(self._directory, path, self._directory.where(request))
        execution = self._calls.dispatcher.execution(ExecutionId(path.execution[:200]))
        if execution.endpoint != target.endpoint and (
            target.callees[0].named or all(execution.function != callee.function for callee in target.callees)
        ):
            raise ExecutionNotFound(f"{target.name} has no job {execution.id}. Ask the endpoint it was sent to.")
        return target, execution

    def _or_refuse(self, action: Callable[[], None], respond: Respond) -> None:
        try:
            action()
        except FlashmeshError as error:
            respond(failure(error, face="queue"))

    def status(self, request: Request, respond: Respond) -> None:
        """`/status/{id}`: the job as it stands, with its output."""
        self._or_refuse(lambda: respond(_shown(self.job(request)[1])), respond)

    def cancel(self, request: Request, respond: Respond) -> None:
        """`/cancel/{id}`: answers when it has stopped, or where it stands when that takes long."""

        def told(execution: Execution) -> None:
            respond(_shown(execution, payload=False))

        self._or_refuse(lambda: self._calls.cancel(self.job(request)[1].id, told), respond)

    def retry(self, request: Request, respond: Respond) -> None:
        """`/retry/{id}`: the same request as a new job, which names the old one."""
        self._or_refuse(lambda: self._calls.retry(self.job(request)[1].id, _Queued(respond, "", b"")), respond)

    def stream(self, request: Request, respond: Respond) -> None:
        """`/stream/{id}` as JSON: what it yielded since the last time, each item once; waits for something new."""

        def run() -> None:
            _, execution = self.job(request)
            text = query_value(request.query, b"wait") if request.query else None
            wait_ms = STREAM_WAIT_MS if text is None else milliseconds(text, range(MAX_WAIT_MS + 1), "wait")

            def something_new() -> bool:
                items = execution.items
                return execution.ended or (items is not None and items.total > items.cursor)

            def told() -> None:
                self._or_refuse(lambda: respond(self._items(execution)), respond)

            self._calls.until(execution, something_new, wait_ms / 1000, told)

        self._or_refuse(run, respond)

    def _items(self, execution: Execution) -> Answer:
        items, taken = execution.items, list[bytes]()
        if items is not None:
            taken, _ = items.take(None, MAX_UNREAD_ITEMS, STREAM_BYTES)
            self._calls.dispatcher.items_taken(execution.id)
        media = execution.result_type or execution.accept
        shown = b",".join(b'{"output":' + as_json(item, media) + b"}" for item in taken)
        word = QUEUE_WORDS[execution.status].encode()
        body = b'{"status":"' + word + b'","stream":[' + shown + b"]}"
        return Answer(200, [JSON_TYPE, (b"x-execution-id", execution.id.encode())], body)

    def purge(self, request: Request, respond: Respond) -> None:
        """`/purge-queue`: what waits at the endpoint is cancelled; what runs goes on."""

        def run() -> None:
            removed = self._calls.dispatcher.purge(self._endpoint(request).endpoint)
            respond(Answer(200, [JSON_TYPE], dump({"removed": removed, "status": "completed"})))

        self._or_refuse(run, respond)

    def health(self, request: Request, respond: Respond) -> None:
        """`/health`: how many jobs and workers are in which state."""

        def run() -> None:
            found = self._calls.dispatcher.health(self._endpoint(request).endpoint)
            respond(Answer(200, [JSON_TYPE], dump(found)))

        self._or_refuse(run, respond)

    def _endpoint(self, request: Request) -> QueueTarget:
        path = parse(request.path)
        if path is None:
            raise FunctionNotFound("There is nothing here. /docs lists what is.")
        return QueueTarget.of(self._directory, path, self._directory.where(request))


def _shown(execution: Execution, *, payload: bool = True) -> Answer:
    body = job_body(execution, payload=payload)
    return Answer(200, [JSON_TYPE, (b"x-execution-id", execution.id.encode())], body)
