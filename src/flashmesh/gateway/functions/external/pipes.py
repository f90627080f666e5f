"""The pipes of commands: what they print as LOG lines, what they answer as bytes, what they are asked."""

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final, Literal

from flashmesh.kit.ids import EndpointName, WorkerId
from flashmesh.wire.frames import Log
from flashmesh.worker.template.output import LogOutlet, OutputPipe

_READ_BYTES: Final = 256 * 1024
Stream = Literal["stdout", "stderr", "system"]


class Reader:
    """The read end of a pipe whose bytes matter. `on_data` gets what comes, b"" at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_data: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._on_data = on_data
        self._fd, self._theirs = os.pipe()
        os.set_blocking(self._fd, False)
        loop.add_reader(self._fd, self._readable)

    def hand_over(self) -> int:
        """The process's end. Whoever takes it closes it."""
        theirs, self._theirs = self._theirs, -1
        return theirs

    def drain(self) -> None:
        """Take what is in the pipe now: the last words of a process that has ended."""
        while self._fd >= 0 and self._readable():
            pass

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._theirs >= 0:
            os.close(self.hand_over())

    def _readable(self) -> bool:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
        self._on_data(data)
        return bool(data)


class Writer:
    """The write end of a pipe. Never blocks: what does not fit waits here."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._theirs, self._fd = os.pipe()
        os.set_blocking(self._fd, False)
        self._waiting: list[memoryview] = []

    def hand_over(self) -> int:
        """The process's end. Whoever takes it closes it."""
        theirs, self._theirs = self._theirs, -1
        return theirs

    def write(self, data: bytes) -> None:
        """No effect when the reader is gone: how its process ended says more."""
        if self._fd < 0:
            return
        self._waiting.append(memoryview(data))
        if len(self._waiting) == 1 and not self._flush():
            self._loop.add_writer(self._fd, self._writable)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._waiting.clear()
        if self._theirs >= 0:
            os.close(self.hand_over())

    def _writable(self) -> None:
        if self._flush() and self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _flush(self) -> bool:
        """Whether everything is written."""
        while self._waiting:
            try:
                written = os.write(self._fd, self._waiting[0])
            except BlockingIOError:
                return False
            except OSError:
                self.close()
                return True
            rest = self._waiting[0][written:]
            if len(rest):
                self._waiting[0] = rest
            else:
                self._waiting.pop(0)
        return True


class Output:
    """What the processes of one function print, as LOG lines under its name; floods are thinned (LogOutlet)."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        wall: Callable[[], float],
        endpoint: EndpointName,
        on_log: Callable[[Log], None],
    ) -> None:
        self._loop = loop
        self._wall = wall
        self._endpoint = endpoint
        self._on_log = on_log
        self._outlet = LogOutlet(self._send)
        self._again: asyncio.TimerHandle | None = None
        self._pipes: dict[OutputPipe, Callable[[list[str]], None]] = {}

    def pipe(self, worker: WorkerId, stream: Stream, execution: Callable[[], str]) -> int:
        """The write end of a pipe, for a process to print on. `execution` tells whose lines they are."""
        read_fd, write_fd = os.pipe()
        pipe = OutputPipe(read_fd)
        self._pipes[pipe] = lambda lines: self.say(lines, worker, stream, execution())
        self._loop.add_reader(read_fd, self._readable, pipe)
        return write_fd

    def say(self, lines: Sequence[str], worker: WorkerId, stream: Stream, execution: str = "") -> None:
        at_ms = int(self._wall() * 1000)
        for text in lines:
            self._outlet.put(Log(self._endpoint, worker, stream, text, self._endpoint, execution, at_ms))
        self._push()

    def close(self) -> None:
        """Stop listening. What is in the pipes now is still taken."""
        for pipe in list(self._pipes):
            lines = pipe.drain()
            if lines:
                self._pipes[pipe](lines)
            self._drop(pipe)
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def _readable(self, pipe: OutputPipe) -> None:
        lines, goes_on = pipe.take()
        if lines:
            self._pipes[pipe](lines)
        if not goes_on:
            self._drop(pipe)

    def _drop(self, pipe: OutputPipe) -> None:
        if self._pipes.pop(pipe, None) is not None:
            self._loop.remove_reader(pipe.fd)
            os.close(pipe.fd)

    def _send(self, line: Log) -> bool:
        self._on_log(line)
        return True

    def _push(self) -> None:
        if self._again is None:
            delay = self._outlet.push()
            if delay is not None:
                self._again = self._loop.call_later(delay, self._push_again)

    def _push_again(self) -> None:
        self._again = None
        self._push()
