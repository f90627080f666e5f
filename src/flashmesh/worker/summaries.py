"""What a worker's peers had it run, kept for the session: it takes part in those calls only by being told."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from flashmesh.wire.frames import PeerCall, Summary
from flashmesh.worker.invocation import Invocation

KEPT: Final = 10_000
"""Calls remembered while the session is away; the oldest go first."""
SOON_S: Final = 0.05
"""How long a call's summary may wait for those of others. Higher: fewer frames, later metrics."""
_PER_FRAME: Final = 500


class Summaries:
    """A ring of calls. `send` takes a frame if it can; what it refuses (the session is away) is kept."""

    def __init__(self, send: Callable[[Summary], bool]) -> None:
        self._send = send
        self._calls: deque[PeerCall] = deque()
        self._dropped = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, invocation: Invocation, code: str, run_us: int) -> None:
        """A peer's call has ended; `code` is empty for a success."""
        queue_us = max(0, invocation.started_ns - invocation.received_ns) // 1000 if invocation.started_ns else 0
        self._calls.append(
            PeerCall(
                invocation.execution,
                invocation.target.id,
                invocation.parent,
                invocation.trace,
                int(time.time() * 1000) - run_us // 1000,
                queue_us,
                run_us,
                {"": "success", "TIMEOUT": "timeout", "CANCELLED": "cancelled"}.get(code, "error"),  # type: ignore[arg-type]
                code,
            )
        )
        if len(self._calls) > KEPT:
            self._calls.popleft()
            self._dropped += 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SOON_S, self.flush)

    def flush(self) -> None:
        """Send what there is, if somebody takes it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._calls:
            some = [self._calls[place] for place in range(min(_PER_FRAME, len(self._calls)))]
            if not self._send(Summary(some, self._dropped)):
                return
            self._dropped = 0
            for _ in some:
                self._calls.popleft()
