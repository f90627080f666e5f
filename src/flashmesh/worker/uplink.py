"""A worker's link to its session: calls come in, outcomes and free slots go out, and it is dialled again for ever.

What the session gave goes on while it is away: HELLO says what runs and which outcomes are kept here, so that a session
that comes back takes both over. Outcomes of calls whose record outlives the session (async, or with an idempotency
key), and all that end while it is away, are kept until it acknowledges them (held.py).

What comes waits in line (line.py) until it has a slot. A call that was not announced and lasts after all is announced
then, if the loop has a turn to do so.
"""

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from time import monotonic_ns
from typing import Final

import msgspec

from flashmesh.functions.errors import Cancelled, FunctionNotFound, PayloadTooLarge
from flashmesh.wire import failures
from flashmesh.wire.connection import Keepalive, Link
from flashmesh.wire.frames import (
    PROTOCOL_VERSION,
    Ack,
    AnyFrame,
    Cancel,
    Chunk,
    Credit,
    Discard,
    Drain,
    Error,
    Hello,
    Invoke,
    Ready,
    Result,
    Started,
    Summary,
    attempt_ref,
)
from flashmesh.worker.ahead import RunTimes
from flashmesh.worker.callables import Callables
from flashmesh.worker.held import Held
from flashmesh.worker.invocation import Invocation, Reply
from flashmesh.worker.line import Line
from flashmesh.worker.runner import Runner
from flashmesh.worker.summaries import Summaries

log = logging.getLogger(__name__)

BUSY: Final = "BUSY"
LASTS_NS: Final = 10_000_000
"""A call that was not announced and runs for so long is."""

Connect = Callable[[Link], Awaitable[None]]
"""Connects a Link to the session. Raises OSError when nobody answers."""


class LinkReply:
    """Sends the outcome of one call over whatever connection there is by then."""

    __slots__ = ("_said", "_uplink", "abandoned", "kept", "link", "quiet")

    def __init__(self, uplink: "Uplink", link: Link, *, kept: bool, quiet: bool, said: bool) -> None:
        self._uplink = uplink
        self._said = said
        """The session knows already that it begins."""
        self.link = link
        """It came by this connection, and its items can go by no other: a later session lacks those before."""
        self.kept = kept
        """Its outcome is kept until it is acknowledged."""
        self.quiet = quiet
        """The session need not know that it begins."""
        self.abandoned = False
        """Items of it were lost. It was cancelled, and nobody is told how it ends: the session repeats it."""

    def started(self, invocation: Invocation, *, sync: bool) -> bool:
        if not self.quiet:
            uplink = self._uplink
            uplink.said -= 1  # as the session counts it now
            if not self._said:
                uplink.send(Started(invocation.execution, invocation.attempt, uplink.worker, uplink.runner.calls == 0))
        return True

    def waiting(self, invocation: Invocation) -> None:
        if self.quiet:
            self._uplink.watch()

    def lasts(self, invocation: Invocation) -> None:
        """It was not announced, and is not over in a moment."""
        self.quiet = False
        self._uplink.said -= 1
        self._uplink.send(Started(invocation.execution, invocation.attempt, self._uplink.worker))

    def item(self, invocation: Invocation, data: bytes) -> None:
        if self.link.is_open:
            self.link.send(Chunk(invocation.execution, invocation.attempt, item=True, last=True, data=data))
        else:
            self.abandon(invocation)

    def abandon(self, invocation: Invocation) -> None:
        """Its items cannot reach anybody."""
        self.abandoned = True
        self._uplink.runner.canceller.stop(invocation, "cancel")

    def succeeded(self, invocation: Invocation, content_type: str, payload: bytes, run_us: int) -> None:
        uplink = self._uplink
        uplink.times.add(run_us)
        frame = Result(
            invocation.execution,
            invocation.attempt,
            uplink.free,
            content_type,
            run_us,
            max(0, invocation.started_ns - invocation.received_ns) // 1000,
            0,
            invocation.items,
            len(payload),
            payload,
            *uplink.line.announce(self.link, len(payload), lasting=self.kept or self.abandoned),
        )
        if not self.abandoned:
            uplink.deliver(frame, kept=self.kept)

    def failed(self, invocation: Invocation, error: BaseException, run_us: int, *, ran: bool, code: str | None) -> None:
        self._uplink.times.add(run_us)
        if not self.abandoned:
            frame = failure(invocation.execution, invocation.attempt, error, code=code, ran=ran, run_us=run_us)
            self._uplink.deliver(frame, kept=self.kept)


