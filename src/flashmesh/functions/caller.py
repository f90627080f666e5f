"""The port through which a decorated function leaves the process, and the calls that go through it.

Each program installs its own Caller: a worker (peers over their sockets), the dev server (the session's link), a script
(a session started for it, found by name at the first call). `functions` knows only this file.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from flashmesh.functions.jobs import Job
    from flashmesh.functions.remote import Declaration


class Call:
    """One call of a declared function.

    Attributes:
        declaration: what was declared: the user's function or class, its resource, and where it stands.
        method: the method's name when the declaration is a class, else None.
        args, kwargs: as the user passed them.
        init: (args, kwargs) of the constructor when the declaration is a class, else None.
    """

    __slots__ = ("args", "declaration", "init", "kwargs", "method")

    def __init__(
        self,
        declaration: "Declaration",
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        method: str | None = None,
        init: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    ) -> None:
        self.declaration = declaration
        self.args = args
        self.kwargs = kwargs
        self.method = method
        self.init = init


class Caller(Protocol):
    """Where calls go. Every method raises the function's own exception, or a FlashmeshError."""

    def is_local(self, declaration: "Declaration") -> bool:
        """Whether this process runs the body itself. Constant for a process: callers may remember it."""
        ...

    def call(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Run it elsewhere and return its value. Cancelling the coroutine cancels the call."""
        ...

    def call_blocking(self, call: Call) -> Any:
        """The same from synchronous code."""
        ...

    def stream(self, call: Call) -> AsyncIterator[Any]:
        """The items of a generator function as they come. Closing the iterator cancels the call."""
        ...

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        """The same from synchronous code."""
        ...

    def spawn(self, call: Call) -> "Job":
        """Accept it for later and return at once. Blocks only until it is accepted. Raises QueueFull."""
        ...


class ImportEnded(BaseException):
    """A decorated function was called while its module was being imported by a scan, template or worker.

    Raised by the call, caught by the loader, which keeps what was defined so far. It is not an Exception, so that a
    user's `except Exception` around the call does not swallow it.
    """


class _Installed:
    __slots__ = ("caller", "importing")

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.importing = 0


_installed = _Installed()


def install(caller: Caller | None) -> None:
    """Make `caller` the one this process's decorated functions use. None forgets it."""
    _installed.caller = caller


def installed() -> Caller:
    """The process's Caller; the script's own is made at the first call. Raises ImportEnded during a guarded import."""
    if _installed.importing:
        raise ImportEnded
    caller = _installed.caller
    if caller is None:
        from importlib import import_module  # the script's road is only loaded when a script first calls

        caller = import_module("flashmesh.dev.script").assemble()
        _installed.caller = caller
    return caller


class importing:
    """`with importing():` — a decorated call made inside ends the import (raises ImportEnded)."""

    def __enter__(self) -> None:
        _installed.importing += 1

    def __exit__(self, *exc: object) -> None:
        _installed.importing -= 1
