"""The port through which a decorated function leaves the process, and the calls that go through it.

Each program installs its own Caller: a worker (peers over their sockets), the dev server (the session's link), a script
(a session started for it, found by name at the first call). `functions` knows only this file.
"""

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from flashmesh.functions.calls import Call, ImportEnded, importing, install, installed

if TYPE_CHECKING:
    from flashmesh.functions.declarations import Declaration
    from flashmesh.functions.jobs import Job

__all__ = ["Call", "Caller", "ImportEnded", "importing", "install", "installed"]


class Caller(Protocol):
    """Where calls go. Every method raises the function's own exception, or a FlashmeshError."""

    def is_local(self, declaration: "Declaration") -> bool:
        """Whether this process runs the body itself. Constant for a process: callers may remember it."""
        ...

    def call(self, call: Call) -> Coroutine[Any, Any, Any]:
        """Run it elsewhere and return its value. Cancelling the coroutine cancels the call."""
        ...

    def call_blocking(self, call: Call) -> Any:
        """The same from synchronous code. Several threads may do so at once."""
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
