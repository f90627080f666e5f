"""One call inside a worker, from the moment it is accepted to its answer, and who wants that answer."""

from collections.abc import Mapping
from contextvars import Context, ContextVar
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from flashmesh.functions.errors import Cancelled, TimedOut
from flashmesh.wire.frames import JSON

if TYPE_CHECKING:
    from asyncio import Task

    from flashmesh.worker.callables import BoundCallable
    from flashmesh.worker.records import Reason
    from flashmesh.worker.streams import ItemList, Window

CHAIN_LIMIT: Final = 8
"""Endpoints a call may pass through. A ninth is a CallCycle, whatever their names."""


class Reply(Protocol):
    """Where one invocation's answer goes. Exactly one of `succeeded` and `failed` is called, after the slot is free."""

    def started(self, invocation: "Invocation", *, sync: bool) -> bool:
        """The body begins, `sync`: and holds the main thread until it ends or `waiting` is called.

        True: give the loop one turn first, so that what was said leaves the process before a synchronous body.
        """
        ...

    def waiting(self, invocation: "Invocation") -> None:
        """The body runs from the loop from here on, as a task or a generator; its first step is due before what is
        put off now."""
        ...

    def item(self, invocation: "Invocation", data: bytes) -> None:
        """One encoded item of a stream."""
        ...

    def succeeded(self, invocation: "Invocation", content_type: str, payload: bytes, run_us: int) -> None:
        """An empty payload and `invocation.items` >= 0: the items went before."""
        ...

    def failed(
        self, invocation: "Invocation", error: BaseException, run_us: int, *, ran: bool, code: str | None
    ) -> None:
        """`ran` False: the body certainly never began. `code`: what it counts as; None = what its own class says."""
        ...


class Invocation(msgspec.Struct, eq=False):
    """A call and its state. Counts from when it is made."""

    execution: str
    target: "BoundCallable"
    reply: Reply
    payload: bytes
    content_type: str = JSON
    accept: str = JSON
    attempt: int = 0
    deadline_ms: int = 0
    """Run time it was given, 0 = no limit."""
    chain: tuple[str, ...] = ()
    """Names of the endpoints it came through, this one not included."""
    trace: str = ""
    """W3C traceparent, or empty."""
    parent: str = ""
    """Execution whose body made the call, where a peer says so."""
    metadata: Mapping[str, Any] | None = None
    stream: bool = False
    """Items are wanted as they come; else a generator's items are answered as one list."""
    received_ns: int = 0
    deadline_ns: int = 0
    """The monotonic moment at which `deadline_ms` is over, or 0."""
    slot: int = -1
    """Index of its record, -1 while it has none."""
    by_link: bool = False
    """The session gave it, and counts its slot."""
    started_ns: int = 0
    items: int = -1
    doomed: Cancelled | TimedOut | None = None
    """Why it must end; set once."""
    in_user: bool = False
    """User code of this call has begun and not ended, so an exception may be raised in it."""
    raised: BaseException | None = None
    """What came out of user code; an error of ours in there is its own, say of a call it made."""
    finished: bool = False
    context: "Context | None" = None
    task: "Task[None] | None" = None
    stepped: bool = False
    """Its task has begun. Before that it must not be cancelled, as nothing of it would run: it looks at `doomed`."""
    generator: Any = None
    window: "Window | None" = None
    collected: "ItemList | None" = None

    def __post_init__(self) -> None:
        self.received_ns = now = monotonic_ns()
        if self.deadline_ms:
            self.deadline_ns = now + self.deadline_ms * 1_000_000

    def tighten(self, limit_ms: int) -> None:
        """Give it no more than `limit_ms` of run time; 0 changes nothing."""
        if limit_ms and not 0 < self.deadline_ms <= limit_ms:
            self.deadline_ms = limit_ms
            self.deadline_ns = self.received_ns + limit_ms * 1_000_000

    @property
    def run_us(self) -> int:
        """Microseconds since the body began; 0 when it has not."""
        return (monotonic_ns() - self.started_ns) // 1000 if self.started_ns else 0

    def remaining_ms(self) -> int:
        """Run time left in milliseconds, at least 1; 0 = no limit."""
        return max(1, (self.deadline_ns - monotonic_ns()) // 1_000_000) if self.deadline_ns else 0


CURRENT: ContextVar[Invocation | None] = ContextVar("flashmesh_invocation", default=None)
"""The call whose user code runs here; nested calls inherit chain, trace and deadline from it."""


def ending(reason: "Reason") -> Cancelled | TimedOut:
    """The exception that ends a call for this reason."""
    return TimedOut() if reason == "timeout" else Cancelled()
