"""A worker's link to its session: calls come in, outcomes and free slots go out, and it is dialled again for ever.

What the session gave goes on while it is away: HELLO says what runs and which outcomes are kept here, so that a session
that comes back takes both over. Outcomes of calls whose record outlives the session (async, or with an idempotency
key), and all that end while it is away, are kept until it acknowledges them (held.py).

Fast functions get calls ahead (ahead.py). They wait here in order. A fast call that ends hands its slot to the next one
that waits, in the same turn of the loop; after a slow one, and after silence, a call begins one turn later, so that
what the session said meanwhile, a DISCARD above all, is heard first. Now and then the slot is given back, for peers
that wait at the door. An INVOKE that finds neither slot nor place (a peer took it meanwhile) is answered BUSY,
certainly not run; the session puts it back at the head of its queue.
"""

import asyncio
import logging
import os
import random
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import msgspec

from flashmesh.functions.errors import Cancelled, FunctionNotFound, PayloadTooLarge
from flashmesh.wire import failures
from flashmesh.wire.connection import Keepalive, Link
from flashmesh.wire.frames import (
    INLINE_PAYLOAD_BYTES,
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
from flashmesh.worker.ahead import WORK_US, RunTimes
from flashmesh.worker.callables import Callables
from flashmesh.worker.held import Held
from flashmesh.worker.invocation import Invocation
from flashmesh.worker.runner import Runner
from flashmesh.worker.summaries import Summaries

log = logging.getLogger(__name__)

BUSY: Final = "BUSY"
IN_A_ROW: Final = 32
"""Calls of the session's that may follow each other in one slot before peers have a chance to take it."""

Connect = Callable[[Link], Awaitable[None]]
"""Connects a Link to the session. Raises OSError when nobody answers."""


class LinkReply:
    """Sends the outcome of one call over whatever connection there is by then."""

    __slots__ = ("_announced", "_uplink", "abandoned", "kept", "link")

    def __init__(self, uplink: "Uplink", link: Link, kept: bool, announced: bool) -> None:
        self._uplink = uplink
        self._announced = announced
        """The session knows already that it begins."""
        self.link = link
        """It came by this connection, and its items can go by no other: a later session lacks those before."""
        self.kept = kept
        """Its outcome is kept until it is acknowledged."""
        self.abandoned = False
        """Items of it were lost. It was cancelled, and nobody is told how it ends: the session repeats it."""

    def started(self, invocation: Invocation, *, sync: bool) -> bool:
        if not self._announced:
            uplink = self._uplink
            uplink.send(Started(invocation.execution, invocation.attempt, uplink.worker, uplink.runner.calls == 0))
        return True

    def waiting(self, invocation: Invocation) -> None:
        pass

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
            *uplink.announce(self, len(payload)),
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
        self._taken = taken
        self._redial_s = redial_s
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._closed = asyncio.Event()
        self._closing = False
        self._leaving = ""
        self._unsaid = False
        self._held = Held()
        self._released: asyncio.Event | None = None
        self._waiting: deque[Invoke] = deque()
        self._beginning: asyncio.Handle | None = None
        self._postponed = False
        """The beginning was put off once because a slot was freed before it: what ran may have held the thread."""
        self._kept = 0
        """Slots that wait for the answer before to be on its way."""
        self._in_a_row = 0
        self._announced = ""
        """The execution that begins next, as the last RESULT said."""
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
        free = 0 if self._leaving else self.runner.free
        link.send(self._hello(token=token, free=free, running=runs, held=self._held.refs()))
        link.send(Ready(self.free))
        self._link = link
        for frame in self._held:
            self._send_outcome(link, frame)
        if self._leaving:
            link.send(Drain(self._leaving))
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
        if link is self._link:
            self._link = None
        self._waiting.clear()
        for invocation in list(self.runner.running.values()):
            reply = invocation.reply
            if isinstance(reply, LinkReply) and invocation.stream and invocation.items > 0:
                reply.abandon(invocation)
        self._lost.set()

    # Saying

    @property
    def free(self) -> int:
        """Calls that the session may send now, besides those it sent that have not begun."""
        if self._leaving or self._held.full:
            return 0
        return self.runner.free + self._kept + self.times.allowed

    def send(self, frame: AnyFrame) -> bool:
        """Send it if the session is there."""
        if self._link is None or not self._link.is_open:
            return False
        self._link.send(frame)
        return True

    def peer_ended(self, invocation: Invocation, code: str, run_us: int) -> None:
        """A call of a peer is over; `code` is empty for a success."""
        self.times.add(run_us)
        self._summaries.add(invocation, code, run_us)

    def _send_summary(self, frame: Summary) -> bool:
        return self.send(frame)

    def deliver(self, frame: Result | Error, *, kept: bool) -> None:
        """Send an outcome; keep it until it is acknowledged, if it must outlive this session or has none to go to."""
        link = self._link
        if link is None or not link.is_open:
            self._held.add(frame)
            return
        if kept:
            self._held.add(frame)
        self._send_outcome(link, frame)

    def _send_outcome(self, link: Link, frame: Result | Error) -> None:
        free = self.free  # as it is now, whenever the call ended
        if frame.free != free:
            frame = msgspec.structs.replace(frame, free=free)
        try:
            if self._waiting:
                link.send(frame)  # with what the next one says
            else:
                link.send_now(frame)
        except PayloadTooLarge as error:
            self._announced = ""
            too_large = failure(frame.execution, frame.attempt, error, ran=True, run_us=frame.run_us)
            if frame.execution in self._held:
                self._held.add(too_large)
            self._send_outcome(link, too_large)

    def say_free(self) -> None:
        """The number of free slots changed without the session's doing."""
        if not self._closing and self.send(Credit(free=self.free)):
            self._unsaid = True

    def take_unsaid(self) -> bool:
        """Whether something was said since the last time that needs a turn of the loop to leave the process."""
        unsaid, self._unsaid = self._unsaid, False
        return unsaid

    # Leaving

    def want_to_leave(self, reason: str) -> None:
        """Tell the session; it stops sending and closes the connection once nothing is in flight on it."""
        self._leaving = reason or "leaving"
        while self._waiting:
            self._refuse(self._waiting.popleft())
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
        """Wait for the session to close the connection, `patience_s` at most; then close it here."""
        self._closing = True
        self._closed.set()
        if self._link is None:
            return
        self._summaries.flush()
        try:
            async with asyncio.timeout(patience_s):
                await self._lost.wait()
        except TimeoutError:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()

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
                elif (waiting := self._take_back(execution, attempt)) is not None:
                    self.deliver(failure(execution, waiting.attempt, Cancelled(), ran=False), kept=False)
            case Discard(execution=execution, attempt=attempt):
                if self._take_back(execution, attempt) is None:
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

    def _take_back(self, execution: str, attempt: int) -> Invoke | None:
        """A call that waits here and shall not begin; `attempt` 0: whichever."""
        for frame in self._waiting:
            if frame.execution == execution and attempt in (0, frame.attempt):
                self._waiting.remove(frame)
                return frame
        return None

    def _keep_from_running(self, execution: str, attempt: int) -> None:
        """The session was told that it begins; its body has not."""
        invocation = self.runner.by_execution.get(execution)
        if invocation is not None and attempt in (0, invocation.attempt) and not invocation.started_ns:
            self.runner.canceller.stop(invocation, "cancel")

    def _invoke(self, link: Link, frame: Invoke) -> None:
        if frame.function not in self._callables:
            error = FunctionNotFound(f"{frame.function!r} is not served here.")
            self.deliver(failure(frame.execution, frame.attempt, error, ran=False), kept=False)
        elif frame.execution in self.runner.by_execution or self._leaving or self._held.full:
            self._refuse(frame)
        elif not self._waiting and self._beginning is None and self.runner.free:
            self._begin(link, frame)  # its body has a turn to wait yet
        elif len(self._waiting) < self.runner.free + self.times.allowed:
            self._waiting.append(frame)
            self._begin_soon()
        else:
            self._refuse(frame)

    def _refuse(self, frame: Invoke) -> None:
        """It was not run and will not be here."""
        self.send(Error(frame.execution, BUSY, frame.attempt, self.free, ran=False))

    # Beginning

    def slot_freed(self) -> None:
        """The next call that waits here may have a slot: a turn from now, even where its turn was due in this one."""
        if not self._waiting:
            return
        if self._in_a_row >= IN_A_ROW:
            self._in_a_row = 0
            self._loop.call_soon(self._begin_soon)  # whoever waits at the door is seen before that
            return
        if self._beginning is not None and not self._postponed:
            self._beginning.cancel()
            self._beginning = None
            self._postponed = True
        self._begin_soon()

    def _begin_soon(self) -> None:
        """Not at once: what the session has said until now, a DISCARD above all, is heard before a call begins."""
        if self._beginning is None:
            self._beginning = self._loop.call_soon(self._begin_waiting)

    def _begin_waiting(self) -> None:
        self._beginning = None
        self._postponed = False
        link = self._link
        for _ in range(self.runner.free):
            # A synchronous call has ended when `_begin` returns, and has asked for the next one's turn.
            if not self._waiting or link is None or not self.runner.free:
                break
            self._begin(link, self._waiting.popleft())
        while len(self._waiting) > self.times.allowed:  # peers took the slots meanwhile
            self._refuse(self._waiting.pop())

    def announce(self, before: LinkReply, size: int) -> tuple[str, int]:
        """What `begins` in the slot of a call that is being answered, for its RESULT (of `size` bytes) to say.

        One that is kept may be sent again, and a large one arrives late: neither can speak for another call.
        """
        lasting = before.kept or before.abandoned or before.link is not self._link
        if not self._kept or lasting or size > INLINE_PAYLOAD_BYTES or not self._waiting:
            return "", 0
        following = self._waiting[0]
        self._announced = following.execution
        return following.execution, following.attempt

    def next_in(self, run_us: int) -> Callable[[int], None] | None:
        """Who takes the slot of a call that ran for `run_us`, once its answer is said; None: it is free.

        While a slow call ran the session may have thought better of what waits here: that is heard first.
        """
        if not self._waiting or self._leaving or run_us > WORK_US:
            self._in_a_row = 0
            return None
        if self._in_a_row >= IN_A_ROW:
            return None
        self._in_a_row += 1
        self._kept += 1
        return self._begin_kept

    def _begin_kept(self, slot: int) -> None:
        self._kept -= 1
        link = self._link
        if link is None or not self._waiting:
            self.runner.give(slot, by_link=True)
            return
        frame = self._waiting.popleft()
        if self._taken():
            self._begin_in(slot, link, frame)
        else:
            self.runner.give(slot, by_link=True)
            self._refuse(frame)

    def _begin(self, link: Link, frame: Invoke) -> None:
        slot = self.runner.take(by_link=True) if self._taken() else None
        if slot is None:
            self._refuse(frame)
        else:
            self._begin_in(slot, link, frame)

    def _begin_in(self, slot: int, link: Link, frame: Invoke) -> None:
        meta = frame.meta
        later = meta.get("mode") == "async"
        invocation = Invocation(
            execution=frame.execution,
            target=self._callables[frame.function],
            reply=LinkReply(
                self,
                link,
                later or meta.get("idempotency_key") is not None,
                self._announced == frame.execution,
            ),
            payload=frame.payload,
            content_type=frame.content_type,
            accept=frame.accept,
            attempt=frame.attempt,
            deadline_ms=frame.deadline_ms,
            chain=tuple(meta.get("chain") or ()),
            trace=meta.get("trace") or "",
            metadata=meta.get("metadata"),
            # A call accepted for later keeps its items apart too: whoever asks for them may be early or late.
            stream=bool(meta.get("stream")) or later,
        )
        self.runner.begin(invocation, slot, by_link=True)
