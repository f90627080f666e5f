"""What the dispatcher uses and does not own: time, the makers of workers, the ends of connections, the log."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.wire.frames import AnyFrame, Hello


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


class WorkerPort(Protocol):
    """The session's end of the link of one worker, or of one template."""

    def send(self, frame: AnyFrame) -> None: ...

    def close(self) -> None: ...


class WorkerSource(Protocol):
    """Makes an endpoint's workers. Nothing here blocks or raises; what goes wrong comes back by `fail_endpoint`."""

    def ensure(self, endpoint: EndpointName) -> None:
        """See to it that a template is up or on its way. Idempotent."""
        ...

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        """`workers` are wanted now; remembered while the template is on its way. Surplus ones leave when idle."""
        ...

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        """A template has connected; what it is told goes through `port`."""
        ...

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        """That connection has ended."""
        ...

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        """Make the worker that runs `execution` stop, by force if it must be."""
        ...


class Reply(Protocol):
    """Who waits for a call. `wire.connection.Link` is one: answers to a connection that is gone go nowhere, quietly.

    One with a true `only_the_end` is spared everything before the Result or Error.
    """

    def send(self, frame: AnyFrame) -> None:
        """Take Started, item Chunks (only for a call made with `stream`), then one Result or Error. Never blocks."""
        ...


class Answers(Protocol):
    """How a handler answers more than once. `behind`: the client does not keep up; leave out what can be."""

    def __call__(self, body: dict[str, Any], more: bool = True) -> None: ...

    @property
    def behind(self) -> bool: ...


QueryHandler = Callable[[dict[str, Any], Any], Awaitable[dict[str, Any] | None]]
"""`async (arguments, answers) -> body`: the last answer; None when `answers` was used for all. FlashmeshErrors reach
the client as such. It is cancelled when the client closes the question or goes away."""

EventLog = Callable[[str, Mapping[str, Any]], None]
"""Takes one event: its name and its fields. Never payloads, arguments, headers or environment."""
