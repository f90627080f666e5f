"""What the bodies of HTTP routes print, under their function's name, and one closing line per request of theirs.

Bodies run in one process, beside each other, so its stdout says nothing of who wrote: a context variable does,
which tasks and the thread pool carry along. It names the request, which keeps its own unfinished lines: two requests
of one route may run at the same time.
"""

import contextvars
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol, TextIO

from flashmesh.worker.lb.route import HttpRoute


class Printer(Protocol):
    """Where lines go."""

    def output(self, *, function: str, endpoint: str, text: str, stream: str) -> None:
        """Whole lines that a body wrote, without the last one's end."""
        ...

    def closing(self, fields: Mapping[str, Any]) -> None:
        """A request has ended."""
        ...


class Unfinished:
    """What a request has written of lines that are not whole yet."""

    def __init__(self) -> None:
        self._begun: dict[str, str] = {}
        self._lock = threading.RLock()  # a body may have threads; re-entrant, since a finalizer may print

    def add(self, stream: str, text: str) -> str | None:
        """What is whole now, without its last line's end. None: nothing is."""
        with self._lock:
            whole, newline, rest = (self._begun.pop(stream, "") + text).rpartition("\n")
            if rest:
                self._begun[stream] = rest
        return whole if newline else None

    def take_rest(self, stream: str) -> str:
        """What was left without a line's end."""
        with self._lock:
            return self._begun.pop(stream, "")


class Request(Unfinished):
    """One request of a route."""

    def __init__(self, route: HttpRoute) -> None:
        super().__init__()
        self.route = route


_running: Final[contextvars.ContextVar[Request | None]] = contextvars.ContextVar("flash_request", default=None)


class RouteLog:
    """Prints through `printer`. `stdout` and `stderr` are to stand in the place of sys's."""

    def __init__(self, printer: Printer, *, stdout: TextIO, stderr: TextIO) -> None:
        self._printer = printer
        self.stdout = Labelled(stdout, "stdout", printer)
        self.stderr = Labelled(stderr, "stderr", printer)

    @contextmanager
    def request(self, route: HttpRoute) -> Iterator[dict[str, Any]]:
        """Around one request's body. `outcome` in the yielded dict is for the closing line."""
        fields: dict[str, Any] = {"outcome": "success"}
        request = Request(route)
        token = _running.set(request)
        began = time.perf_counter()
        try:
            yield fields
        except BaseException:
            fields["outcome"] = "error"
            raise
        finally:
            _running.reset(token)
            self.stdout.end_line(request)
            self.stderr.end_line(request)
            run_ms = round((time.perf_counter() - began) * 1000, 3)
            place = {"function": route.function, "endpoint": route.resource, "route": "http"}
            self._printer.closing({**place, "run_ms": run_ms, **fields})


class Labelled:
    """A text stream whose lines are printed with the name of the function that wrote them; others pass as they are."""

    def __init__(self, stream: TextIO, name: str, printer: Printer) -> None:
        self._stream = stream
        self._name = name
        self._printer = printer

    def write(self, text: str) -> int:
        request = _running.get()
        if request is None:
            return self._stream.write(text)
        whole = request.add(self._name, text)
        if whole is not None:
            self._print(request, whole)
        return len(text)

    def end_line(self, request: Request) -> None:
        """Print what a body left without a line's end."""
        rest = request.take_rest(self._name)
        if rest:
            self._print(request, rest)

    def _print(self, request: Request, text: str) -> None:
        function, endpoint = request.route.function, request.route.resource
        self._printer.output(function=function, endpoint=endpoint, text=text, stream=self._name)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_log: RouteLog | None = None


def install(log: RouteLog | None) -> None:
    """Make `log` this process's. None: bodies print as they like (a debugger, somebody else's server)."""
    global _log  # one stdout per process, one log
    _log = log


@contextmanager
def request(route: HttpRoute) -> Iterator[dict[str, Any]]:
    """Around one request's body, whether or not this process keeps a log."""
    if _log is None:
        yield {}
        return
    with _log.request(route) as fields:
        yield fields
