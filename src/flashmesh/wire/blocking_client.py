"""The client of a session for code without an event loop: `f.call(x)` in a script, the commands.

Any number of threads may wait at once. There is no reader thread: one of the waiting threads reads the link for all (a
thread hop costs more than the call), and hands the role on when its own answer has come.
"""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from flashmesh.functions.errors import LinkLost, LinkProtocolError, PayloadTooLarge
from flashmesh.wire.answers import CLOSE, CREDIT_BATCH, again, body_of, client_hello
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import Answer, AnyFrame, Cancel, Chunk, Credit, Error, Hello, Invoke, Query, Result, Started

_FORKED: Final = "This process was forked from the one that is connected to the session. Connect again in it."


class BlockingInvocation:
    """One call that was sent. `execution` is its id."""

    def __init__(self, client: "BlockingClient", execution: str) -> None:
        self._client = client
        self.execution = execution
        self.started = False
        self.worker = ""
        self.cold = False
        self.outcome: Result | Error | None = None
        self.unread: deque[bytes] = deque()

    def result(self) -> Result | Error:
        """The final frame, whichever it is. An interrupt (Ctrl-C) cancels the call. Raises LinkLost."""
        try:
            self._client._until(lambda: self.outcome is not None, None)
        except (LinkLost, LinkProtocolError):
            raise
        except BaseException:
            self.cancel()
            raise
        assert self.outcome is not None
        return self.outcome

    def wait(self, timeout: float) -> Result | Error | None:
        """The final frame, or None after `timeout` seconds; the call goes on either way. Raises LinkLost."""
        self._client._until(lambda: self.outcome is not None, timeout)
        return self.outcome

    def wait_started(self, timeout: float | None = None) -> bool:
        """Whether the body began, or the call ended, within `timeout` seconds. Raises LinkLost."""
        return self._client._until(lambda: self.started, timeout)

    def items(self) -> Iterator[bytes]:
        """What a generator yields, as it comes; ends with the call, whose outcome `result()` tells. Raises LinkLost.

        Leaving the loop early cancels the call.
        """
        consumed = 0
        try:
            while True:
                self._client._until(lambda: bool(self.unread) or self.outcome is not None, None)
                if not self.unread:
                    return
                item = self.unread.popleft()
                consumed += 1
                if not self.unread or consumed >= CREDIT_BATCH:
                    if self.outcome is None:
                        self._client._send(Credit(self.execution, items=consumed))
                    consumed = 0
                yield item
        finally:
            self.cancel()

    def cancel(self) -> None:
        """Ask the session to stop it; nothing happens when it has ended. Does not wait."""
        self._client._cancel(self)


