"""The endpoint's Unix socket, and its TCP one, as one worker serves it: HTTP, one call per connection.

All workers of an endpoint share the listening socket and accept only while they have a free slot, so the listen backlog
is the queue and every call goes to a worker that can run it. A connection holds its slot from accept to answer. What a
caller gave up before its body began never runs; giving up later cancels it. The socket for re-entrant calls is served
by the same class, over the limit: a call that comes back to an endpoint that waits for it must not wait for itself.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from flashmesh.functions.errors import CallCycle, EndpointUnavailable, FlashmeshError
from flashmesh.kit.ids import new_execution_id
from flashmesh.wire.frames import JSON
from flashmesh.worker.callables import BoundCallable, Callables
from flashmesh.worker.cancellation import has_hung_up
from flashmesh.worker.face.access import Access
from flashmesh.worker.face.answers import CallReply
from flashmesh.worker.face.http import RequestReader, RequestRefused, answer, json_body
from flashmesh.worker.face.selection import select
from flashmesh.worker.invocation import CHAIN_LIMIT, Invocation
from flashmesh.worker.runner import Runner

log = logging.getLogger(__name__)

_FIRST_BYTES: Final = 64 * 1024
"""Most requests are smaller. Larger: the buffer of every read is memory mapped anew, at 30 µs."""
_READ_BYTES: Final = 256 * 1024
_NOW: Final = int(socket.MSG_DONTWAIT)
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)
"""With _NOW: nothing waits, whatever default timeout user code has set, without a system call. Not on macOS."""
_CALL_WORDS: Final = frozenset({"run_sync", "runsync"})
_PLAIN: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a caller may take its time with, in seconds and bytes."""

    head_s: float = 10
    body_s: float = 60
    write_s: float = 60
    """How long an answer may stand still because its reader does not read."""
    linger_s: float = 1
    """How long the rest of a refused request is read and thrown away, so that the refusal is seen."""
    max_body: int = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class About:
    """What `/health` and `/metrics` say of the worker."""

    endpoint: str
    build: str
    worker: str
    manifest_queries: Callable[[], int] = lambda: 0
    """How often the endpoint's workers asked the State Manager."""


