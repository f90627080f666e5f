"""Jobs of functions that never leave the process (`local=True`): a thread each."""

from __future__ import annotations

import threading
from functools import partial

from flashmesh.functions.blocking import iterate_blocking, run_blocking
from flashmesh.functions.errors import Cancelled, WaitTimedOut
from flashmesh.functions.jobs import Job
from flashmesh.kit.ids import new_execution_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Any


def start_local_job(body: Callable[[], Any]) -> Job:
    """Call `body` in a new thread and return at once; an awaitable or iterator it returns is driven there too.

    The thread is joined when the interpreter exits: what was accepted is finished.
    """
    job = LocalJob(body)
    identity = new_execution_id()
    threading.Thread(target=job.run, name=f"flash-job-{identity[:8]}").start()
    return Job(identity, job)


class LocalJob:
    """The JobBackend of one such job; ids are not looked at.

    A thread cannot be stopped from outside: cancelling one that runs ends it at its next item, and otherwise means
    only that its result is no longer wanted.
    """

    def __init__(self, body: Callable[[], Any]) -> None:
        self._body = body
        self._changed = threading.Condition()  # guards everything below
        self._state = "QUEUED"
        self._value: Any = None
        self._error: BaseException | None = None
        self._items: list[Any] = []
        self._watchers: list[Callable[[], Any]] = []

    def run(self) -> None:
        """The job's thread."""
        if not self._update("RUNNING"):
            return
        try:
            result = self._driven(self._body())
        except BaseException as error:  # the end of one job, whatever it is, belongs to whoever asks for the result
            self._update("ERROR", error=error)
        else:
            self._update("SUCCESS", value=result)

    def _driven(self, result: Any) -> Any:
        kind = type(result)
        if hasattr(kind, "__anext__"):
            return self._collected(iterate_blocking(result))
        if hasattr(kind, "__await__"):
            return run_blocking(result)
        if hasattr(kind, "__next__"):
            return self._collected(result)
        return result

    def _collected(self, items: Iterator[Any]) -> list[Any]:
        for item in items:
            with self._changed:
                if self._over():
                    break
                self._items.append(item)
                self._tell()
        return self._items

    def _over(self) -> bool:
        return self._state not in ("QUEUED", "RUNNING")

    def _update(self, state: str, *, value: Any = None, error: BaseException | None = None) -> bool:
        """Move to a state, unless the job is over. Returns whether it moved."""
        with self._changed:
            if self._over():
                return False
            self._state, self._value, self._error = state, value, error
            self._tell()
            return True

    def _tell(self) -> None:
        self._changed.notify_all()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()

    def status_blocking(self, id: str) -> str:
        return self._state

    async def status(self, id: str) -> str:
        return self._state

    def cancel_blocking(self, id: str) -> None:
        self._update("CANCELLED", error=Cancelled())

    async def cancel(self, id: str) -> None:
        self.cancel_blocking(id)

    def result_blocking(self, id: str, timeout: float | None) -> Any:
        with self._changed:
            if not self._changed.wait_for(self._over, timeout):
                raise WaitTimedOut
        return self._outcome()

    async def result(self, id: str, timeout: float | None) -> Any:
        import asyncio

        try:
            async with asyncio.timeout(timeout):
                while not self._over():
                    await self._next_change(self._over)
        except TimeoutError:
            raise WaitTimedOut from None
        return self._outcome()

    def _outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def stream_blocking(self, id: str) -> Iterator[Any]:
        given = 0
        while True:
            with self._changed:
                self._changed.wait_for(partial(self._has_news, given))
                items = self._items[given:]
            if not items:
                break
            given += len(items)
            yield from items
        self._outcome()

    async def stream(self, id: str) -> AsyncIterator[Any]:
        given = 0
        while True:
            await self._next_change(partial(self._has_news, given))
            items = self._items[given:]
            if not items:
                break
            given += len(items)
            for item in items:
                yield item
        self._outcome()

    def _has_news(self, seen: int) -> bool:
        return len(self._items) > seen or self._over()

    async def _next_change(self, arrived: Callable[[], bool]) -> None:
        """Return once `arrived()`."""
        import asyncio

        loop = asyncio.get_running_loop()
        while True:
            changed = asyncio.Event()
            with self._changed:
                if arrived():
                    return
                self._watchers.append(partial(_wake, loop, changed))
            await changed.wait()


def _wake(loop: asyncio.AbstractEventLoop, changed: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(changed.set)
    except RuntimeError:  # the loop was closed: whoever waited there has given up
        pass
