"""One end of a Unix link for code without an event loop: threads that wait, and selectors loops."""

import select
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire import memfd, passage
from flashmesh.wire.codec import Aside, Returned, Takes
from flashmesh.wire.frames import AnyFrame
from flashmesh.wire.peer import Peer, peer_of, unreachable
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import Attached, FrameWriter, Passing

ANSWER_S: Final = 0.05
"""How long a first large payload waits to hear whether it may leave as a descriptor; without an answer it leaves in
pieces."""


class BlockingLink:
    """A connection for code without an event loop.

    One thread may send while another receives; two may not do the same at once (BlockingClient adds the locks).

    Args:
        sock: a connected stream socket; the link owns it from now on.
        blocking: True: `send` returns when the kernel has everything. False (selectors loops): `send` gives the kernel
            what it takes at once; watch `fileno` for writing while `pending`, then call `flush`.
        mapped: large MessagePack payloads may be given out as Borrowed (wire/lending.py) or memoryviews.
    """

    def __init__(
        self,
        sock: socket.socket,
        *hello: AnyFrame,
        blocking: bool = True,
        max_payload: int | None = None,
        mapped: bool = False,
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._blocking = blocking
        self._reader = FrameReader(max_payload=max_payload, on_aside=self._aside, mapped=mapped)
        self._writer = FrameWriter(max_payload=max_payload, patient=False)
        self._passes = memfd.passes(sock)
        self._window = passage.Window(sock)
        self._unsent = memoryview(b"")
        self._attached: Attached | None = None
        self._retry_at = 0.0
        self._inbox: deque[AnyFrame] = deque()
        self._receiving = threading.Lock()
        self._ended: LinkLost | LinkProtocolError | None = None
        self._writer.borrower = self._reader.borrower
        if self._passes:
            self._writer.passing = Passing.UNASKED
            self._writer.put_aside(Takes(True, True))
            if blocking:
                self._writer.ask()
        for frame in hello:
            self._writer.put(frame)
        try:
            self._push()
        except LinkLost:
            pass  # kept: whoever sends or receives is told

    @classmethod
    def connect(cls, path: str | Path, *hello: AnyFrame, blocking: bool = True, mapped: bool = False) -> "BlockingLink":
        """Dial a session and send `hello`. Raises LinkLost when nobody listens there."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise unreachable(path, error) from error
        return cls(sock, *hello, blocking=blocking, mapped=mapped)

    @property
    def peer(self) -> Peer:
        """The process at the other end."""
        return peer_of(self._sock)

    @property
    def pending(self) -> bool:
        """Whether bytes wait for the kernel to take them."""
        return bool(self._unsent or self._writer or self._attached is not None)

    def fileno(self) -> int:
        """For select and selectors; -1 once closed."""
        return self._sock.fileno()

    def send(self, frame: AnyFrame) -> None:
        """Send a frame. Raises LinkLost when the other end is gone, PayloadTooLarge."""
        self._writer.put(frame)
        if self._blocking and self._writer.asking:
            self._await_answer()
        self._push()

    def flush(self) -> bool:
        """Give the kernel what it takes now, without blocking. True when nothing is left. Raises LinkLost."""
        while self.pending:
            if not self._unsent and self._attached is None:
                piece = self._writer.take()
                if isinstance(piece, Attached):
                    self._attached = piece
                else:
                    self._unsent = memoryview(piece)
            try:
                if self._attached is not None:
                    if not self._send_attached(self._attached):
                        return False
                else:
                    self._unsent = self._unsent[self._sock.send(self._unsent) :]
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise self._lost(error) from error
        return True

    def _send_attached(self, attached: Attached) -> bool:
        sent = passage.send(self._sock, self._window, attached)
        if sent is None:
            self._retry_at = time.monotonic() + passage.RETRY_S
            return False
        self._attached = None
        self._unsent = memoryview(attached.data)[sent:]
        return True

    def receive(self, timeout: float | None = None) -> AnyFrame:
        """The next frame. Raises TimeoutError after `timeout` seconds (None: no limit), LinkLost, LinkProtocolError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._receiving:
            while not self._inbox:
                self._read()
                if self._inbox:
                    break
                if self._ended is not None:
                    raise self._ended
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("No frame came in time.")
                self._wait(select.POLLIN, left)
            return self._inbox.popleft()

    def pump(self) -> list[AnyFrame]:
        """Frames that are here, without blocking. Raises LinkLost or LinkProtocolError after the last one."""
        with self._receiving:
            self._read()
            found = list(self._inbox)
            self._inbox.clear()
            if not found and self._ended is not None:
                raise self._ended
            return found

    def shutdown(self) -> None:
        """End the connection for both ends and every process that shares the socket; wakes a thread that receives."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already ended

    def close(self) -> None:
        """Close this process's end of the socket; harmless when closed."""
        self._ended = self._ended or LinkLost("The link was closed by this process.")
        self._sock.close()
        self._reader.close()
        self._writer.close()
        if self._attached is not None:
            self._attached.sealed.close()

    def _aside(self, aside: Aside) -> None:
        # What is asked needs no answer: that this end takes descriptors was the first thing it said.
        if isinstance(aside, Takes):
            self._writer.answered(aside if self._passes else Takes())
        elif isinstance(aside, Returned) and self._writer.lender is not None:
            self._writer.lender.returned(aside.numbers)

    def _await_answer(self) -> None:
        """Read until it is known whether descriptors may be sent, unless another thread is reading."""
        if not self._receiving.acquire(blocking=False):
            return
        try:
            deadline = time.monotonic() + ANSWER_S
            while self._writer.asking and self._ended is None and (left := deadline - time.monotonic()) > 0:
                self._wait(select.POLLIN, left)
                self._read()
        finally:
            self._receiving.release()

    def _push(self) -> None:
        while not self.flush() and self._blocking:
            if self._attached is not None and (pause := self._retry_at - time.monotonic()) > 0:
                time.sleep(pause)
            else:
                self._wait(select.POLLOUT, None)

    def _read(self) -> None:
        """Take what the kernel has, one buffer at most, into the inbox."""
        if self._ended is not None:
            return
        try:
            if self._passes:
                data, descriptors = passage.receive(self._sock)
            else:
                data, descriptors = self._sock.recv(passage.READ_BYTES), []
        except (BlockingIOError, InterruptedError):
            return
        except LinkProtocolError as error:
            self._ended = error
            return
        except OSError as error:
            self._lost(error)
            return
        if not data:
            self._lost(None)
            return
        try:
            self._inbox.extend(self._reader.feed_with(data, descriptors) if descriptors else self._reader.feed(data))
        except LinkProtocolError as error:
            self._reader.close()
            self._ended = error

    def _wait(self, event: int, seconds: float | None) -> None:
        poll = select.poll()
        try:
            poll.register(self._sock, event)
        except ValueError as error:  # closed by another thread
            raise self._lost(None) from error
        poll.poll(None if seconds is None else seconds * 1000)

    def _lost(self, error: OSError | None) -> LinkLost | LinkProtocolError:
        if self._ended is None:
            self._ended = LinkLost() if error is None else LinkLost(f"{LinkLost.__doc__} ({error.strerror or error})")
        return self._ended
