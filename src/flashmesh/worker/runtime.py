"""A worker's life: start-up hooks, READY, calls from link and socket, and leaving without dropping one.

    starting ── hooks done ──▶ serving ── idle too long | JOB done | SIGTERM | DRAIN ──▶ leaving ── nothing runs ──▶
    gone

While leaving it accepts nothing; what runs finishes (the template kills what exceeds the drain limit). The session is
told before, so that it sends nothing more, and closes the link once nothing is in flight on it. A JOB worker whose one
call was the session's closes it itself: it was allowed no other.
"""

import asyncio
import os
import signal
import sys
from time import monotonic
from typing import TYPE_CHECKING, Final, NoReturn

import uvloop

from flashmesh.worker.context import WorkerContext
from flashmesh.worker.spec import WorkerSpec

if TYPE_CHECKING:
    from flashmesh.worker.assemble import Parts
    from flashmesh.worker.loader import Loaded

GOODBYE_S: Final = 2.0
"""How long the session has to close the link of a worker that wants to leave; it does so at once when it is alive."""
RELEASE_S: Final = 60.0
"""How long a worker that wants to leave waits for its session to take over the outcomes it holds. Higher: a session may
be away for longer before those calls are run again; the process stays as long."""
REENTRANT_IDLE_S: Final = 5.0
"""An extra worker for re-entrant calls leaves this soon: another one is a fork away."""


def run_worker(spec: WorkerSpec, context: WorkerContext) -> NoReturn:
    """Be a worker until it is time to leave; ends by SystemExit(0). The process is fresh: see zygote.py."""
    ready = context.ahead or get_ready(spec, context.loaded)
    # Not closed: that would wait for threads of the user's, and the process is about to end anyway.
    ready.runner.run(Worker(spec, context).live(ready.loaded))
    sys.exit(0)


class Ready:
    """What a worker can have before it knows which worker it is: the user's modules and a loop."""

    __slots__ = ("loaded", "runner")

    def __init__(self, loaded: "Loaded", runner: asyncio.Runner) -> None:
        self.loaded = loaded
        self.runner = runner


def get_ready(spec: WorkerSpec, loaded: "Loaded | None") -> Ready:
    """`loaded` is None in a fresh interpreter. Runs no user code but that import."""
    # The parts import asyncio and the codecs; the template has done so before the fork.
    from flashmesh.worker.assemble import prepare

    found = loaded or prepare(spec)
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    runner.get_loop()
    return Ready(found, runner)


class Worker:
    """The state of one worker between start-up and leaving."""

    def __init__(self, spec: WorkerSpec, context: WorkerContext) -> None:
        self._spec = spec
        self._context = context
        self._leaving = False
        self._spent = False
        """Its one call has begun."""
        self._credit_spent = False
        """That call was the session's, which may send no other."""
        self._leave = asyncio.Event()
        self._quiet = asyncio.Event()
        self._reason = ""
        self._last_call = monotonic()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._parts: Parts
        self._loop: asyncio.AbstractEventLoop

    async def live(self, loaded: "Loaded") -> None:
        """From hooks to the last answer."""
        from flashmesh.worker.assemble import assemble

        loop = self._loop = asyncio.get_running_loop()
        self._parts = parts = assemble(self._spec, self._context, loaded, self)
        # Not loop.add_signal_handler: its wake-up descriptor would be lost to a loop that user code runs.
        signal.signal(signal.SIGTERM, self._on_sigterm)
        parts.runner.canceller.install()
        loop.add_reader(self._context.session_fd, self._session_gone)
        await parts.start()
        self._context.announce_ready(parts.runner.free)
        for face in parts.faces:
            face.update()
        self._watch_idleness()
        async with asyncio.TaskGroup() as group:
            if parts.uplink is not None:
                group.create_task(parts.uplink.run())
            await self._leave.wait()
            await self._finish()

    # --- what the parts tell ---

    def on_free(self, free: int, by_link: bool) -> None:
        """The number of free slots changed."""
        parts = self._parts
        if not self._leaving:
            self._context.set_free(free)
            if parts.uplink is not None:
                if not by_link:
                    parts.uplink.say_free()
                if free:
                    parts.uplink.line.slot_freed()
        for face in parts.faces:
            face.update()

    def on_idle(self) -> None:
        """Nothing runs any more."""
        self._last_call = monotonic()
        if self._leaving and not self._parts.runner.taken:
            self._quiet.set()

    def on_call(self) -> bool:
        """A call of the session's is about to begin. False: not here, we are leaving; it gives it to another worker."""
        if self._leaving or not self.on_accepted_call():
            return False
        self._credit_spent = self._spent
        return True

    def on_accepted_call(self) -> bool:
        """The same of a call whose connection was accepted: nobody else can take it, so it is run while leaving too.

        False: this worker is there for one call only, and has had it.
        """
        if self._spent:
            return False
        if self._context.one_shot:
            self._spent = True
            if not self._leaving:
                self._stop_accepting("one call was all")
        return True

    def drain(self, reason: str = "asked to") -> None:
        """Take no more, finish what runs, leave. Idempotent."""
        if not self._leaving:
            self._stop_accepting(reason)

    # --- leaving ---

    def _stop_accepting(self, reason: str) -> None:
        self._leaving = True
        self._reason = reason
        self._context.record.set_leaving()
        for face in self._parts.faces:
            face.close()
        if self._parts.uplink is not None:
            self._parts.uplink.want_to_leave(reason)
        # One turn later: the call that is about to begin (JOB) has its slot then.
        asyncio.get_running_loop().call_soon(self._leave.set)

    async def _finish(self) -> None:
        parts = self._parts
        if parts.runner.taken:
            await self._quiet.wait()
        for face in parts.faces:
            await face.closed()
        if parts.uplink is not None:
            await parts.uplink.release(patience_s=RELEASE_S)
            await parts.uplink.close(patience_s=0.0 if self._credit_spent else GOODBYE_S)

    def _watch_idleness(self) -> None:
        if self._context.reentrant:
            limit_s = REENTRANT_IDLE_S
        elif self._context.may_idle_out:
            limit_s = self._spec.resource.idle_timeout_s
        else:
            return
        loop = asyncio.get_running_loop()
        uplink = self._parts.uplink
        needed = self._parts.runner.taken or (uplink is not None and uplink.holding)
        idle_s = 0.0 if needed else monotonic() - self._last_call
        if idle_s >= limit_s:
            self.drain("idle")
        else:
            self._idle_timer = loop.call_later(limit_s - idle_s, self._watch_idleness)

    def _on_sigterm(self, number: int, frame: object) -> None:
        self._loop.call_soon_threadsafe(self.drain, "SIGTERM")

    def _session_gone(self) -> None:
        """End of file on the session pipe: whoever wants answers is gone, so the whole group goes, subprocesses too."""
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
