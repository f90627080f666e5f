"""A worker's link to its session: calls come in, outcomes and free slots go out, and it is dialled again for ever.

An INVOKE that finds no free slot (a peer took it meanwhile) is answered BUSY, certainly not run; the session puts it
back at the head of its queue. While the session is away calls from peers go on; outcomes of its own calls are dropped,
because a session that comes back has already judged them lost.
"""

import asyncio
import logging
import os
import random
from collections.abc import Callable
from functools import partial
from typing import Final

from flashmesh.functions.errors import FunctionNotFound, PayloadTooLarge
from flashmesh.wire import failures
from flashmesh.wire.connection import Link
from flashmesh.wire.frames import (
    PROTOCOL_VERSION,
    AnyFrame,
    Cancel,
    Chunk,
    Credit,
    Drain,
    Error,
    Hello,
    Invoke,
    Ready,
    Result,
    Started,
)
from flashmesh.worker.callables import Callables
from flashmesh.worker.invocation import Invocation
from flashmesh.worker.runner import Runner

log = logging.getLogger(__name__)

REDIAL_FIRST_S: Final = 0.05
REDIAL_MOST_S: Final = 0.25
"""100 workers are all back within 230 ms of their session's return; a longer pause makes that seconds."""
BUSY: Final = "BUSY"


class LinkReply:
    """Sends outcomes over the connection their call came by; `on_stale` is called instead when that is gone."""

    __slots__ = ("_link", "_on_stale", "_runner", "_worker")

    def __init__(self, link: Link, runner: Runner, worker: str, on_stale: Callable[[], None]) -> None:
        self._link = link
        self._runner = runner
        self._worker = worker
        self._on_stale = on_stale

    def started(self, invocation: Invocation, *, sync: bool) -> bool:
        cold = self._runner.calls == 0
        self._link.send(Started(invocation.execution, invocation.attempt, self._worker, cold))
        return True

    def waiting(self, invocation: Invocation) -> None:
        pass

    def item(self, invocation: Invocation, data: bytes) -> None:
        self._link.send(Chunk(invocation.execution, invocation.attempt, item=True, last=True, data=data))

    def succeeded(self, invocation: Invocation, content_type: str, payload: bytes, run_us: int) -> None:
        if not self._link.is_open:
            self._on_stale()
            return
        frame = Result(
            invocation.execution,
            invocation.attempt,
            self._runner.free,
            content_type,
            run_us,
            queue_us=max(0, invocation.started_ns - invocation.received_ns) // 1000,
            items=invocation.items,
            size=len(payload),
            payload=payload,
        )
        try:
            self._link.send(frame)
        except PayloadTooLarge as error:
            self.failed(invocation, error, run_us, ran=True, code=None)

    def failed(self, invocation: Invocation, error: BaseException, run_us: int, *, ran: bool, code: str | None) -> None:
        if not self._link.is_open:
            self._on_stale()
            return
        info = failures.describe(error, code=code)
        payload = failures.pack(info)
        self._link.send(
            Error(
                invocation.execution,
                info.code,
                invocation.attempt,
                self._runner.free,
                ran,
                run_us,
                size=len(payload),
                payload=payload,
            )
        )


