"""The last lines user code has printed, and those who follow as more come."""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from flashmesh.wire.frames import Log

KEPT_LINES: Final = 10_000
"""Lines kept for those who look later. Higher: more history, about 300 bytes each."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LogFilter:
    """Which lines are wanted; an empty field lets all pass. A function is given by its id or by its bare name."""

    function: str = ""
    execution: str = ""
    endpoint: str = ""
    endpoints: frozenset[str] | None = None
    """Only these; None: any."""

    def wants(self, line: Log) -> bool:
        if self.execution and line.execution != self.execution:
            return False
        if self.endpoint and line.endpoint != self.endpoint:
            return False
        if self.endpoints is not None and line.endpoint not in self.endpoints:
            return False
        function = self.function
        return not function or line.function == function or line.function.endswith("." + function)


class LogBook:
    """A ring of lines with followers. A follower's callback must not block; it runs for every line that passes."""

    def __init__(self, kept_lines: int = KEPT_LINES) -> None:
        self._lines: deque[Log] = deque(maxlen=kept_lines)
        self._followers: dict[int, tuple[LogFilter, Callable[[Log], None]]] = {}
        self._count = 0

    def add(self, line: Log) -> None:
        """Keep a line and hand it to those who follow."""
        self._lines.append(line)
        for wanted, follower in list(self._followers.values()):
            if wanted.wants(line):
                follower(line)

    def tail(self, wanted: LogFilter, limit: int) -> list[Log]:
        """The last `limit` lines that pass, oldest first."""
        found: list[Log] = []
        for line in reversed(self._lines):
            if len(found) >= limit:
                break
            if wanted.wants(line):
                found.append(line)
        found.reverse()
        return found

    def follow(self, wanted: LogFilter, follower: Callable[[Log], None]) -> Callable[[], None]:
        """Hand every later line that passes to `follower`, until the returned function is called."""
        self._count += 1
        key = self._count
        self._followers[key] = (wanted, follower)
        return lambda: self._followers.pop(key, None) and None


def line_body(line: Log, *, dropped: int = 0) -> dict[str, Any]:
    """A line as an answer to `follow_logs`. `dropped`: lines lost before it, on top of those its template lost."""
    return {
        "endpoint": line.endpoint,
        "worker": line.worker,
        "stream": line.stream,
        "text": line.text,
        "function": line.function,
        "execution": line.execution,
        "at_ms": line.at_ms,
        "dropped": line.dropped + dropped,
    }
