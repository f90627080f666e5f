"""The port through which executions are kept. One contract suite runs over every implementation."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Protocol

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Status
from flashmesh.functions.errors import DuplicateExecution, ExecutionNotFound, FlashmeshError
from flashmesh.kit.ids import ExecutionId


class StoreUnavailable(FlashmeshError):
    """What is accepted cannot be written down now, so nothing was accepted. Look at the disk, then try again."""

    code = "STORE_UNAVAILABLE"
    status = 503

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long ended executions are kept: whichever bound bites first. Those still queued or running always stay."""

    count: int = 10_000
    """Most ended executions kept. Each costs about 1 KB beside its result."""
    age_s: float = 24 * 3600
    """Ended longer ago: forgotten. Also how long an idempotency key is sure to be known."""
    bytes: int = 256 * 1024 * 1024
    """Most bytes of results, items, and payloads of what did not succeed, together."""


def fingerprint(function: str, content_type: str, payload: bytes) -> bytes:
    """What makes two requests under one idempotency key "the same body": 16 bytes."""
    digest = hashlib.blake2b(payload, digest_size=16)
    digest.update(b"\0" + function.encode() + b"\0" + content_type.encode())
    return digest.digest()


def already_exists(execution: ExecutionId) -> DuplicateExecution:
    return DuplicateExecution(f"an execution {execution} exists already. Make a new id for every call")


def unknown(execution: ExecutionId) -> ExecutionNotFound:
    return ExecutionNotFound(
        f"no execution {execution} is known; it may be too old to be kept. `flash status` shows what runs"
    )


class Store(Protocol):
    """Keeps executions. Synchronous: an implementation that waits for a disk commits in groups behind this port.

    Each method is atomic: when it raises, nothing has changed. Every later call sees a change at once; it is durable,
    as far as the implementation promises that, when `when_durable` says so. An ended execution never changes again,
    except that it may be evicted, or lose its result, within the store's Retention.
    """

    @property
    def unavailable(self) -> Exception | None:
        """Why nothing can be written down at the moment; None as long as it can, or need not be."""
        ...

    def create(self, execution: Execution) -> Execution:
        """Take a new QUEUED execution.

        With an `idempotency_key` known for the same function and body the execution of the first call is returned and
        nothing is taken: callers compare ids. Keys are known for at least `Retention.age_s` after that execution ended,
        whatever the other bounds do, and belong to one function.

        Raises:
            IdempotencyConflict: the key is known with another body.
            DuplicateExecution: the id is taken.
            StoreUnavailable: it cannot be written down now; only for what would have to be.
        """
        ...

    def get(self, execution: ExecutionId) -> Execution:
        """The record as it stands. Raises ExecutionNotFound: never seen, or evicted."""
        ...

    def start(self, execution: Execution, attempt: int, *, at: float, worker: str, build: str) -> None:
        """QUEUED → RUNNING. Raises StaleAttempt, IllegalTransition."""
        ...

    def requeue(self, execution: Execution, attempt: int) -> None:
        """RUNNING → QUEUED for another attempt; `attempt` grows by one. Raises StaleAttempt, IllegalTransition."""
        ...

    def finish(self, execution: Execution, attempt: int, outcome: Outcome, *, at: float) -> None:
        """Enter a final state. Raises StaleAttempt, IllegalTransition.

        One that succeeds drops its request's payload. One that does not keeps it, for a client that has it repeated; it
        counts in `Retention.bytes` with the result, and goes with that.
        """
        ...

    def payload(self, execution: Execution) -> bytes | None:
        """What the client sent, of an execution of this store. None: it is not kept (any more).

        Ask for it here: a record that is read back from a disk comes without it.
        """
        ...

    def recent(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        after: ExecutionId | None = None,
    ) -> list[Execution]:
        """At most `limit` executions that match, newest first, of those older than `after` when it is given.

        For lists: a record that is read back from a disk may come without its result and items; `get` has them.

        Raises:
            ExecutionNotFound: `after` is not known (any more). Begin again without it.
        """
        ...

    def unfinished(self) -> list[Execution]:
        """Every QUEUED or RUNNING execution, oldest first: what a restarted session goes on with."""
        ...

    def when_durable(
        self, then: Callable[[StoreUnavailable | None], None], *, about: ExecutionId | None = None
    ) -> None:
        """Call `then(None)` once what was said to the store before is as durable as this store makes it.

        Ask right after the change that matters, or name the execution that it is about. An implementation without a
        disk calls before it returns, others on the event loop, in the order they were asked. Only a change that carries
        many bytes is waited for by who asked right after or about it, and not by those who say something small later.

        `then(StoreUnavailable)`: it could not be written. Each async `create` among it is undone, as if it had never
        been: its record and its idempotency key are gone. Other changes stay, and are written when that is possible.
        """
        ...
