"""What the bodies of an endpoint's routes print: lines that say whose they are.

A worker's output goes to its template through pipes, last words included; of requests that run at the same time the
template cannot tell who wrote a line. So the line says it, in a mark that the template takes off (template/output.py).
"""

import sys
from contextvars import ContextVar
from typing import Any, Final, TextIO, cast

from flashmesh.worker.lb.route import HttpRoute
from flashmesh.worker.lb.route_log import Unfinished
from flashmesh.worker.template.output import marked

_writing: Final[ContextVar["Written | None"]] = ContextVar("flash_written", default=None)


class Written(Unfinished):
    """What one request has written."""

    def __init__(self, execution: str) -> None:
        super().__init__()
        self.execution = execution
        self.function = ""
        """Until it is known, what is written passes as it is."""


class Marked:
    """Stands in the place of a text stream."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream = stream
        self._name = name

    def write(self, text: str) -> int:
        written = _writing.get()
        if written is None or not written.function:
            return self._stream.write(text)
        whole = written.add(self._name, text)
        if whole is not None:
            self._print(written, whole)
        return len(text)

    def end_line(self, written: Written) -> None:
        """Write what a body left without a line's end."""
        rest = written.take_rest(self._name)
        if rest:
            self._print(written, rest)

    def _print(self, written: Written, text: str) -> None:
        lines = [marked(written.function, written.execution, line) for line in text.split("\n")]
        self._stream.write("\n".join(lines) + "\n")
        self._stream.flush()

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def install() -> None:
    """Before user code is imported: what it keeps of stdout and stderr, say for logging, is marked as well."""
    if not isinstance(sys.stdout, Marked):
        sys.stdout, sys.stderr = cast(TextIO, Marked(sys.stdout, "stdout")), cast(TextIO, Marked(sys.stderr, "stderr"))


def enter(execution: str) -> Written:
    """In the context of a request that begins."""
    written = Written(execution)
    _writing.set(written)
    return written


def name(route: HttpRoute) -> None:
    """The route of this context's request is known."""
    written = _writing.get()
    if written is not None:
        written.function = route.function


def leave(written: Written) -> None:
    """The request has ended."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Marked):
            stream.end_line(written)
