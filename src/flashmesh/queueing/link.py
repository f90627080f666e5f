"""The session's end of the link: one Unix socket on which workers, templates and clients report.

Who connects is told by the kernel (same user only) and by its HELLO. A worker's frames go to the dispatcher, a
template's to the target that started it, a client's become calls and questions. A client that goes away ends nothing
but its own waits, except streams, which nobody else can read.
"""

import asyncio
import os
import ssl
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import structs

from flashmesh.executions.record import Execution
from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError, LinkProtocolError, QueueFull, ValidationError
from flashmesh.kit.ids import EndpointName, ExecutionId, WorkerId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.logbook import LogBook
from flashmesh.queueing.ports import EventLog, QueryHandler
from flashmesh.queueing.queries import built_in
from flashmesh.queueing.settlement import error_frame
from flashmesh.queueing.slots import Worker
from flashmesh.wire.answers import CLOSE
from flashmesh.wire.connection import Keepalive, Link, serve_tcp
from flashmesh.wire.frames import (
    PROTOCOL_VERSION,
    Answer,
    AnyFrame,
    Cancel,
    Credit,
    Error,
    Hello,
    Invoke,
    Log,
    Query,
    Ready,
    Result,
    WorkerGone,
)
from flashmesh.wire.lending import Borrowed
from flashmesh.wire.memfd import Splices

HELLO_S: Final = 5.0
"""How long a connection may stay silent before its HELLO."""
CLOSE_S: Final = 1.0
"""How long the last bytes of a closing session may take to leave."""
BEHIND_BYTES: Final = 256 * 1024 * 1024
"""Results a client may leave unread; beyond that its connection is closed. The executions keep their results."""
VERDICTS: Final = 10_000
"""Refusals and repeated keys remembered per client, for its question whether a call was accepted."""
WORKERS_BUSY: Final = Keepalive(wants_pong=False)
"""Over TCP: a worker may run a user's code for any time without answering; its machine still acknowledges."""
ACCEPT_S: Final = 60.0
"""How long the question whether a call was accepted waits for a payload that is still on its way."""


