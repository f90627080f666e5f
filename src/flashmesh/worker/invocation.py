"""One call inside a worker, from the moment it is accepted to its answer, and who wants that answer."""

from collections.abc import Mapping
from contextvars import Context, ContextVar
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

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
        """The body runs from the loop from here on, as a task or a generator."""
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


class Invocation:
    """A call and its state.

    Attributes:
        deadline_ms: run time it was given, 0 = no limit. deadline_ns: the monotonic moment at which that is over, or 0.
        chain: names of the endpoints it came through, this one not included.
        trace: W3C traceparent, or "". parent: execution whose body made the call, where a peer says so.
        stream: items are wanted as they come; else a generator's items are answered as one list.
        slot: index of its record, -1 while it has none. by_link: the session gave it, and counts its slot.
        doomed: why it must end; set once.
        in_user: user code of this call has begun and not ended, so an exception may be raised in it.
        raised: what came out of user code; an error of ours in there is its own, say of a call it made.
    """

    __slots__ = (
        "accept",
        "attempt",
        "by_link",
        "chain",
        "collected",
        "content_type",
        "context",
        "deadline_ms",
        "deadline_ns",
        "doomed",
        "execution",
        "finished",
        "generator",
        "in_user",
        "items",
        "metadata",
        "parent",
        "payload",
        "raised",
        "received_ns",
        "reply",
        "slot",
        "started_ns",
        "stream",
        "target",
        "task",
        "trace",
        "window",
    )

    def __init__(
        self,
        *,
        execution: str,
        target: "BoundCallable",
        reply: Reply,
        payload: bytes,
        content_type: str = JSON,
        accept: str = JSON,
        attempt: int = 0,
        deadline_ms: int = 0,
        chain: tuple[str, ...] = (),
        trace: str = "",
        parent: str = "",
        metadata: Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> None:
        self.execution = execution
        self.target = target
        self.reply = reply
        self.payload = payload
        self.content_type = content_type
        self.accept = accept
        self.attempt = attempt
        self.received_ns = monotonic_ns()
        self.deadline_ms = deadline_ms
        self.deadline_ns = self.received_ns + deadline_ms * 1_000_000 if deadline_ms else 0
        self.chain = chain
        self.trace = trace
        self.parent = parent
        self.metadata = metadata
        self.stream = stream
        self.slot = -1
        self.started_ns = 0
        self.items = -1
        self.doomed: Cancelled | TimedOut | None = None
        self.in_user = False
        self.raised: BaseException | None = None
        self.finished = False
        self.context: Context | None = None
        self.task: Task[None] | None = None
        self.generator: Any = None
        self.window: Window | None = None
        self.collected: ItemList | None = None
        self.by_link = False

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
