"""A call on its way: the execution's record plus what only the dispatcher cares about."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from flashmesh.executions.record import Execution, Kind
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import BuildId, ExecutionId
from flashmesh.queueing.ports import Reply, Timer
from flashmesh.wire.frames import AnyFrame, Invoke

if TYPE_CHECKING:
    from flashmesh.queueing.slots import Worker

Accepted = Callable[[FlashmeshError | None], None]
"""Told None once a call is accepted for good, or why it was not after all."""
INITIAL_WINDOW_ITEMS = 64
"""Items a worker may send before it needs credits (the link's rule)."""
GRANT_ITEMS = INITIAL_WINDOW_ITEMS // 2
GRANT_BYTES = 64 * 1024
"""Credits go back to the worker by the half window, or sooner when items are large: its window is 256 KiB as well."""


class Call(msgspec.Struct, eq=False):
    """One accepted call until it ends; made by `new_call`. Times are seconds of the monotonic clock."""

    execution: Execution
    frame: Invoke
    reply: Reply | None
    """Who sent it; its answers go out under the id it chose."""
    kind: Kind
    later: bool
    """Nobody waits on a connection: it stands in the second line."""
    urgent: bool
    kept: bool
    """Its record outlives this process, and its worker keeps the outcome until that is stored."""
    stream: bool
    """Items go to the caller as they come."""
    unheard: bool
    """Whoever sent it wants to hear of its end and of nothing before."""
    max_retries: int | None
    """Extra attempts, where the call has a say of its own."""
    submitted_at: float
    enqueued_at: float
    waiters: list[tuple[Reply, ExecutionId]] | None = None
    """Who sent the same call again (same idempotency key), and under which id."""
    watchers: list[Callable[[], None]] | None = None
    """Told of every item and of the end."""
    uncommitted: bool = False
    """Its record is not durable yet: it has no place in line."""
    reserved: bool = False
    """It counts in the backlog all the same."""
    restored: bool = False
    """A server before this one accepted it."""
    accepted: dict[ExecutionId, Accepted] | None = None
    """Who is to be told once it is durable, by the id under which they sent it."""
    moved: int = 0
    """How often it was taken back from a worker that had not begun it; never an attempt that counts."""
    queued: bool = False
    worker: "Worker | None" = None
    started_at: float | None = None
    limit_ms: int = 0
    cancel: Literal["cancel", "timeout", "list", ""] = ""
    """Why it was told to stop, if it was."""
    build: BuildId = BuildId("")
    """Only workers of this build can run it; empty: any."""
    yielded: int = 0
    owed_items: int = 0
    owed_bytes: int = 0
    """Items received that the worker has no credits back for, and their size."""
    start_failures: int = 0
    timer: Timer | None = None
    cold_us: int = 0

    @property
    def id(self) -> ExecutionId:
        return self.execution.id

    @property
    def attempt(self) -> int:
        """What its worker is told and answers under. Grows whenever another worker may have it."""
        return self.execution.attempt + self.moved

    @property
    def size_bytes(self) -> int:
        return len(self.frame.payload)

    def invoke(self, build: BuildId) -> Invoke:
        """The frame for a worker: the client's own payload bytes under the current attempt."""
        frame = self.frame
        meta = frame.meta
        if self.later:
            meta = {**meta, "mode": "async", "stream": True}  # items are kept here, for whoever asks for them
        return Invoke(
            frame.execution,
            frame.function,
            self.execution.attempt + self.moved,
            build,
            frame.content_type,
            frame.accept,
            self.limit_ms,
            meta,
            0,
            frame.payload,
        )

    def answer(self, frame: AnyFrame) -> None:
        """Send to whoever sent the call first."""
        if self.reply is not None:
            self.reply.send(frame)

    def tell_watchers(self) -> None:
        for watcher in list(self.watchers or ()):
            watcher()

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def new_call(execution: Execution, frame: Invoke, reply: Reply | None, kind: Kind, now: float) -> Call:
    """A call that was accepted at `now`."""
    meta, later = frame.meta, kind == "async"
    return Call(
        execution,
        frame,
        reply,
        kind,
        later,
        meta.get("priority") == 1,
        later or execution.idempotency_key is not None,
        not later and bool(meta.get("stream")),
        getattr(reply, "only_the_end", False),
        meta.get("max_retries"),
        now,
        now,
    )
