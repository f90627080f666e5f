"""A client's connection, at the session's end: its calls, and its questions.

What a call comes to goes back over the connection, as a Reply. A client that goes away ends nothing but its own waits,
except streams, which nobody else can read.

A client that does not hear of a call can ask whether it was taken. A call that runs is found by its id; one that was
refused, or repeated another call's key, has no record of its own, and is remembered here for that question.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from msgspec import structs

from flashmesh.executions.record import Execution
from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError, LinkProtocolError, QueueFull, ValidationError
from flashmesh.kit.ids import ExecutionId
from flashmesh.kit.tasks import Tasks
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import EventLog, QueryHandler
from flashmesh.queueing.settlement import error_frame
from flashmesh.wire.answers import CLOSE
from flashmesh.wire.connection import Link
from flashmesh.wire.frames import Answer, AnyFrame, Cancel, Credit, Error, Invoke, Query, Result
from flashmesh.wire.lending import Borrowed

BEHIND_BYTES: Final = 256 * 1024 * 1024
"""Results a client may leave unread; beyond that its connection is closed. The executions keep their results."""
VERDICTS: Final = 10_000
"""Refusals and repeated keys remembered per client, for its question whether a call was accepted."""
ACCEPT_S: Final = 60.0
"""How long the question whether a call was accepted waits for a payload that is still on its way."""


class ClientEnd:
    """One client; also the Reply of its calls."""

    role = "client"

    def __init__(
        self,
        link: Link,
        *,
        dispatcher: Dispatcher,
        queries: Mapping[str, QueryHandler],
        tasks: Tasks,
        log: EventLog,
    ) -> None:
        """Args:
        queries: what can be asked beside whether a call was accepted.
        tasks: the server's; those that answer questions are begun there.
        """
        self._link = link
        self._dispatcher = dispatcher
        self._queries = queries
        self._tasks = tasks
        self._log = log
        self._behind = 0
        self._streams: set[str] = set()
        self._questions: dict[int, asyncio.Task[None]] = {}
        self._verdicts: OrderedDict[str, Execution | FlashmeshError] = OrderedDict()
        self._expected: dict[str, asyncio.Future[None]] = {}

    @property
    def behind(self) -> bool:
        """Whether the client has yet to read what it was sent before."""
        transport = self._link.transport
        return transport is not None and transport.get_write_buffer_size() > 0

    def send(self, frame: AnyFrame) -> None:
        """Reply of a call. A client that leaves too much unread loses its connection."""
        self._link.send(frame)
        if isinstance(frame, Result | Error):
            if self._streams:
                self._streams.discard(frame.execution)
            if not self.behind:
                self._behind = 0
                return
            self._behind += len(frame.payload)
            if self._behind > BEHIND_BYTES:
                self._link.abort(LinkProtocolError(f"The client left {self._behind} bytes of results unread."))

    def take(self, link: Link, frame: AnyFrame) -> None:
        if isinstance(frame, Invoke):
            self._invoke(frame)
        elif isinstance(frame, Credit):
            self._dispatcher.credit(ExecutionId(frame.execution), frame.items)
        elif isinstance(frame, Cancel):
            try:
                self._dispatcher.cancel(ExecutionId(frame.execution))
            except ExecutionNotFound:
                pass  # it was refused, or repeated another call's key: nothing of its own runs
        elif isinstance(frame, Query):
            self._ask(frame)

    def _invoke(self, frame: Invoke) -> None:
        meta = frame.meta
        kind = "async" if meta.get("mode") == "async" else "sync"
        payload: object = frame.payload
        if isinstance(payload, Borrowed) and (kind == "async" or "idempotency_key" in meta):
            # What is kept, or compared, outlives the time that its file is lent. Anything else is only passed on.
            frame = structs.replace(frame, payload=bytes(payload))
        try:
            if kind == "async":
                told = partial(self._stored, frame.execution)
                execution = self._dispatcher.submit(frame, self, kind="async", accepted=told)
            else:
                execution = self._dispatcher.submit(frame, self)
        except FlashmeshError as error:
            self._refuse(frame.execution, error)
            return
        if execution.id != frame.execution:
            self._remember(frame.execution, execution)
        elif kind == "sync" and meta.get("stream") and not execution.ended:
            self._streams.add(frame.execution)
        if kind == "sync" or self._dispatcher.is_accepted(execution.id):
            self._settle(frame.execution)

    def _stored(self, execution: str, error: FlashmeshError | None) -> None:
        if error is not None:
            self._verdicts.pop(execution, None)
            self._refuse(execution, error)
        else:
            self._settle(execution)

    def _refuse(self, execution: str, error: FlashmeshError) -> None:
        self._remember(execution, error)
        self._link.send(error_frame(execution, error))
        self._settle(execution)

    def _settle(self, execution: str) -> None:
        """Whoever asked whether this call was accepted can be answered."""
        if self._expected and (waiting := self._expected.pop(execution, None)) is not None and not waiting.done():
            waiting.set_result(None)

    def _remember(self, execution: str, verdict: Execution | FlashmeshError) -> None:
        self._verdicts[execution] = verdict
        if len(self._verdicts) > VERDICTS:
            self._verdicts.popitem(last=False)

    def _ask(self, query: Query) -> None:
        if query.what == CLOSE:
            task = self._questions.pop(query.id, None)
            if task is not None:
                task.cancel()
            return
        task = self._tasks.begin(self._answer(query))
        self._questions[query.id] = task
        task.add_done_callback(lambda _: self._questions.pop(query.id, None))

    async def _answer(self, query: Query) -> None:
        answers = _Answers(self, self._link, query.id)
        try:
            if query.what == "accepted":
                body: dict[str, Any] | None = await self._accepted(query.arguments)
            else:
                handler = self._queries.get(query.what)
                if handler is None:
                    raise ValidationError(f"the session knows no question {query.what!r}", field="what")
                body = await handler(query.arguments, answers)
        except FlashmeshError as error:
            self._link.send(Answer(query.id, {}, error_body(error)))
        except Exception as error:
            self._log("query_failed", {"what": query.what, "reason": repr(error)})
            internal = FlashmeshError(f"the question {query.what!r} failed: {error!r}. The session's log tells more")
            self._link.send(Answer(query.id, {}, error_body(internal)))
        else:
            if not answers.over:
                self._link.send(Answer(query.id, body or {}))

    async def _accepted(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`accepted {id}` → {"id", "status"}: whether this connection's INVOKE was taken, and as which execution.

        Waits for a payload that is still on its way. Raises what it was refused with.
        """
        asked = str(arguments.get("id", ""))
        verdict = self._verdict(asked)
        if verdict is None:
            arrival = self._expected.setdefault(asked, asyncio.get_running_loop().create_future())
            await asyncio.wait((arrival,), timeout=ACCEPT_S)
            self._expected.pop(asked, None)
            verdict = self._verdict(asked)
        if verdict is None:
            raise ExecutionNotFound(f"no call {asked} came over this connection. Send it first")
        if isinstance(verdict, FlashmeshError):
            raise verdict
        return {"id": verdict.id, "status": str(verdict.status)}

    def _verdict(self, asked: str) -> Execution | FlashmeshError | None:
        """None: not here yet, or not stored yet."""
        found = self._verdicts.get(asked)
        if isinstance(found, FlashmeshError):
            return found
        try:
            found = found or self._dispatcher.execution(ExecutionId(asked))
        except ExecutionNotFound:
            return None
        return found if self._dispatcher.is_accepted(found.id) else None

    def lost(self, link: Link) -> None:
        for task in list(self._questions.values()):
            task.cancel()
        for execution in list(self._streams):
            self._dispatcher.reader_gone(ExecutionId(execution))


class _Answers:
    """The answers to one question."""

    __slots__ = ("_client", "_id", "_link", "over")

    def __init__(self, client: ClientEnd, link: Link, id: int) -> None:
        self._client = client
        self._link = link
        self._id = id
        self.over = False

    @property
    def behind(self) -> bool:
        return self._client.behind

    def __call__(self, body: dict[str, Any], more: bool = True) -> None:
        self.over = not more
        self._link.send(Answer(self._id, body, None, more))


def error_body(error: FlashmeshError) -> dict[str, Any]:
    """An Answer's `error`."""
    body: dict[str, Any] = {"code": error.code, "message": str(error)}
    if isinstance(error, QueueFull):
        body["retry_after"] = error.retry_after
    if isinstance(error, ValidationError) and error.field:
        body["field"] = error.field
    return body
