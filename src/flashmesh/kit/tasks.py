"""Tasks that somebody owns: begun in the background, ended with their owner."""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Those that run; one that has ended is forgotten. What a task raises is its own business: nobody asks it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None], *, name: str | None = None) -> "asyncio.Task[None]":
        """Run it on the running loop, until it returns or `close` cancels it."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def close(self) -> None:
        """Cancel all that run and wait until they have ended. Others may be begun afterwards."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
