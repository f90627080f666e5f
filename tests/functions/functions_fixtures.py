"""A Caller that runs nothing: it answers from a table and remembers what it was asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from flashmesh.functions import calls
from flashmesh.functions.calls import Call
from flashmesh.functions.jobs import Job


class FakeCaller:
    """Every call goes away to `answer(call)`; a list from it stands for a generator's items.

    `local` says whether this process runs the bodies itself.
    """

    def __init__(self, answer: Callable[[Call], Any] = lambda call: "answered", *, local: bool = False) -> None:
        self.answer = answer
        self.local = local
        self.seen: list[Call] = []
        self.asked = 0
        self.closed_streams = 0

    def is_local(self, declaration: Any) -> bool:
        self.asked += 1
        return self.local

    async def call(self, call: Call) -> Any:
        return self.call_blocking(call)

    def call_blocking(self, call: Call) -> Any:
        self.seen.append(call)
        return self.answer(call)

    async def stream(self, call: Call) -> AsyncIterator[Any]:
        try:
            for item in self.call_blocking(call):
                yield item
        finally:
            self.closed_streams += 1

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        yield from self.call_blocking(call)

    def spawn(self, call: Call) -> Job:
        answer = self.call_blocking(call)
        return Job("job-1", FakeJobBackend(["QUEUED", "SUCCESS"], answer))


class FakeJobBackend:
    """Goes through `words`, one per question, and stays at the last; then the result is `value`, or raised."""

    def __init__(self, words: list[str], value: Any = None, items: tuple[Any, ...] = ()) -> None:
        self.words = list(words)
        self.value = value
        self.items = items
        self.cancelled: list[str] = []
        self.results = 0

    def status_blocking(self, id: str) -> str:
        return self.words.pop(0) if len(self.words) > 1 else self.words[0]

    async def status(self, id: str) -> str:
        return self.status_blocking(id)

    def result_blocking(self, id: str, timeout: float | None) -> Any:
        self.results += 1
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    async def result(self, id: str, timeout: float | None) -> Any:
        return self.result_blocking(id, timeout)

    def cancel_blocking(self, id: str) -> None:
        self.cancelled.append(id)

    async def cancel(self, id: str) -> None:
        self.cancel_blocking(id)

    async def stream(self, id: str) -> AsyncIterator[Any]:
        for item in self.items:
            yield item

    def stream_blocking(self, id: str) -> Iterator[Any]:
        yield from self.items


@contextlib.contextmanager
def installed(caller: Any) -> Iterator[Any]:
    """`with installed(FakeCaller()) as caller:` — this process's Caller inside the block."""
    before = calls.process.caller
    calls.install(caller)
    try:
        yield caller
    finally:
        calls.install(before)