def failure(
    execution: str, attempt: int, error: BaseException, *, code: str | None = None, ran: bool, run_us: int = 0
) -> Error:
    """The ERROR frame for an exception; what is free is filled in when it is sent."""
    info = failures.describe(error, code=code)
    payload = failures.pack(info)
    return Error(execution, info.code, attempt, 0, ran, run_us, size=len(payload), payload=payload)


class Uplink:
    """Keeps a worker connected.

    Args:
        connect: how a new Link reaches the session.
        on_drain: the session wants this worker to leave.
        taken: called when a call is about to begin; False = do not run it.
        prefetch: calls may wait here behind those that run.
        token: gives what says who may serve this endpoint, where the kernel does not say who dials. Raises OSError.
        redial_s: the first and the longest pause between two attempts to connect.
    """

    def __init__(
        self,
        *,
        connect: Connect,
        endpoint: str,
        build: str,
        worker: str,
        runner: Runner,
        callables: Callables,
        on_drain: Callable[[], None],
        taken: Callable[[], bool],
        prefetch: bool = True,
        token: Callable[[], str],
        redial_s: tuple[float, float],
    ) -> None:
        self._connect = connect
        self._hello = partial(Hello, PROTOCOL_VERSION, "worker", endpoint, build, worker, os.getpid())
        self._token = token
        self.worker = worker
        self.runner = runner
        self.times = RunTimes(enabled=prefetch)
        self._callables = callables
        self._on_drain = on_drain
        self._redial_s = redial_s
        self.link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._closed = asyncio.Event()
        self._closing = False
        self.leaving = ""
        self._unsaid = False
        self.said = 0
        """What may be sent as the session has it: what it was told last, less what was announced since."""
        self._held = Held()
        self._released: asyncio.Event | None = None
        self.line = Line(self, runner=runner, callables=callables, times=self.times, taken=taken)
        self._watch: asyncio.TimerHandle | None = None
        self._summaries = Summaries(self._send_summary)

    # Connecting

    async def run(self) -> None:
        """Dial, serve, dial again; returns after `close`."""
        first_s, most_s = self._redial_s
        pause_s = first_s
        while not self._closing:
            self._lost.clear()
            try:
                await self._dial()
            except OSError as error:
                log.debug("The session does not answer (%s)", error.strerror or error)
                await self._pause(pause_s)
                pause_s = min(pause_s * 2, most_s)
                continue
            pause_s = first_s
            if self._closed.is_set():
                self._hang_up()
            await self._lost.wait()
            await self._pause(pause_s)

    async def _dial(self) -> None:
        """Connect, and say all that the session must know: it may be another one than before."""
        # Payloads are decoded here and nowhere kept: large ones need no copy. A session never keeps its loop busy.
        link = Link(self._on_frame, self._on_lost, mapped=True, keepalive=Keepalive())
        token = self._token()
        await self._connect(link)
        runs = [
            attempt_ref(invocation.execution, invocation.attempt)
            for invocation in self.runner.running.values()
            if isinstance(invocation.reply, LinkReply) and not invocation.reply.abandoned
        ]
        free = 0 if self.leaving else self.runner.free
        begun = [call.execution for call in self.runner.begun()]
        link.send(self._hello(token=token, free=free, running=runs, held=self._held.refs(), begun=begun))
        self.said = self.free
        link.send(Ready(self.said))
        self.link = link
        for frame in self._held:
            self._send_outcome(link, self._counted(frame))
        if self.leaving:
            link.send(Drain(self.leaving))
        self._summaries.flush()

    async def _pause(self, seconds: float) -> None:
        """Jittered, so that all workers of a session that returns do not dial in one instant. `close` ends it."""
        if self._closing:
            return
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):
                await self._closed.wait()
        except TimeoutError:
            return

    def _on_lost(self, link: Link, error: Exception | None) -> None:
        """Calls that have not begun are the session's to give again; of those that run, streams end."""
        if link is self.link:
            self.link = None
        self.line.clear()
        for invocation in list(self.runner.running.values()):
            reply = invocation.reply
            if isinstance(reply, LinkReply) and invocation.stream and invocation.items > 0:
                reply.abandon(invocation)
        self._lost.set()

    # Saying

    @property
    def free(self) -> int:
        """Calls that the session may send now, besides those it sent that have not begun."""
        if self.leaving or self._held.full:
            return 0
        return self.runner.free + self.line.kept + self.times.allowed

    def send(self, frame: AnyFrame) -> bool:
        """Send it if the session is there."""
        if self.link is None or not self.link.is_open:
            return False
        self.link.send(frame)
        return True

    def peer_ended(self, invocation: Invocation, code: str, run_us: int) -> None:
        """A call of a peer is over; `code` is empty for a success."""
        self.times.add(run_us)
        self._summaries.add(invocation, code, run_us)

    def _send_summary(self, frame: Summary) -> bool:
        return self.send(frame)

    def deliver(self, frame: Result | Error, *, kept: bool) -> None:
        """Send an outcome; keep it until it is acknowledged, if it must outlive this session or has none to go to."""
        link = self.link
        if link is None or not link.is_open:
            self._held.add(frame)
            return
        if kept:
            self._held.add(frame)
        elif isinstance(frame, Result):  # made just now, with what is free
            self._send_outcome(link, frame)
            return
        self._send_outcome(link, self._counted(frame))

    def _counted(self, frame: Result | Error) -> Result | Error:
        """With what is free now, whenever the call ended."""
        free = self.free
        return frame if frame.free == free else msgspec.structs.replace(frame, free=free)

    def _send_outcome(self, link: Link, frame: Result | Error) -> None:
        self.said = frame.free
        try:
            if self.line:
                link.send(frame)  # with what the next one says
            else:
                link.send_now(frame)
        except PayloadTooLarge as error:
            self.line.announced = ""
            too_large = failure(frame.execution, frame.attempt, error, ran=True, run_us=frame.run_us)
            if frame.execution in self._held:
                self._held.add(too_large)
            self._send_outcome(link, self._counted(too_large))

    def watch(self) -> None:
        """A call that was not announced runs from the loop: see whether it lasts."""
        if self._watch is None:
            self._watch = self._loop.call_later(LASTS_NS / 1e9, self._look)

    def _look(self) -> None:
        self._watch = None
        now = monotonic_ns()
        for invocation in self.runner.running.values():
            reply = invocation.reply
            if not isinstance(reply, LinkReply) or not reply.quiet:
                continue
            if now - invocation.received_ns >= LASTS_NS:
                reply.lasts(invocation)
            else:
                self.watch()

    def say_free(self) -> None:
        """The number of free slots changed without the session's doing.

        That there are fewer is worth no word while calls are fast: the session may send some that wait here anyway, and
        what finds no place is refused. So peers of a fast function cost the session nothing.
        """
        free = self.free
        if free == self.said or (free < self.said and self.times.allowed):
            return
        if not self._closing and self.send(Credit(free=free)):
            self.said = free
            self._unsaid = True

    def take_unsaid(self) -> bool:
        """Whether something was said since the last time that needs a turn of the loop to leave the process."""
        unsaid, self._unsaid = self._unsaid, False
        return unsaid

    # Leaving

    def want_to_leave(self, reason: str) -> None:
        """Tell the session; it stops sending and closes the connection once nothing is in flight on it."""
        self.leaving = reason or "leaving"
        for frame in self.line.clear():
            self.refuse(frame)
        self._summaries.flush()
        self.send(Drain(reason))

    @property
    def holding(self) -> bool:
        """Outcomes are kept here that nobody else has."""
        return len(self._held) > 0

    async def release(self, *, patience_s: float) -> None:
        """Wait until every kept outcome is acknowledged, `patience_s` at most."""
        if not self._held:
            return
        self._released = asyncio.Event()
        try:
            async with asyncio.timeout(patience_s):
                await self._released.wait()
        except TimeoutError:
            log.warning("%d outcomes were not acknowledged in time and are lost with this worker", len(self._held))

    async def close(self, *, patience_s: float) -> None:
        """Wait for the session to close the connection, `patience_s` at most; then close it here, once all is said."""
        self._closing = True
        self._closed.set()
        if self.link is None:
            return
        self._summaries.flush()
        try:
            async with asyncio.timeout(patience_s):
                await self._lost.wait()
        except TimeoutError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self.link is not None:
            self.link.close()

    # Hearing

    def _on_frame(self, link: Link, frame: AnyFrame) -> None:
        match frame:
            case Invoke():
                self._invoke(link, frame)
            case Ack(executions=executions):
                self._acknowledged(executions)
            case Cancel(execution=execution, reason=reason, attempt=attempt):
                invocation = self.runner.by_execution.get(execution)
                if invocation is not None and attempt in (0, invocation.attempt):
                    self.runner.canceller.stop(invocation, reason)
                elif (waiting := self.line.take_back(execution, attempt)) is not None:
                    self.deliver(failure(execution, waiting.attempt, Cancelled(), ran=False), kept=False)
            case Discard(execution=execution, attempt=attempt):
                if self.line.take_back(execution, attempt) is None:
                    self._keep_from_running(execution, attempt)
            case Credit(execution=execution, items=items):
                invocation = self.runner.by_execution.get(execution)
                if invocation is not None and invocation.window is not None:
                    invocation.window.grant(items)
            case Drain():
                self._on_drain()
            case _:
                log.warning("a frame that no worker understands", extra={"action": "frame_ignored"})

    def _acknowledged(self, executions: list[str]) -> None:
        was_full = self._held.full
        self._held.drop(executions)
        if was_full and not self._held.full:
            self.say_free()
        if not self._held and self._released is not None:
            self._released.set()

    def _keep_from_running(self, execution: str, attempt: int) -> None:
        """The session was told that it begins; its body has not."""
        invocation = self.runner.by_execution.get(execution)
        if invocation is not None and attempt in (0, invocation.attempt) and not invocation.started_ns:
            self.runner.canceller.stop(invocation, "cancel")

    def _invoke(self, link: Link, frame: Invoke) -> None:
        if frame.function not in self._callables:
            error = FunctionNotFound(f"{frame.function!r} is not served here.")
            self.deliver(failure(frame.execution, frame.attempt, error, ran=False), kept=False)
        elif frame.execution in self.runner.by_execution or self.leaving or self._held.full:
            self.refuse(frame)
        else:
            self.line.add(link, frame)

    def reply_to(self, link: Link, frame: Invoke, *, kept: bool, quiet: bool) -> Reply:
        """Where the answer of a call goes that came by `link`."""
        return LinkReply(self, link, kept=kept, quiet=quiet, said=self.line.announced == frame.execution)

    def refuse(self, frame: Invoke) -> None:
        """It was not run and will not be here."""
        self.said = self.free
        self.send(Error(frame.execution, BUSY, frame.attempt, self.said, ran=False))
