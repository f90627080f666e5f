"""A call on its way: the execution's record plus what only the dispatcher cares about."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

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


class Call:
    """One accepted call until it ends. Times are seconds of the monotonic clock."""

    __slots__ = (
        "accepted",
        "build",
        "cancel",
        "cold_us",
        "enqueued_at",
        "execution",
        "frame",
        "kept",
        "kind",
        "later",
        "limit_ms",
        "max_retries",
        "moved",
        "owed_bytes",
        "owed_items",
        "queued",
        "reply",
        "reserved",
        "restored",
        "start_failures",
        "started_at",
        "stream",
        "submitted_at",
        "timer",
        "uncommitted",
        "urgent",
        "waiters",
        "watchers",
        "worker",
        "yielded",
    )

    def __init__(self, execution: Execution, frame: Invoke, reply: Reply | None, kind: Kind, now: float) -> None:
        meta = frame.meta
        self.execution = execution
        self.frame = frame
        self.reply = reply
        """Who sent it; its answers go out under the id it chose."""
        self.waiters: list[tuple[Reply, ExecutionId]] | None = None
        """Who sent the same call again (same idempotency key), and under which id."""
        self.watchers: list[Callable[[], None]] | None = None
        """Told of every item and of the end."""
        self.kind = kind
        self.later = kind == "async"
        """Nobody waits on a connection: it stands in the second line."""
        self.urgent = meta.get("priority") == 1
        self.kept = self.later or execution.idempotency_key is not None
        """Its record outlives this process, and its worker keeps the outcome until that is stored."""
        self.max_retries: int | None = meta.get("max_retries")
        """Extra attempts, where the call has a say of its own."""
        self.uncommitted = False
        """Its record is not durable yet: it has no place in line."""
        self.restored = False
        """A server before this one accepted it."""
        self.reserved = False
        """It counts in the backlog all the same."""
        self.accepted: dict[ExecutionId, Accepted] | None = None
        """Who is to be told once it is durable, by the id under which they sent it."""
        self.moved = 0
        """How often it was taken back from a worker that had not begun it; never an attempt that counts."""
        self.submitted_at = now
        self.enqueued_at = now
        self.queued = False
        self.worker: Worker | None = None
        self.started_at: float | None = None
        self.limit_ms = 0
        self.cancel: Literal["cancel", "timeout", "list", ""] = ""
        """Why it was told to stop, if it was."""
        self.build = BuildId("")
        """Only workers of this build can run it; empty: any."""
        self.stream = bool(meta.get("stream")) and kind == "sync"
        """Items go to the caller as they come."""
        self.yielded = 0
        self.owed_items = 0
        self.owed_bytes = 0
        """Items received that the worker has no credits back for, and their size."""
        self.start_failures = 0
        self.timer: Timer | None = None
        self.cold_us = 0

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