class BlockingClient:
    """A connection to a session. Make it with `BlockingClient.connect(path)`, end it with `close()`.

    Of the process that made it only: in a forked child every call raises LinkLost and `alive` is False.
    """

    def __init__(self, link: BlockingLink, on_log: Callable[[AnyFrame], None] | None = None) -> None:
        self._link = link
        self._on_other = on_log
        self._pid = os.getpid()
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._lost: Exception | None = None
        self._invocations: dict[str, BlockingInvocation] = {}
        self._questions: dict[int, deque[Answer]] = {}
        self._numbers = itertools.count(1)

    @classmethod
    def connect(
        cls, path: str | Path, *, hello: Hello | None = None, on_log: Callable[[AnyFrame], None] | None = None
    ) -> "BlockingClient":
        """Dial the session that listens at `path`. Raises LinkLost when none does.

        Args:
            hello: default: a client of this process.
            on_log: is given frames that answer nothing (Log), in whichever thread reads.
        """
        return cls(BlockingLink.connect(path, hello or client_hello(), mapped=True), on_log)

    def __enter__(self) -> "BlockingClient":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def alive(self) -> bool:
        """Whether calls can be sent, as far as this process has noticed."""
        return self._lost is None and self._pid == os.getpid()

    def invoke(self, frame: Invoke) -> BlockingInvocation:
        """Send a call; its execution id must be new on this client. Raises LinkLost, PayloadTooLarge."""
        invocation = BlockingInvocation(self, frame.execution)
        if self._invocations.setdefault(frame.execution, invocation) is not invocation:
            raise ValueError(f"Execution {frame.execution} is already running here. Mint a new id.")
        try:
            self._send(frame)
        except BaseException:
            self._invocations.pop(frame.execution, None)
            raise
        return invocation

    def query(self, what: str, /, *, timeout: float | None = None, **arguments: Any) -> dict[str, Any]:
        """Ask one question. Raises the FlashmeshError of the answer's code, LinkLost, TimeoutError."""
        number, answers = self._ask(what, arguments)
        try:
            if not self._until(lambda: bool(answers), timeout):
                raise TimeoutError(f"The session did not answer {what!r} within {timeout} s.")
            return body_of(answers.popleft())
        finally:
            self._questions.pop(number, None)

    def follow(self, what: str, /, **arguments: Any) -> Iterator[dict[str, Any]]:
        """Ask a question that is answered again and again. Ends when the session says so. Raises as `query`."""
        number, answers = self._ask(what, arguments)
        over = False
        try:
            while not over:
                self._until(lambda: bool(answers), None)
                answer = answers.popleft()
                over = not answer.more
                body = body_of(answer)
                if body or not over:
                    yield body
        finally:
            self._questions.pop(number, None)
            if not over and self.alive:
                self._send(Query(number, CLOSE))

    def close(self) -> None:
        """Close the connection. Calls that wait in other threads raise LinkLost; the session goes on with them."""
        if self._pid == os.getpid():
            self._link.shutdown()
        self._lost = self._lost or LinkLost("This process closed its connection to the session.")
        self._wake()
        if self._reading.acquire(blocking=False):  # else the thread that reads sees the end, and closes
            self._link.close()
            self._reading.release()

    def _ask(self, what: str, arguments: dict[str, Any]) -> tuple[int, deque[Answer]]:
        answers: deque[Answer] = deque()
        number = next(self._numbers)
        self._questions[number] = answers
        try:
            self._send(Query(number, what, arguments))
        except BaseException:
            self._questions.pop(number, None)
            raise
        return number, answers

    def _send(self, frame: AnyFrame) -> None:
        if self._pid != os.getpid():
            raise LinkLost(_FORKED)
        with self._sending:
            if self._lost is not None:
                raise again(self._lost)
            try:
                self._link.send(frame)
            except PayloadTooLarge:
                raise
            except BaseException as error:  # an interrupt in the middle of a frame leaves a stream nobody can read
                self._lost = error if isinstance(error, LinkLost) else LinkLost()
                self._link.shutdown()
                raise

    def _cancel(self, invocation: BlockingInvocation) -> None:
        if self.alive and self._invocations.get(invocation.execution) is invocation:
            try:
                self._send(Cancel(invocation.execution))
            except LinkLost:
                pass  # the session is gone, and the call with it

    def _until(self, ready: Callable[[], bool], timeout: float | None) -> bool:
        """Read frames, or wait for the thread that does, until `ready()`. False after `timeout` s. Raises LinkLost."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not ready():
            if self._lost is not None:
                raise again(self._lost)
            if self._pid != os.getpid():
                raise LinkLost(_FORKED)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            if self._reading.acquire(blocking=False):
                try:
                    self._read(left)
                finally:
                    self._reading.release()
                    self._wake()
            else:
                with self._changed:
                    # Checked under the lock that the reader takes to wake us: nothing can come in between.
                    if not ready() and self._reading.locked():
                        self._changed.wait(left)
        return True

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _read(self, timeout: float | None) -> None:
        """Wait for frames and deliver them. The caller holds `_reading`."""
        try:
            self._deliver(self._link.receive(timeout))
            for frame in self._link.pump():
                self._deliver(frame)
        except TimeoutError:
            pass
        except (LinkLost, LinkProtocolError) as error:
            self._lost = self._lost or error
            self._link.close()

    def _deliver(self, frame: AnyFrame) -> None:
        if isinstance(frame, Result | Error):
            invocation = self._invocations.pop(frame.execution, None)
            if invocation is not None:
                invocation.outcome = frame
                invocation.started = True
        elif isinstance(frame, Started):
            invocation = self._invocations.get(frame.execution)
            if invocation is not None:
                invocation.started, invocation.worker, invocation.cold = True, frame.worker, frame.cold
        elif isinstance(frame, Chunk):
            invocation = self._invocations.get(frame.execution)
            if invocation is not None:
                invocation.unread.append(frame.data)
        elif isinstance(frame, Answer):
            answers = self._questions.get(frame.id)
            if answers is not None:
                answers.append(frame)
        elif self._on_other is not None:
            self._on_other(frame)
