"""What calling a decorated generator function gives."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
    from types import TracebackType
    from typing import Any


class Stream:
    """`async for item in f(x)` gives the items as they come; `await f(x)` gives the list of them.

    It has the methods of a coroutine, so that `asyncio.run(f(x))` and `asyncio.create_task(f(x))` take it.
    Nothing runs before it is iterated or awaited.
    """

    __slots__ = ("_collecting", "_open")

    def __init__(self, open: Callable[[], AsyncIterator[Any]]) -> None:
        self._open = open
        self._collecting: Coroutine[Any, Any, list[Any]] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._open()

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self._collect().__await__()

    def _collect(self) -> Coroutine[Any, Any, list[Any]]:
        if self._collecting is None:
            self._collecting = _listed(self._open())
        return self._collecting

    def send(self, value: Any) -> Any:
        return self._collect().send(value)

    def throw(self, kind: Any, value: Any = None, traceback: TracebackType | None = None) -> Any:
        return self._collect().throw(kind if value is None else value)

    def close(self) -> None:
        if self._collecting is not None:
            self._collecting.close()


async def _listed(items: AsyncIterator[Any]) -> list[Any]:
    try:
        return [item async for item in items]
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()


async def as_async(items: Iterator[Any]) -> AsyncIterator[Any]:
    """A plain generator's items, for `async for`. Closing it closes the generator."""
    try:
        for item in items:
            yield item
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()
