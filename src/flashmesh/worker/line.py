"""Calls of the session's that wait for a slot in this worker, and how they begin.

They wait in the order in which they came. A call that ends hands its slot to the next one, in the same turn of the
loop; after a slow one, and after silence, a call begins one turn later, so that what the session said meanwhile, a
DISCARD above all, is heard first. Now and then the slot is given back, for peers that wait at the door. A call that
finds neither slot nor place (a peer took it meanwhile) is refused as BUSY, certainly not run.

Most calls are announced: STARTED, or the RESULT before them, says that they begin before they do, so that whoever asks
is told and so that after a crash it is known what had run. Where every call has been over in a moment, they begin
*quietly*: the session assumes it of the oldest one that it has no answer to, and after a crash the shared record, which
the template reads, says whether it had begun. What a quiet call must not be, the session relies on as well
(`queueing/outcomes.py: certainly_waits`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from flashmesh.wire.connection import Link
from flashmesh.wire.frames import INLINE_PAYLOAD_BYTES, Invoke
from flashmesh.worker.ahead import WORK_US, RunTimes
from flashmesh.worker.callables import Callables
from flashmesh.worker.invocation import Invocation, Reply
from flashmesh.worker.runner import Runner

IN_A_ROW: Final = 32
"""Calls of the session's that may follow each other in one slot before peers have a chance to take it."""


class LineOwner(Protocol):
    """What a line needs of the worker's link."""

    link: Link | None
    leaving: str
    """Why the worker leaves; empty: it does not."""

    def reply_to(self, link: Link, frame: Invoke, *, kept: bool, quiet: bool) -> Reply:
        """Where its answer goes: by `link`; `kept` until it is acknowledged."""
        ...

    def refuse(self, frame: Invoke) -> None:
        """It was not run and will not be here."""
        ...


class Line:
    """The calls that wait.

    Args:
        owner: the link they come by.
        taken: called when a call is about to begin; False = do not run it.
    """

    def __init__(
        self, owner: LineOwner, *, runner: Runner, callables: Callables, times: RunTimes, taken: Callable[[], bool]
    ) -> None:
        self._owner = owner
        self._runner = runner
        self._callables = callables
        self._times = times
        self._taken = taken
        self._loop = asyncio.get_running_loop()
        self._frames: deque[Invoke] = deque()
        self._beginning: asyncio.Handle | None = None
        self._postponed = False
        """The beginning was put off once because a slot was freed before it: what ran may have held the thread."""
        self.kept = 0
        """Slots that wait for the answer before to be on its way."""
        self._followed = 0
        """Calls that have followed each other in one slot."""
        self.announced = ""
        """The execution that begins next, as the last RESULT said."""

    def __bool__(self) -> bool:
        return bool(self._frames)

    def clear(self) -> list[Invoke]:
        """Nothing waits any more; what did."""
        frames, self._frames = list(self._frames), deque()
        return frames

    def take_back(self, execution: str, attempt: int) -> Invoke | None:
        """A call that waits here and shall not begin; `attempt` 0: whichever."""
        for frame in self._frames:
            if frame.execution == execution and attempt in (0, frame.attempt):
                self._frames.remove(frame)
                return frame
        return None

    def add(self, link: Link, frame: Invoke) -> None:
        """A call has come; it is known here and not running."""
        runner = self._runner
        if not self._frames and self._beginning is None and runner.free:
            self._begin(link, frame)  # its body has a turn to wait yet
        elif len(self._frames) < runner.free + self._times.allowed:
            self._frames.append(frame)
            self._begin_soon()
        else:
            self._owner.refuse(frame)

    def slot_freed(self) -> None:
        """The next call that waits here may have a slot: a turn from now, even where its turn was due in this one."""
        if not self._frames:
            return
        if self._followed >= IN_A_ROW:
            self._followed = 0
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
        link, frames = self._owner.link, self._frames
        for _ in range(self._runner.free):
            # A synchronous call has ended when `_begin` returns, and has asked for the next one's turn.
            if not frames or link is None or not self._runner.free:
                break
            self._begin(link, frames.popleft())
        while len(frames) > self._times.allowed:  # peers took the slots meanwhile
            self._owner.refuse(frames.pop())

    def announce(self, link: Link, size: int, *, lasting: bool) -> tuple[str, int]:
        """What begins in the slot of a call that is being answered, for its RESULT (of `size` bytes) to say.

        One that is kept (`lasting`) may be sent again, one of another link than `link` says nothing to this one, and a
        large one arrives late: none of them can speak for another call. A quiet one needs nobody to speak for it.
        """
        if not self.kept or not self._frames or lasting or size > INLINE_PAYLOAD_BYTES:
            return "", 0
        following = self._frames[0]
        if link is not self._owner.link or self._is_quiet(link, following):
            return "", 0
        self.announced = following.execution
        return following.execution, following.attempt

    def next_in(self, run_us: int) -> Callable[[int], None] | None:
        """Who takes the slot of a call that ran for `run_us`, once its answer is said; None: it is free.

        While a slow call ran the session may have thought better of what waits here: that is heard first.
        """
        if not self._frames or self._owner.leaving or run_us > WORK_US:
            self._followed = 0
            return None
        if self._followed >= IN_A_ROW:
            return None
        self._followed += 1
        self.kept += 1
        return self._begin_kept

    def _begin_kept(self, slot: int) -> None:
        self.kept -= 1
        link = self._owner.link
        if link is None or not self._frames:
            self._runner.give(slot, by_link=True)
            return
        frame = self._frames.popleft()
        if self._taken():
            self._begin_in(slot, link, frame)
        else:
            self._runner.give(slot, by_link=True)
            self._owner.refuse(frame)

    def _begin(self, link: Link, frame: Invoke) -> None:
        slot = self._runner.take(by_link=True) if self._taken() else None
        if slot is None:
            self._owner.refuse(frame)
        else:
            self._begin_in(slot, link, frame)

    def _is_quiet(self, link: Link, frame: Invoke) -> bool:
        """Whether a call that waits may begin without a word.

        Not where its record or its limit needs to know; nor where several run at once, or where a full socket keeps
        answers back: then it would not be the oldest without an answer.
        """
        if not self._times.quick or frame.deadline_ms or not link.local or link.paused or self._runner.limit > 1:
            return False
        meta = frame.meta
        if meta.get("mode") == "async" or meta.get("idempotency_key") is not None or meta.get("stream"):
            return False
        target = self._callables[frame.function]
        return not target.is_generator and not self._runner.limit_ms(target)

    def _begin_in(self, slot: int, link: Link, frame: Invoke) -> None:
        meta = frame.meta
        quiet = self._is_quiet(link, frame)
        later = meta.get("mode") == "async"
        invocation = Invocation(
            execution=frame.execution,
            target=self._callables[frame.function],
            reply=self._owner.reply_to(link, frame, kept=later or meta.get("idempotency_key") is not None, quiet=quiet),
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
        self._runner.begin(invocation, slot, by_link=True)
