"""What user code prints: bytes from pipes become lines, lines become LOG frames, and too many of them a number."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from flashmesh.wire.frames import Log
from flashmesh.worker.records import Running

LINE_BYTES: Final = 16 * 1024
"""A longer line is cut in pieces; a LOG frame must fit 64 KiB whatever the characters."""
KEPT_LINES: Final = 5000
KEPT_BYTES: Final = 2 * 1024 * 1024
RATE: Final = 2000.0
"""Lines per second one endpoint may send on; a terminal shows no more, and the session has other work."""
BURST: Final = 4000.0


_MARK: Final = "\x1e"
_MARK_END: Final = "\x1f"


def marked(function: str, execution: str, line: str) -> str:
    """A line that says whose it is: of a worker that runs many calls at a time, which knows that itself."""
    return f"{_MARK}{function}{_MARK_END}{execution}{_MARK_END}{line}"


def by_writer(lines: Iterable[str], otherwise: tuple[str, str]) -> list[tuple[tuple[str, str], list[str]]]:
    """Lines without their marks, with the (function, execution) that wrote them; `otherwise` wrote those without."""
    found: list[tuple[tuple[str, str], list[str]]] = []
    for line in lines:
        writer, text = otherwise, line
        if line.startswith(_MARK):
            function, _, rest = line[1:].partition(_MARK_END)
            execution, complete, rest = rest.partition(_MARK_END)
            if complete:
                writer, text = (function, execution), rest
        if found and found[-1][0] == writer:
            found[-1][1].append(text)
        else:
            found.append((writer, [text]))
    return found


class Lines:
    """Bytes in, whole lines out. `rest` gives what came after the last newline: a killed process's last words."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[str]:
        *whole, self._partial = (self._partial + data).split(b"\n")
        while len(self._partial) > LINE_BYTES:
            whole.append(self._partial[:LINE_BYTES])
            self._partial = self._partial[LINE_BYTES:]
        return [text for line in whole for text in _pieces(line)]

    def rest(self) -> list[str]:
        partial, self._partial = self._partial, b""
        return _pieces(partial) if partial else []


def _pieces(line: bytes) -> list[str]:
    line = line.removesuffix(b"\r")
    if len(line) <= LINE_BYTES:
        return [line.decode(errors="replace")]
    return [line[at : at + LINE_BYTES].decode(errors="replace") for at in range(0, len(line), LINE_BYTES)]


class OutputPipe:
    """The read end of one stream of one process. `take` is called when it is readable."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self._lines = Lines()

    def take(self) -> tuple[list[str], bool]:
        """Lines that are complete now, and whether the pipe goes on."""
        try:
            data = os.read(self.fd, 1 << 16)
        except BlockingIOError:
            return [], True
        return (self._lines.feed(data), True) if data else (self._lines.rest(), False)

    def drain(self) -> list[str]:
        """Everything that is in the pipe, partial last line included. For the end of its process."""
        found: list[str] = []
        for _ in range(64):  # a pipe holds 64 KiB; a grandchild that still writes must not keep us here
            before = len(found)
            lines, goes_on = self.take()
            found += lines
            if not goes_on or len(found) == before:
                break
        return found + self._lines.rest()


def attribute(calls: Sequence[Running]) -> tuple[str, str]:
    """(function, execution) that output read just now belongs to; empty where that cannot be told.

    Output may be read after its call has ended, so with nothing running it is the last call's.
    """
    running = [call for call in calls if call.running]
    if not running:
        if not calls:
            return "", ""
        last = max(calls, key=lambda call: call.started_ns)
        return last.function, last.execution
    if len(running) == 1:
        return running[0].function, running[0].execution
    functions = {call.function for call in running}
    return (functions.pop(), "") if len(functions) == 1 else ("", "")


class LogOutlet:
    """Lines on their way to the session: at most RATE a second, at most KEPT_LINES waiting; the oldest give way.

    How many were dropped is told with the next line that goes out.

    Args:
        send: gives a LOG to the link; False = it takes nothing now, ask again later.
    """

    def __init__(self, send: Callable[[Log], bool], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._waiting: deque[Log] = deque()
        self._bytes = 0
        self._dropped = 0
        self._tokens = BURST
        self._at = clock()

    def put(self, log: Log) -> None:
        self._waiting.append(log)
        self._bytes += len(log.text)
        while len(self._waiting) > KEPT_LINES or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._waiting.popleft().text)
            self._dropped += 1

    def push(self) -> float | None:
        """Send what may be sent. Returns seconds until it is worth calling again, None = nothing waits."""
        now = self._clock()
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE)
        self._at = now
        while self._waiting:
            if self._tokens < 1:
                return 0.05
            log = self._waiting[0]
            if self._dropped:
                log = _with_dropped(log, self._dropped)
            if not self._send(log):
                return 0.05
            self._waiting.popleft()
            self._bytes -= len(log.text)
            self._dropped = 0
            self._tokens -= 1
        return None


def _with_dropped(log: Log, dropped: int) -> Log:
    return Log(log.endpoint, log.worker, log.stream, log.text, log.function, log.execution, log.at_ms, dropped)
