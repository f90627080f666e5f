"""One call of a declared function, and the Caller it goes through in this process.

This is the part of `caller` that every decorated call touches; it imports nothing, so that `import flashmesh` stays
light.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from flashmesh.functions.caller import Caller
    from flashmesh.functions.declarations import Declaration


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
        declaration: Declaration,
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


class ImportEnded(BaseException):
    """A decorated function was called while its module was being imported by a scan, template or worker.

    Raised by the call, caught by the loader, which keeps what was defined so far. It is not an Exception, so that a
    user's `except Exception` around the call does not swallow it.
    """


class Installed:
    """This process's Caller, and the threads that are importing under a guard (an import may nest)."""

    __slots__ = ("caller", "importing", "making")

    def __init__(self) -> None:
        self.caller: Caller | None = None
        self.importing: list[int] = []
        self.making = allocate_lock()
        """Held while the script's own Caller is made: threads that call at once share one."""


process = Installed()


def install(caller: Caller | None) -> None:
    """Make `caller` the one this process's decorated functions use. None forgets it."""
    process.caller = caller


def installed() -> Caller:
    """The process's Caller; the script's own is made at the first call.

    Raises ImportEnded in a thread that imports under the guard, and in any thread while a process without a Caller of
    its own does: an import never starts a worker.
    """
    caller = process.caller
    if process.importing and (caller is None or get_ident() in process.importing):
        raise ImportEnded
    return _made() if caller is None else caller


def _made() -> Caller:
    """The script's own Caller, unless there is one by now."""
    from importlib import import_module  # the script's road is only loaded when a script first calls

    assemble = import_module("flashmesh.dev.script.assemble").assemble
    with process.making:
        if process.caller is None:
            made = assemble()
            if process.caller is None:  # else the program has installed its own meanwhile
                process.caller = made
        return process.caller


class importing:  # noqa: N801 - used as a verb, like contextlib.suppress
    """`with importing():` — a decorated call that this thread makes inside ends the import (raises ImportEnded)."""

    __slots__ = ("_thread",)

    def __enter__(self) -> None:
        self._thread = get_ident()
        process.importing.append(self._thread)

    def __exit__(self, *exc: object) -> None:
        process.importing.remove(self._thread)
