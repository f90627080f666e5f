"""The asyncio client of a session: calls functions and asks questions over one link.

Used by the dev server, scripts with a running loop and commands. Answers arrive by callback: a waiting call costs one
future, not a task. When the link is lost, everything that waits raises LinkLost; the client does not redial.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire.answers import CLOSE, CREDIT_BATCH, again, body_of, client_hello
from flashmesh.wire.blocking_client import BlockingClient, BlockingInvocation
from flashmesh.wire.connection import Link, dial
from flashmesh.wire.frames import (
    Answer,
    AnyFrame,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Invoke,
    Query,
    Result,
    Started,
)


class Invocation:
    """One call that was sent. `execution` is its id.

    Attributes:
        started: set when the body begins to run, or the call ended without running.
        done: the future of the Result or Error frame; LinkLost when the session went away. For callbacks.
        worker: which worker runs it, and whether it was a cold start; known once `started`.
    """

    __slots__ = ("_client", "_consumed", "_items", "_more", "cold", "done", "execution", "started", "worker")

    def __init__(self, client: "SessionClient", execution: str, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self.execution = execution
        self.started = asyncio.Event()
        self.done: asyncio.Future[Result | Error] = loop.create_future()
        self.worker = ""
        self.cold = False
        self._items: deque[bytes] = deque()
        self._more: asyncio.Event | None = None
        self._consumed = 0

    async def result(self) -> Result | Error:
        """The final frame, whichever it is. Cancelling the awaiting task cancels the call. Raises LinkLost."""
        try:
            return await self.done
        except asyncio.CancelledError:
            self.cancel()
            raise

    async def wait(self, timeout: float) -> Result | Error | None:
        """The final frame, or None after `timeout` seconds; the call goes on either way. Raises LinkLost."""
        done, _ = await asyncio.wait((self.done,), timeout=timeout)
        return self.done.result() if done else None

    async def items(self) -> AsyncIterator[bytes]:
        """What a generator yields, as it comes; ends with the call, whose outcome `result()` tells. Raises LinkLost.

        The reader's pace is the generator's: unread items are at most what the stream's credits allow. Leaving the loop
        early cancels the call.
        """
        self._more = more = asyncio.Event()
        try:
            while True:
                while self._items:
                    item = self._items.popleft()
                    self._grant()
                    yield item
                if self.done.done():
                    if not self.done.cancelled() and (lost := self.done.exception()) is not None:
                        raise lost
                    return
                more.clear()
                await more.wait()
        finally:
            self._more = None
            self.cancel()

    def cancel(self) -> None:
        """Ask the session to stop it; nothing happens when it has ended. Does not wait."""
        self._client._cancel(self)

    def _grant(self) -> None:
        self._consumed += 1
        if not self._items or self._consumed >= CREDIT_BATCH:
            if not self.done.done():
                self._client._link.send(Credit(self.execution, items=self._consumed))
            self._consumed = 0

    def _wake(self) -> None:
        if self._more is not None:
            self._more.set()

    def _end(self, outcome: Result | Error | Exception) -> None:
        if not self.done.done():
            if isinstance(outcome, Exception):
                self.done.set_exception(outcome)
                self.done.exception()  # read: a call nobody waits for is not an unhandled error
            else:
                self.done.set_result(outcome)
        self.started.set()
        self._wake()


class SessionClient:
    """A connection to a session. Make it with `await SessionClient.connect(path)`, end it with `await close()`."""

    def __init__(self, on_log: Callable[[AnyFrame], None] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._invocations: dict[str, Invocation] = {}
        self._questions: dict[int, asyncio.Queue[Answer | Exception]] = {}
        self._number = 0
        self._on_other = on_log
        self._lost: Exception | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._link: Link

    @classmethod
    async def connect(
        cls, path: str | Path, *, hello: Hello | None = None, on_log: Callable[[AnyFrame], None] | None = None
    ) -> "SessionClient":
        """Dial the session that listens at `path`. Raises LinkLost when none does.

        Args:
            hello: default: a client of this process.
            on_log: is given frames that answer nothing (Log).
        """
        client = cls(on_log)
        client._link = await dial(path, client._frame, client._gone, hello or client_hello())
        return client

    async def __aenter__(self) -> "SessionClient":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    @property
    def alive(self) -> bool:
        """Whether calls can be sent."""
        return self._link.is_open

    @property
    def closed(self) -> asyncio.Future[None]:
        """Done when the connection has ended, by either side. For callbacks; do not cancel it."""
        return self._closed

    def invoke(self, frame: Invoke) -> Invocation:
        """Send a call; its execution id must be new on this client. Raises LinkLost, PayloadTooLarge."""
        if not self._link.is_open:
            raise self._lost or LinkLost()
        if frame.execution in self._invocations:
            raise ValueError(f"Execution {frame.execution} is already running here. Mint a new id.")
        self._link.send(frame)
        invocation = self._invocations[frame.execution] = Invocation(self, frame.execution, self._loop)
        return invocation

    async def query(self, what: str, /, **arguments: Any) -> dict[str, Any]:
        """Ask one question. Raises the FlashmeshError of the answer's code, or LinkLost."""
        number, answers = self._ask(what, arguments)
        try:
            return body_of(await answers.get())
        finally:
            del self._questions[number]

    async def follow(self, what: str, /, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        """Ask a question that is answered again and again. Raises as `query`.

        Ends when the session says so (a last answer without a body is not given out). Leaving the loop early tells the
        session to stop.
        """
        number, answers = self._ask(what, arguments)
        over = False
        try:
            while not over:
                answer = await answers.get()
                body = body_of(answer)
                over = isinstance(answer, Answer) and not answer.more
                if body or not over:
                    yield body
        finally:
            del self._questions[number]
            if not over:
                self._link.send(Query(number, CLOSE))

    async def close(self) -> None:
        """Close the connection. Calls that still wait raise LinkLost; the session goes on with them."""
        self._link.close()
        await asyncio.wait((self._closed,), timeout=5)
        self._link.abort()

    def _ask(self, what: str, arguments: dict[str, Any]) -> tuple[int, asyncio.Queue[Answer | Exception]]:
        if not self._link.is_open:
            raise self._lost or LinkLost()
        self._number += 1
        answers: asyncio.Queue[Answer | Exception] = asyncio.Queue()
        self._link.send(Query(self._number, what, arguments))
        self._questions[self._number] = answers
        return self._number, answers

    def _cancel(self, invocation: Invocation) -> None:
        if self._invocations.get(invocation.execution) is invocation:
            self._link.send(Cancel(invocation.execution))

    def _frame(self, _: Link, frame: AnyFrame) -> None:
        if isinstance(frame, Result | Error):
            invocation = self._invocations.pop(frame.execution, None)
            if invocation is not None:
                invocation._end(frame)
        elif isinstance(frame, Started):
            invocation = self._invocations.get(frame.execution)
            if invocation is not None:
                invocation.worker, invocation.cold = frame.worker, frame.cold
                invocation.started.set()
        elif isinstance(frame, Chunk):
            invocation = self._invocations.get(frame.execution)
            if invocation is not None:
                invocation._items.append(frame.data)
                invocation._wake()
        elif isinstance(frame, Answer):
            answers = self._questions.get(frame.id)
            if answers is not None:
                answers.put_nowait(frame)
        elif self._on_other is not None:
            self._on_other(frame)

    def _gone(self, _: Link, error: Exception | None) -> None:
        lost = error if isinstance(error, LinkProtocolError) else LinkLost()
        self._lost = lost
        for invocation in list(self._invocations.values()):
            invocation._end(again(lost))
        self._invocations.clear()
        for answers in self._questions.values():
            answers.put_nowait(again(lost))
        if not self._closed.done():
            self._closed.set_result(None)


__all__ = ["BlockingClient", "BlockingInvocation", "Invocation", "SessionClient"]
