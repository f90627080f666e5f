"""What the bodies of HTTP routes print, under their function's name, and one closing line per request of theirs.

Bodies run in the server itself, beside each other, so its stdout says nothing of who wrote: a context variable does,
which tasks and the thread pool carry along.
"""

import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.server.route_book import HttpRoute

_running: Final[contextvars.ContextVar[HttpRoute | None]] = contextvars.ContextVar("flash_route", default=None)


class RouteLog:
    """Prints through `printer`. `stdout` and `stderr` are to stand in the place of sys's."""

    def __init__(self, printer: LogPrinter, *, stdout: TextIO, stderr: TextIO) -> None:
        self._printer = printer
        self.stdout = Labelled(stdout, "stdout", printer)
        self.stderr = Labelled(stderr, "stderr", printer)

    @contextmanager
    def request(self, route: HttpRoute) -> Iterator[dict[str, Any]]:
        """Around one request's body. `outcome` in the yielded dict is for the closing line."""
        fields: dict[str, Any] = {"outcome": "success"}
        token = _running.set(route)
        began = time.perf_counter()
        try:
            yield fields
        except BaseException:
            fields["outcome"] = "error"
            raise
        finally:
            _running.reset(token)
            self.stdout.end_line(route)
            self.stderr.end_line(route)
            run_ms = round((time.perf_counter() - began) * 1000, 3)
            place = {"function": route.function, "endpoint": route.resource, "route": "http"}
            self._printer.closing({**place, "run_ms": run_ms, **fields})


class Labelled:
    """A text stream whose lines are printed with the name of the function that wrote them; others pass as they are."""

    def __init__(self, stream: TextIO, name: str, printer: LogPrinter) -> None:
        self._stream = stream
        self._name = name
        self._printer = printer
        self._begun: dict[str, str] = {}

    def write(self, text: str) -> int:
        route = _running.get()
        if route is None:
            return self._stream.write(text)
        whole, newline, rest = (self._begun.pop(route.function, "") + text).rpartition("\n")
        if newline:
            self._print(route, whole)
        if rest:
            self._begun[route.function] = rest
        return len(text)

    def end_line(self, route: HttpRoute) -> None:
        """Print what a body left without a line's end."""
        rest = self._begun.pop(route.function, "")
        if rest:
            self._print(route, rest)

    def _print(self, route: HttpRoute, text: str) -> None:
        self._printer.output(function=route.function, endpoint=route.resource, text=text, stream=self._name)

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