class Face:
    """One listening socket.

    Args:
        access: asked of every request; None: who can connect may call.
        passed_on: what takes requests that name a function of another endpoint; None: they are errors.
        over_limit: calls are taken even when no slot is free (re-entrant calls).
        settle: called after a peer took a slot; True when the session has yet to be told before a synchronous body.
        taken: called when a call (not a `/ping`) is about to begin; False = the worker takes no more, do not run it.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        runner: Runner,
        callables: Callables,
        about: About,
        limits: Limits | None = None,
        access: Access | None = None,
        passed_on: Callable[[], BoundCallable] | None = None,
        over_limit: bool = False,
        settle: Callable[[], bool] = lambda: False,
        taken: Callable[[], bool] = lambda: True,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.runner = runner
        self.callables = callables
        self.about = about
        self.limits = limits or Limits()
        self.access = access
        self.passed_on = passed_on
        self.over_limit = over_limit
        self.settle = settle
        self.taken = taken
        self._listener = listener
        self._family = listener.family
        self._emptied: asyncio.Future[None] | None = None
        self._accepting = False
        self._closed = False
        self.connections: set[Connection] = set()
        listener.setblocking(False)

    def update(self) -> None:
        """Look at the listening socket again if a slot is free. Call whenever one may have become so.

        It is looked away from only when somebody waits there while no slot is free: most calls are over before that,
        and turning it off and on for each would cost more than they do.
        """
        if not self._accepting and not self._closed and (self.over_limit or self.runner.free > 0):
            self._accepting = True
            self.loop.add_reader(self._listener.fileno(), self._accept)

    def _look_away(self) -> None:
        if self._accepting:
            self._accepting = False
            self.loop.remove_reader(self._listener.fileno())

    def close(self) -> None:
        """Accept nothing more. Calls that were accepted go on."""
        self._closed = True
        self._look_away()

    async def closed(self) -> None:
        """Wait until every connection has its answer; each has time limits of its own."""
        while self.connections:
            self._emptied = self.loop.create_future()
            await self._emptied

    def forget(self, connection: "Connection") -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if not self.connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _accept(self) -> None:
        if self.runner.free == 0 and not self.over_limit:
            self._look_away()
            return
        try:
            # Not `accept`, which looks up two names for each, and makes a socket that may wait.
            descriptor, address = self._listener._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster
        except OSError as error:
            log.warning("a call could not be accepted: %s", error)
            return
        peer = socket.socket(self._family, socket.SOCK_STREAM | _NONBLOCK, 0, descriptor)
        if not _NONBLOCK:
            peer.setblocking(False)
        slot = self.runner.take(by_link=False, over_limit=self.over_limit)
        Connection(self, peer, slot, client="" if self.access is None else str(address[0])).read()


class Connection:
    """One accepted connection: reads a request, hands it on, and writes what comes back."""

    __slots__ = (
        "_client",
        "_deadline",
        "_reading",
        "_request",
        "_slot",
        "_timer",
        "_unsent",
        "_writing",
        "closed",
        "face",
        "on_closed",
        "peer",
    )

    def __init__(self, face: Face, peer: socket.socket, slot: int | None, *, client: str = "") -> None:
        """`client`: the address it came from, until it was let in; empty where nobody is asked."""
        self.face = face
        self.peer = peer
        self.closed = False
        self.on_closed: Callable[[], None] | None = None
        self._slot = slot
        self._client = client
        self._request = RequestReader(max_body=face.limits.max_body)
        self._unsent = bytearray()
        self._reading: Callable[[], None] | None = None
        self._writing: Callable[[], None] | None = None
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        face.connections.add(self)

    # --- reading ---

    def read(self) -> None:
        """Take what is there; a complete request is served at once, in this very callback."""
        try:
            data = self.peer.recv(_READ_BYTES if self._request.head_done else _FIRST_BYTES, _NOW)
        except (BlockingIOError, InterruptedError):
            self._await_more()
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        try:
            self._request.feed(data)
        except RequestRefused as refusal:
            self.refuse(refusal.status, refusal.message)
            return
        if self._client and self._request.head_done and not self._let_in():
            return
        if self._request.complete:
            self._stop_waiting()
            self._serve()
        elif len(data) == _FIRST_BYTES:
            self.read()  # there is more
        else:
            self._await_more()

    def _let_in(self) -> bool:
        """Whether whoever calls may; asked once, before a body is waited for."""
        request, access, client = self._request, self.face.access, self._client
        self._client = ""
        refusal = None
        if access is not None:
            refusal = access.refuse(method=request.method, path=request.path, headers=request.headers, client=client)
        if refusal is not None:
            self.refuse(refusal.status, refusal.message)
        return refusal is None

    def _await_more(self) -> None:
        limits = self.face.limits
        if self._timer is None:
            self._timer = self.face.loop.call_later(limits.head_s, self._too_slow, "head")
            self.watch(self.read)
        elif self._request.head_done and self._deadline == 0:
            self._timer.cancel()
            self._deadline = limits.body_s
            self._timer = self.face.loop.call_later(limits.body_s, self._too_slow, "body")

    def _too_slow(self, part: str) -> None:
        self.refuse(408, f"The request's {part} did not arrive in time. Send it without pauses.")

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.watch(None)

    def watch(self, readable: Callable[[], None] | None) -> None:
        """Call `readable` when something (a hang-up, too) can be read; None stops it."""
        if readable is not None:
            self.face.loop.add_reader(self.peer.fileno(), readable)
        elif self._reading is not None:
            self.face.loop.remove_reader(self.peer.fileno())
        self._reading = readable

    # --- serving ---

    def _serve(self) -> None:
        request = self._request
        parts = _parts(request.path)
        if request.method == "GET" and len(parts) == 1 and parts[0] in ("ping", "health", "metrics"):
            self._tell(parts[0])
        elif parts == ("invoke",) or (len(parts) in (1, 2) and parts[-1] in _CALL_WORDS):
            if request.method == "POST":
                self._call(parts[0] if len(parts) == 2 else None)
            else:
                self.refuse(405, f"Use POST for {request.path}.")
        else:
            self.refuse(
                404, f"Nothing answers at {request.path}. There are /run_sync, /{{function}}/run_sync, /health."
            )

    def _call(self, name: str | None) -> None:
        request, headers = self._request, self._request.headers
        chain = tuple(filter(None, headers.get("x-flash-chain", "").split(",")))
        execution = headers.get("x-execution-id", "")[:64] or new_execution_id()
        payload, content_type = request.body, headers.get("content-type", JSON).partition(";")[0].strip() or JSON
        reply = CallReply(self, execution, headers.get("accept", ""))
        try:
            if len(chain) > CHAIN_LIMIT or self._slot is None:
                raise CallCycle(f"The call went through {' → '.join(chain)} and cannot go on. Break the cycle.")
            target, payload = select(self.face.callables, name, payload, content_type, passed_on=self.face.passed_on)
            deadline_ms = _milliseconds(headers.get("x-flash-deadline-ms"), "X-Flash-Deadline-Ms")
        except (FlashmeshError, RequestRefused) as error:
            reply.refuse(error)
            return
        if has_hung_up(self.peer):
            self.close()  # nobody waits for it any more
            return
        if not self.face.taken():
            reply.refuse(EndpointUnavailable("This worker is leaving and did not run the call. Call again."))
            return
        slot, self._slot = self._slot, None
        invocation = Invocation(
            execution=execution,
            target=target,
            reply=reply,
            payload=payload,
            content_type=content_type,
            accept=reply.accept,
            deadline_ms=deadline_ms,
            chain=chain,
            trace=headers.get("traceparent", ""),
            parent=headers.get("x-flash-parent", "")[:64],
            stream=reply.streams,
        )
        request.forget_body()
        self.face.runner.begin(invocation, slot, by_link=False)

    def _tell(self, what: str) -> None:
        face, runner = self.face, self.face.runner
        if what == "ping":
            self.finish(answer(200, json_body({"status": "healthy"}), JSON))
        elif what == "health":
            about = face.about
            body = {
                "status": "healthy",
                "endpoint": about.endpoint,
                "build": about.build,
                "worker": about.worker,
                "running": len(runner.running),
                "functions": list(face.callables),
            }
            self.finish(answer(200, json_body(body), JSON))
        else:
            labels = f'{{endpoint="{face.about.endpoint}",worker="{face.about.worker}"}}'
            lines = (
                f"flash_worker_calls_total{labels} {runner.calls}",
                f"flash_worker_failures_total{labels} {runner.failures}",
                f"flash_worker_running{labels} {len(runner.running)}",
                f'flash_manifest_queries_total{{endpoint="{face.about.endpoint}"}} {face.about.manifest_queries()}',
            )
            self.finish(answer(200, ("\n".join(lines) + "\n").encode(), _PLAIN))

    def refuse(self, status: int, message: str) -> None:
        """Answer an error of ours before any call began; the rest of the request is thrown away."""
        self._stop_waiting()
        self._release()
        body = json_body({"status": "FAILED", "error": {"type": "RequestRefused", "message": message}})
        self.finish(answer(status, body, JSON), linger=not self._request.complete)

    # --- writing ---

    def write(self, data: bytes) -> bool:
        """Send or keep; True when the kernel has all of it."""
        if self.closed:
            return False
        if not self._unsent:
            sent = self._send(data)
            if sent == len(data) or self.closed:
                return not self.closed
            data = data[sent:]
            self._unsent += data
            self.face.runner.canceller.hush(self.peer)
            self._timer = self.face.loop.call_later(self.face.limits.write_s, self.close)
            self.face.loop.add_writer(self.peer.fileno(), self._flush)
        else:
            self._unsent += data
        return False

    def finish(self, data: bytes, *, linger: bool = False) -> None:
        """Send this, then close."""
        then = self._linger if linger else self.close
        if self.write(data):
            then()
        else:
            self._writing = then

    def on_written(self, then: Callable[[], None]) -> None:
        """Call `then` once everything kept so far is sent."""
        self._writing = then

    def _flush(self) -> None:
        sent = self._send(self._unsent)
        if self.closed:
            return
        del self._unsent[:sent]
        if self._timer is not None and sent:
            self._timer.cancel()
            self._timer = None
        if self._unsent:
            self._timer = self._timer or self.face.loop.call_later(self.face.limits.write_s, self.close)
            return
        self.face.loop.remove_writer(self.peer.fileno())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        then, self._writing = self._writing, None
        if then is not None:
            then()

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return self.peer.send(data, _NOW)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.close()
            return 0

    def _linger(self) -> None:
        """Let the caller read the refusal: closing with unread bytes would reset the connection under it."""
        try:
            self.peer.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        self._timer = self.face.loop.call_later(self.face.limits.linger_s, self.close)
        self.watch(self._throw_away)

    def _throw_away(self) -> None:
        try:
            if not self.peer.recv(_READ_BYTES, _NOW):
                self.close()
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.close()

    def close(self) -> None:
        """End the connection and give its slot back, if it still holds one."""
        if self.closed:
            return
        self.closed = True
        self._stop_waiting()
        if self._unsent:
            self.face.loop.remove_writer(self.peer.fileno())
        self.peer.close()
        self.face.forget(self)
        if self.on_closed is not None:
            self.on_closed()
        self._release()

    def _release(self) -> None:
        """Give the slot back, unless a call has it."""
        if self._slot is not None:
            slot, self._slot = self._slot, None
            self.face.runner.give(slot, by_link=False)


@lru_cache(maxsize=256)
def _parts(path: str) -> tuple[str, ...]:
    return tuple(unquote(part) for part in path.split("/") if part)


def _milliseconds(text: str | None, header: str) -> int:
    if not text:
        return 0
    if not text.isdecimal():
        raise RequestRefused(400, f"{header}: {text!r} is not a number of milliseconds.")
    return int(text)
