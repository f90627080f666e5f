"""A session in a thread for the link's tests: answers calls by the function's name, over real sockets."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashmesh.wire.connection import Link
from flashmesh.wire.frames import Answer, AnyFrame, Cancel, Chunk, Credit, Error, Hello, Invoke, Query, Result, Started

WINDOW = 64


class FakeSession:
    """Functions: `echo` (payload back), `hang` (until cancelled), `count` (items under credits), `fail`, `vanish`."""

    def __init__(self) -> None:
        self.seen: list[AnyFrame] = []
        self.links: list[Link] = []
        self.lost: list[Exception | None] = []
        self.most_ahead = 0
        self._changed = threading.Condition()
        self._streams: dict[str, list[int]] = {}

    def until(self, ready: Any, timeout: float = 10) -> None:
        """Wait until `ready()`; AssertionError after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not ready():
                assert time.monotonic() < deadline, f"never happened; seen: {self.seen}"
                self._changed.wait(0.01)  # some conditions change without a frame

    def saw(self, kind: type[AnyFrame]) -> list[Any]:
        return [frame for frame in self.seen if isinstance(frame, kind)]

    def on_lost(self, link: Link, error: Exception | None) -> None:
        with self._changed:
            self.lost.append(error)
            self._changed.notify_all()

    def on_frame(self, link: Link, frame: AnyFrame) -> None:
        with self._changed:
            self.seen.append(frame)
            self._changed.notify_all()
        if isinstance(frame, Hello):
            self.links.append(link)
        elif isinstance(frame, Invoke):
            self._invoke(link, frame)
        elif isinstance(frame, Credit):
            self._streams[frame.execution][0] += frame.items
            self._pour(link, frame.execution)
        elif isinstance(frame, Cancel):
            link.send(Error(frame.execution, "CANCELLED"))
        elif isinstance(frame, Query):
            self._query(link, frame)

    def _invoke(self, link: Link, frame: Invoke) -> None:
        name = frame.function.rpartition(".")[2]
        if name == "vanish":
            link.abort()
            return
        link.send(Started(frame.execution, worker="w", cold=True))
        if name == "echo":
            link.send(Result(frame.execution, content_type=frame.content_type, payload=frame.payload))
        elif name == "fail":
            link.send(Error(frame.execution, "USER_ERROR"))
        elif name == "count":
            self._streams[frame.execution] = [WINDOW, 0, int(frame.payload)]
            self._pour(link, frame.execution)

    def _pour(self, link: Link, execution: str) -> None:
        allowed, sent, total = self._streams[execution]
        while sent < min(allowed, total):
            link.send(Chunk(execution, 0, True, True, str(sent).encode()))
            sent += 1
        self._streams[execution][1] = sent
        if sent == total:
            link.send(Result(execution, items=total))

    def _query(self, link: Link, frame: Query) -> None:
        if frame.what == "status":
            link.send(Answer(frame.id, {"ok": True, **frame.arguments}))
        elif frame.what == "follow":
            for number in range(3):
                link.send(Answer(frame.id, {"n": number}, more=number < 2 or bool(frame.arguments.get("forever"))))
        elif frame.what == "refuse":
            link.send(Answer(frame.id, error={"code": "QUEUE_FULL", "message": "full", "retry_after": 2.5}))


@contextlib.contextmanager
def fake_session(path: Path) -> Iterator[FakeSession]:
    """A FakeSession listening at `path`; gone at the end."""
    session = FakeSession()
    ready = threading.Event()
    stop: list[Any] = []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        server = await loop.create_unix_server(lambda: Link(session.on_frame, session.on_lost), str(path))
        stop.append(lambda: loop.call_soon_threadsafe(over.set))
        ready.set()
        await over.wait()
        server.close()
        for link in session.links:
            link.abort()
        await server.wait_closed()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(10)
        yield session
    finally:
        stop[0]()
        thread.join(10)
