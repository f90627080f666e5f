"""What the dispatcher uses and does not own: time, the makers of workers, the ends of connections, the log."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.wire.frames import AnyFrame


class Timer(Protocol):
    """Something that will happen."""

    def cancel(self) -> None:
        """It will not happen. No effect when it has."""
        ...


class Clock(Protocol):
    """Time that a test can make pass. Callbacks run on the dispatcher's thread, never inside `call_later` itself."""

    def now(self) -> float:
        """Seconds of a monotonic clock."""
        ...

    def wall(self) -> float:
        """UTC seconds since the epoch."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...


class LoopClock:
    """The Clock of a running asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = time.monotonic
        self.wall = time.time

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_s, callback)


class WorkerSource(Protocol):
    """Makes an endpoint's workers. Nothing here blocks or raises; what goes wrong comes back by `fail_endpoint`."""

    def ensure(self, endpoint: EndpointName) -> None:
        """See to it that a template is up or on its way. Idempotent."""
        ...

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        """`workers` are wanted now; remembered while the template is on its way. Surplus ones leave when idle."""
        ...

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        """Make the worker that runs `execution` stop, by force if it must be."""
        ...


class Reply(Protocol):
    """Who waits for a call. `wire.connection.Link` is one: answers to a connection that is gone go nowhere, quietly."""

    def send(self, frame: AnyFrame) -> None:
        """Take Started, item Chunks (only for a call made with `stream`), then one Result or Error. Never blocks."""
        ...


class WorkerPort(Protocol):
    """The session's end of one worker's link."""

    def send(self, frame: AnyFrame) -> None: ...

    def close(self) -> None: ...


EventLog = Callable[[str, Mapping[str, Any]], None]
"""Takes one event: its name and its fields. Never payloads, arguments, headers or environment."""
