"""Asynchronous code driven from synchronous code."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from typing import Any


def loop_is_running() -> bool:
    """Whether this thread is inside an event loop, found out without importing asyncio."""
    running = getattr(sys.modules.get("asyncio"), "_get_running_loop", None)
    return running is not None and running() is not None


def run_blocking(awaitable: Awaitable[Any]) -> Any:
    """Wait for the result, on a loop of its own.

    Inside a running loop the work is done by another thread; the loop stands still meanwhile, as it must when its
    code asks for a blocking call.
    """
    import asyncio  # a program that never blocks on asynchronous code need not have it

    if not loop_is_running():
        return asyncio.run(_waited(awaitable))
    return _in_thread(lambda: asyncio.run(_waited(awaitable)))


def iterate_blocking(items: AsyncIterator[Any]) -> Iterator[Any]:
    """The items one by one, each computed when it is asked for. Closing the iterator closes `items`."""
    import asyncio

    step: Callable[[Callable[[], Any]], Any] = _in_thread if loop_is_running() else lambda work: work()
    runner = step(asyncio.Runner)
    try:
        while True:
            try:
                item = step(lambda: runner.run(_next(items)))
            except StopAsyncIteration:
                return
            yield item
    finally:
        step(lambda: runner.run(_closed(items)))
        step(runner.close)


async def _waited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _next(items: AsyncIterator[Any]) -> Coroutine[Any, Any, Any]:
    return _waited(items.__anext__())


async def _closed(items: AsyncIterator[Any]) -> None:
    close = getattr(items, "aclose", None)
    if close is not None:
        await close()


def _in_thread(work: Callable[[], Any]) -> Any:
    """Run in a fresh thread with this one's context variables, and wait."""
    import contextvars
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, work).result()
