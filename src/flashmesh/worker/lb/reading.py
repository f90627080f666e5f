"""Reading a body that comes in pieces, within limits of size and time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from weakref import WeakKeyDictionary

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge

Receive = Callable[[], Awaitable[Any]]


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class BodyTooSlow(FlashmeshError):
    """The request's body did not arrive in time."""

    code = "BODY_TOO_SLOW"
    status = 408


def too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than {limit_bytes} bytes. Send less, or raise the limit with FLASH_MAX_BODY_BYTES."
    )


def limited(receive: Receive, *, limit_bytes: int, limit_s: float) -> Receive:
    """`receive` with the body's limits, for an application that reads it by itself. Raises as `read_whole`."""
    size = 0
    deadline: float | None = None
    over = False

    async def receiving() -> Any:
        nonlocal size, deadline, over
        if over:
            return await receive()
        now = asyncio.get_running_loop().time()
        deadline = now + limit_s if deadline is None else deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise BodyTooSlow(f"The body did not arrive within {limit_s:g} s.") from None
        size += len(message.get("body", b""))
        if size > limit_bytes:
            raise too_large(limit_bytes)
        over = not message.get("more_body", False)
        return message

    return receiving


async def read_whole(receive: Receive, *, limit_bytes: int, limit_s: float) -> bytes:
    """The whole body of an ASGI request.

    Raises:
        PayloadTooLarge, BodyTooSlow: a limit was passed.
        ClientGone: it will not come any more.
    """
    task = asyncio.current_task()
    assert task is not None
    clock = _BodyClock.of(task.get_loop())
    clock.start(task, limit_s)
    try:
        return await _read_all(receive, limit_bytes)
    except asyncio.CancelledError:
        if clock.stop(task):
            raise
        task.uncancel()
        raise BodyTooSlow(f"The body did not arrive within {limit_s:g} s.") from None
    finally:
        clock.stop(task)


class _BodyClock:
    """Ends reads that take too long: one timer for all requests of a loop, instead of one for each."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> "_BodyClock":
        clock = _clocks.get(loop)
        if clock is None:
            clock = _clocks[loop] = cls(loop)
        return clock

    def start(self, task: asyncio.Task[Any], limit_s: float) -> None:
        self._reading[task] = self._loop.time() + limit_s
        if self._timer is None:
            self._timer = self._loop.call_later(min(limit_s, 1.0), self._look)

    def stop(self, task: asyncio.Task[Any]) -> bool:
        """Whether the task was still within its time."""
        return self._reading.pop(task, None) is not None

    def _look(self) -> None:
        now = self._loop.time()
        self._timer = self._loop.call_later(1.0, self._look) if self._reading else None
        for task, deadline in list(self._reading.items()):
            if now >= deadline:
                del self._reading[task]
                task.cancel()


_clocks: "WeakKeyDictionary[asyncio.AbstractEventLoop, _BodyClock]" = WeakKeyDictionary()


async def _read_all(receive: Receive, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        if not message.get("more_body", False):
            return part if not parts else b"".join([*parts, part])
        parts.append(part)