class Uplink:
    """Keeps a worker connected.

    Args:
        on_drain: the session wants this worker to leave.
        leaving: whether the worker takes no more calls.
        taken: called when a call is about to begin; False = do not run it.
    """

    def __init__(
        self,
        *,
        path: str,
        endpoint: str,
        build: str,
        worker: str,
        runner: Runner,
        callables: Callables,
        on_drain: Callable[[], None],
        taken: Callable[[], bool],
    ) -> None:
        self._path = path
        self._hello = partial(Hello, PROTOCOL_VERSION, "worker", endpoint, build, worker, os.getpid())
        self._worker = worker
        self._runner = runner
        self._callables = callables
        self._on_drain = on_drain
        self._taken = taken
        self._link: Link | None = None
        self._lost = asyncio.Event()
        self._closed = asyncio.Event()
        self._closing = False
        self._unsaid = False

    async def run(self) -> None:
        """Dial, serve, dial again; returns after `close`."""
        pause = REDIAL_FIRST_S
        while not self._closing:
            self._lost.clear()
            try:
                await self._dial()
            except OSError as error:
                self._link = None
                log.debug("The session does not answer at %s (%s)", self._path, error.strerror)
                await self._pause(pause)
                pause = min(pause * 2, REDIAL_MOST_S)
                continue
            pause = REDIAL_FIRST_S
            await self._lost.wait()
            self._link = None
            await self._pause(pause)

    async def _dial(self) -> None:
        """Connect. The link counts as ours at once: what is said meanwhile leaves after HELLO and READY."""
        link = self._link = Link(self._on_frame, self._on_lost)
        free = self._runner.free
        link.send(self._hello(free=free))
        link.send(Ready(free))
        await asyncio.get_running_loop().create_unix_connection(lambda: link, self._path)

    async def _pause(self, seconds: float) -> None:
        """Jittered, so that all workers of a session that returns do not dial in one instant. `close` ends it."""
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await self._closed.wait()
        except TimeoutError:
            return

    def say_free(self, free: int) -> None:
        """The number of free slots changed without the session's doing."""
        if self._link is not None and not self._closing:
            self._unsaid = True
            self._link.send(Credit(free=free))

    def _slot_came_back(self) -> None:
        """A call of an earlier connection has ended: the present one does not know of its slot."""
        self.say_free(self._runner.free)

    def take_unsaid(self) -> bool:
        """Whether something was said since the last time that needs a turn of the loop to leave the process."""
        unsaid, self._unsaid = self._unsaid, False
        return unsaid

    def want_to_leave(self, reason: str) -> None:
        """Tell the session; it stops sending and closes the connection once nothing is in flight on it."""
        if self._link is not None:
            self._link.send(Drain(reason))

    async def close(self, *, patience_s: float) -> None:
        """Wait for the session to close the connection, `patience_s` at most; then close it here."""
        self._closing = True
        self._closed.set()
        if self._link is None:
            return
        try:
            async with asyncio.timeout(patience_s):
                await self._lost.wait()
        except TimeoutError:
            if self._link is not None:
                self._link.close()

    def _on_frame(self, link: Link, frame: AnyFrame) -> None:
        match frame:
            case Invoke():
                self._invoke(link, frame)
            case Cancel(execution=execution, reason=reason):
                invocation = self._runner.by_execution.get(execution)
                if invocation is not None:
                    self._runner.canceller.stop(invocation, reason)
            case Credit(execution=execution, items=items):
                invocation = self._runner.by_execution.get(execution)
                if invocation is not None and invocation.window is not None:
                    invocation.window.grant(items)
            case Drain():
                self._on_drain()
            case _:
                log.warning("a frame that no worker understands", extra={"action": "frame_ignored"})

    def _on_lost(self, link: Link, error: Exception | None) -> None:
        self._lost.set()

    def _invoke(self, link: Link, frame: Invoke) -> None:
        target = self._callables.get(frame.function)
        if target is None:
            payload = failures.pack(failures.describe(FunctionNotFound(f"{frame.function!r} is not served here.")))
            code = FunctionNotFound.code
            link.send(
                Error(
                    frame.execution,
                    code,
                    frame.attempt,
                    self._runner.free,
                    ran=False,
                    size=len(payload),
                    payload=payload,
                )
            )
            return
        slot = self._runner.take(by_link=True) if self._taken() else None
        if slot is None:
            link.send(Error(frame.execution, BUSY, frame.attempt, self._runner.free, ran=False))
            return
        meta = frame.meta
        # A call accepted for later keeps its items apart too: whoever asks for them may be early or late.
        streams = bool(meta.get("stream")) or meta.get("mode") == "async"
        invocation = Invocation(
            execution=frame.execution,
            target=target,
            reply=LinkReply(link, self._runner, self._worker, self._slot_came_back),
            payload=frame.payload,
            content_type=frame.content_type,
            accept=frame.accept,
            attempt=frame.attempt,
            deadline_ms=frame.deadline_ms,
            chain=tuple(meta.get("chain") or ()),
            trace=meta.get("trace") or "",
            metadata=meta.get("metadata"),
            stream=streams,
        )
        self._runner.begin(invocation, slot, by_link=True)
