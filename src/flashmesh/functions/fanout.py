"""`f.map(xs)`: one call per item, a bounded number of them at a time."""

from __future__ import annotations

from flashmesh.functions.errors import DeclarationError, QueueFull
from flashmesh.functions.window import Outcome, Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
    from typing import Any


def was_refused(error: QueueFull) -> bool:
    """Whether the call never ran. A QueueFull out of the function's own body comes with a remote traceback."""
    return not getattr(error, "remote_traceback", None)


class Fanout:
    """The results of many calls.

    `async for result in f.map(xs)` and `await f.map(xs)` (a list) in coroutines, `for result in f.map(xs)` in plain
    code. The calls start when it is iterated; each time anew. A full queue is obeyed: the item waits as long as it was
    told to and is sent again. The first exception ends it and cancels what runs, unless `return_exceptions` puts
    exceptions among the results.
    """

    __slots__ = (
        "_arguments",
        "_async_call",
        "_blocking_call",
        "_concurrency",
        "_is_here",
        "_ordered",
        "_return_exceptions",
    )

    def __init__(
        self,
        arguments: Iterable[Iterable[Any]],
        *,
        async_call: Callable[..., Any],
        blocking_call: Callable[..., Any],
        is_here: Callable[[], bool],
        concurrency: int,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        if concurrency < 1:
            raise DeclarationError(f"concurrency must be at least 1, got {concurrency}.")
        self._arguments = arguments
        self._async_call = async_call
        self._blocking_call = blocking_call
        self._is_here = is_here
        self._concurrency = concurrency
        self._ordered = ordered
        self._return_exceptions = return_exceptions

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._listed().__await__()

    async def _listed(self) -> list[Any]:
        return [result async for result in self]

    async def __aiter__(self) -> AsyncIterator[Any]:
        import asyncio  # only a running loop gets here

        window = Window(self._concurrency, ordered=self._ordered)
        ended: asyncio.Queue[tuple[int, asyncio.Task[Outcome]]] = asyncio.Queue()
        tasks: set[asyncio.Task[Outcome]] = set()
        items = enumerate(self._arguments)
        try:
            while True:
                while window.has_room() and (item := next(items, None)) is not None:
                    task = asyncio.create_task(self._one(item[1]))
                    task.add_done_callback(_putting(ended, item[0]))
                    tasks.add(task)
                    window.start()
                if not window.running:
                    return
                index, task = await ended.get()
                tasks.discard(task)
                for outcome in window.finish(index, task.result()):
                    yield self._given(outcome)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, arguments: Iterable[Any]) -> Outcome:
        import asyncio

        while True:
            try:
                return Outcome(await self._async_call(*arguments))
            except QueueFull as full:
                if self._is_here() or not was_refused(full):
                    return Outcome(error=full)
                await asyncio.sleep(full.retry_after)
            except Exception as error:  # one item's end: the reader decides what it means
                return Outcome(error=error)

    def __iter__(self) -> Iterator[Any]:
        if self._is_here():  # bodies run in this thread, one after the other, as a plain loop would
            for arguments in self._arguments:
                yield self._given(self._one_blocking(arguments))
            return
        yield from self._from_threads()

    def _from_threads(self) -> Iterator[Any]:
        import contextvars
        from concurrent.futures import ThreadPoolExecutor
        from queue import SimpleQueue

        window = Window(self._concurrency, ordered=self._ordered)
        ended: SimpleQueue[tuple[int, Outcome]] = SimpleQueue()
        items = enumerate(self._arguments)

        def work(index: int, arguments: Iterable[Any]) -> None:
            ended.put((index, self._one_blocking(arguments)))

        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="flash-map")
        try:
            while True:
                while window.has_room() and (item := next(items, None)) is not None:
                    pool.submit(contextvars.copy_context().run, work, item[0], item[1])
                    window.start()
                if not window.running:
                    return
                for outcome in window.finish(*ended.get()):
                    yield self._given(outcome)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one_blocking(self, arguments: Iterable[Any]) -> Outcome:
        from time import sleep

        while True:
            try:
                return Outcome(self._blocking_call(*arguments))
            except QueueFull as full:
                if self._is_here() or not was_refused(full):
                    return Outcome(error=full)
                sleep(full.retry_after)
            except Exception as error:  # as above
                return Outcome(error=error)

    def _given(self, outcome: Outcome) -> Any:
        if outcome.error is None:
            return outcome.value
        if self._return_exceptions:
            return outcome.error
        raise outcome.error


def _putting(ended: asyncio.Queue[tuple[int, asyncio.Task[Outcome]]], index: int) -> Callable[[Any], None]:
    """A callback that notes which item's task ended."""
    return lambda task: ended.put_nowait((index, task))