class LinkServer:
    """Serves the socket at `path` between `start` and `close`."""

    def __init__(
        self,
        path: Path,
        dispatcher: Dispatcher,
        *,
        queries: Mapping[str, QueryHandler] | None = None,
        on_template: Callable[[EndpointName, Mapping[str, Any]], None] | None = None,
        on_log: Callable[[Log], None] | None = None,
        log: EventLog | None = None,
        check_token: Callable[[Hello], str | None] | None = None,
    ) -> None:
        """Args:
        queries: questions answered beside the built-in ones (queries.py), or in their place.
        on_template: told what a template said at READY, after the dispatcher.
        on_log: given each line of user code, after it was kept for those who follow.
        check_token: given each HELLO that came over TCP, where no kernel says who dials; what it returns is why that
            connection is refused. Without it every one is.
        """
        self.dispatcher = dispatcher
        self.logbook = LogBook()
        self.queries = {**built_in(dispatcher, self.logbook), **(queries or {})}
        self.on_template = on_template
        self.on_log = on_log
        self.log: EventLog = log or (lambda event, fields: None)
        self.gathering: AbstractContextManager[None] | None = None
        """As of each Link. To be set before `start`."""
        self._path = path
        self._check_token = check_token
        self._servers: list[asyncio.AbstractServer] = []
        self._splices: Splices | None = None
        self._links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()
        self.closing = False

    async def start(self) -> None:
        """Bind the socket, in a directory of mode 0700, and accept. Raises OSError when that cannot be."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.parent.chmod(0o700)
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._splices = Splices(loop)
        self._servers.append(await loop.create_unix_server(self._accept, str(self._path), backlog=1024))
        self._path.chmod(0o600)

    async def listen(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> int:
        """Accept over TCP as well, from those `check_token` admits; the port, for when 0 was asked for. After `start`.

        Args:
            ssl_context: wire/tls.py's; None only where the network itself is protected.
        Raises:
            OSError: the address cannot be had.
        """
        server = await serve_tcp(self._accept, host, port, ssl_context)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop accepting, close every connection and wait for the handlers.

        Workers lose their session by that and nothing else: what they run is not judged lost, the next session asks.
        """
        self.closing = True
        for server in self._servers:
            server.close()
        for link in list(self._links):
            link.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._links:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._emptied.wait()
            except TimeoutError:
                for link in list(self._links):
                    link.abort()
        if self._splices is not None:
            self._splices.close()
        self._path.unlink(missing_ok=True)

    def connections(self) -> dict[str, int]:
        """How many are open, by role."""
        return Counter(str(link.state.role) for link in self._links)

    def _accept(self) -> Link:
        link = Link(_take, self._lost, splices=self._splices, keepalive=WORKERS_BUSY)
        link.gathering = self.gathering
        loop = asyncio.get_running_loop()
        link.state = _Stranger(self, loop.call_later(HELLO_S, link.abort, LinkProtocolError("No HELLO came in time.")))
        self._links.add(link)
        self._emptied.clear()
        return link

    def _lost(self, link: Link, error: Exception | None) -> None:
        self._links.discard(link)
        if not self._links:
            self._emptied.set()
        if isinstance(error, LinkProtocolError):
            self.log("link_protocol_error", {"role": link.state.role, "pid": link.peer_pid, "reason": str(error)})
        link.state.lost(link)

    def greet(self, link: Link, hello: Hello) -> None:
        """Give the connection the part its HELLO asks for. Closes it on a wrong version or user."""
        if hello.version != PROTOCOL_VERSION:
            link.abort(
                LinkProtocolError(f"The other end speaks version {hello.version} of the link, not {PROTOCOL_VERSION}.")
            )
        elif link.peer_uid not in (-1, os.getuid()):
            link.abort(LinkProtocolError(f"User {link.peer_uid} may not use this session."))
        elif not link.local and (refusal := self._refusal(hello)) is not None:
            link.abort(LinkProtocolError(f"A {hello.role} of {hello.endpoint or 'no endpoint'} was refused: {refusal}"))
        elif hello.role == "worker":
            link.state = _WorkerEnd(self, hello)
        elif hello.role == "template":
            link.state = _TemplateEnd(self, hello)
            self.dispatcher.source.template_linked(EndpointName(hello.endpoint), hello, link)
        else:
            link.state = _ClientEnd(self, link)

    def _refusal(self, hello: Hello) -> str | None:
        return "nobody is admitted over TCP here." if self._check_token is None else self._check_token(hello)

    def run(self, work: Awaitable[None]) -> "asyncio.Task[None]":
        """A handler's task; `close` awaits it."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _take(link: Link, frame: AnyFrame) -> None:
    link.state.take(link, frame)


class _Stranger:
    """A connection that has not said HELLO."""

    role = "unknown"

    def __init__(self, server: LinkServer, timer: asyncio.TimerHandle) -> None:
        self._server = server
        self._timer = timer

    def take(self, link: Link, frame: AnyFrame) -> None:
        self._timer.cancel()
        if isinstance(frame, Hello):
            self._server.greet(link, frame)
        else:
            link.abort(LinkProtocolError(f"The first frame was {type(frame).__name__}, not HELLO."))

    def lost(self, link: Link) -> None:
        self._timer.cancel()


class _WorkerEnd:
    role = "worker"

    def __init__(self, server: LinkServer, hello: Hello) -> None:
        self._server = server
        self._hello = hello
        self._worker: Worker | None = None

    def take(self, link: Link, frame: AnyFrame) -> None:
        if not isinstance(frame, Ready):
            return
        dispatcher = self._server.dispatcher
        worker = self._worker = dispatcher.worker_ready(self._hello, frame.free, link, remote=not link.local)
        if worker is None:
            link.close()
        else:
            hear = dispatcher.worker_frame
            link.hear(lambda link, frame: hear(worker, frame))  # straight there: it is most of what a server hears

    def lost(self, link: Link) -> None:
        if self._worker is not None and not self._server.closing:
            self._server.dispatcher.worker_lost(self._worker)


class _TemplateEnd:
    role = "template"

    def __init__(self, server: LinkServer, hello: Hello) -> None:
        self._server = server
        self._endpoint = EndpointName(hello.endpoint)

    def take(self, link: Link, frame: AnyFrame) -> None:
        server, endpoint = self._server, self._endpoint
        if isinstance(frame, Log):
            server.logbook.add(frame)
            if server.on_log is not None:
                server.on_log(frame)
        elif isinstance(frame, Ready):
            server.dispatcher.template_ready(endpoint, frame.info)
            if server.on_template is not None:
                server.on_template(endpoint, frame.info)
        elif isinstance(frame, WorkerGone):
            server.dispatcher.worker_gone(endpoint, WorkerId(frame.worker), frame.status, frame.reason, frame.begun)

    def lost(self, link: Link) -> None:
        self._server.dispatcher.source.template_unlinked(self._endpoint, link)


class _ClientEnd:
    """A client's connection; also the Reply of its calls."""

    role = "client"

    def __init__(self, server: LinkServer, link: Link) -> None:
        self._server = server
        self._link = link
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
        dispatcher = self._server.dispatcher
        if isinstance(frame, Invoke):
            self._invoke(frame)
        elif isinstance(frame, Credit):
            dispatcher.credit(ExecutionId(frame.execution), frame.items)
        elif isinstance(frame, Cancel):
            try:
                dispatcher.cancel(ExecutionId(frame.execution))
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
                execution = self._server.dispatcher.submit(frame, self, kind="async", accepted=told)
            else:
                execution = self._server.dispatcher.submit(frame, self)
        except FlashmeshError as error:
            self._refuse(frame.execution, error)
            return
        if execution.id != frame.execution:
            self._remember(frame.execution, execution)
        elif kind == "sync" and meta.get("stream") and not execution.ended:
            self._streams.add(frame.execution)
        if kind == "sync" or self._server.dispatcher.is_accepted(execution.id):
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
        task = self._server.run(self._answer(query))
        self._questions[query.id] = task
        task.add_done_callback(lambda _: self._questions.pop(query.id, None))

    async def _answer(self, query: Query) -> None:
        answers = _Answers(self, self._link, query.id)
        try:
            if query.what == "accepted":
                body: dict[str, Any] | None = await self._accepted(query.arguments)
            else:
                handler = self._server.queries.get(query.what)
                if handler is None:
                    raise ValidationError(f"the session knows no question {query.what!r}", field="what")
                body = await handler(query.arguments, answers)
        except FlashmeshError as error:
            self._link.send(Answer(query.id, {}, error_body(error)))
        except Exception as error:
            self._server.log("query_failed", {"what": query.what, "reason": repr(error)})
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
        dispatcher = self._server.dispatcher
        try:
            found = found or dispatcher.execution(ExecutionId(asked))
        except ExecutionNotFound:
            return None
        return found if dispatcher.is_accepted(found.id) else None

    def lost(self, link: Link) -> None:
        for task in list(self._questions.values()):
            task.cancel()
        for execution in list(self._streams):
            self._server.dispatcher.reader_gone(ExecutionId(execution))


class _Answers:
    """The answers to one question."""

    __slots__ = ("_client", "_id", "_link", "over")

    def __init__(self, client: _ClientEnd, link: Link, id: int) -> None:
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
