"""The port through which executions are kept. One contract suite runs over every implementation."""

import dataclasses
import hashlib
from typing import Protocol

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Status
from flashmesh.kit.ids import ExecutionId


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How long ended executions are kept: whichever bound bites first. Those still queued or running always stay."""

    count: int = 10_000
    """Most ended executions kept. Each costs about 1 KB beside its result."""
    age_s: float = 24 * 3600
    """Ended longer ago: forgotten. Also how long an idempotency key is sure to be known."""
    bytes: int = 256 * 1024 * 1024
    """Most bytes of results and items together."""


def fingerprint(function: str, content_type: str, payload: bytes) -> bytes:
    """What makes two requests under one idempotency key "the same body": 16 bytes."""
    digest = hashlib.blake2b(payload, digest_size=16)
    digest.update(b"\0" + function.encode() + b"\0" + content_type.encode())
    return digest.digest()


class Store(Protocol):
    """Keeps executions. Synchronous: an implementation that waits for a disk commits in groups behind this port.

    Each method is atomic: when it raises, nothing has changed. A change is durable (as far as the implementation
    promises any durability) when the method returns. An ended execution never changes again, except that it may be
    evicted, or lose its result, within the store's Retention.
    """

    def create(self, execution: Execution) -> Execution:
        """Take a new QUEUED execution.

        With an `idempotency_key` known for the same function and body the execution of the first call is returned and
        nothing is taken: callers compare ids. Keys are known for at least `Retention.age_s` after that execution ended,
        whatever the other bounds do, and belong to one function.

        Raises:
            IdempotencyConflict: the key is known with another body.
            DuplicateExecution: the id is taken.
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
        """Enter a final state and drop the request's payload. Raises StaleAttempt, IllegalTransition."""
        ...

    def recent(self, *, function: str | None = None, status: Status | None = None, limit: int = 100) -> list[Execution]:
        """At most `limit` executions that match, newest first."""
        ...

    def unfinished(self) -> list[Execution]:
        """Every QUEUED or RUNNING execution, oldest first: what a restarted session goes on with."""
        ...
