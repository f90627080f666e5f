"""Outcomes that a worker keeps until its session has stored them: a session that dies must not take them along."""

from collections.abc import Iterable, Iterator
from typing import Final

from flashmesh.wire.frames import Error, Result, attempt_ref

MOST_OUTCOMES: Final = 10_000
MOST_BYTES: Final = 64 * 1024 * 1024
_RECORD_BYTES: Final = 256


class Held:
    """At most MOST_OUTCOMES or MOST_BYTES; whoever adds looks at `full` before taking another call."""

    __slots__ = ("_bytes", "_outcomes")

    def __init__(self) -> None:
        self._outcomes: dict[str, Result | Error] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._outcomes)

    def __contains__(self, execution: object) -> bool:
        return execution in self._outcomes

    def __iter__(self) -> Iterator[Result | Error]:
        return iter(list(self._outcomes.values()))

    @property
    def full(self) -> bool:
        return len(self._outcomes) >= MOST_OUTCOMES or self._bytes >= MOST_BYTES

    def add(self, frame: Result | Error) -> None:
        """Keep the outcome of an execution, in place of one of an earlier attempt."""
        self.drop((frame.execution,))
        self._outcomes[frame.execution] = frame
        self._bytes += len(frame.payload) + _RECORD_BYTES

    def drop(self, executions: Iterable[str]) -> None:
        """Their outcomes are stored, or not wanted."""
        for execution in executions:
            frame = self._outcomes.pop(execution, None)
            if frame is not None:
                self._bytes -= len(frame.payload) + _RECORD_BYTES

    def refs(self) -> list[str]:
        """As HELLO names them."""
        return [attempt_ref(frame.execution, frame.attempt) for frame in self._outcomes.values()]
