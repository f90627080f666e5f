"""What happens in a deployment while it runs, for those who watch."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any


class Feed:
    """Events in their order. Late readers get all from the first."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._ended = False
        self._news = asyncio.Event()

    def add(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """Nothing follows."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """All events, those to come included, until the end."""
        place = 0
        while True:
            news = self._news
            while place < len(self._events):
                yield self._events[place]
                place += 1
            if self._ended:
                return
            await news.wait()
