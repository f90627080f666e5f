"""`@worker_start`: what a worker does once, before its first call."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from flashmesh.functions.declarations import Declarable


class Hook:
    """A function to run in each fresh worker; `resource` None means the workers of every resource in its file."""

    __slots__ = ("function", "resource")

    def __init__(self, function: Callable[[], Any], resource: Declarable | None) -> None:
        self.function = function
        self.resource = resource


def worker_start(target: Any) -> Any:
    """Run a function in each worker after it is forked and before it takes calls.

    `@worker_start` for every resource of the file, `@worker_start(resource)` for one. This is where connections are
    opened and models put on a GPU: what a module opens at its top is shared by all workers forked from it, and a GPU
    cannot be shared that way. The function may be `def` or `async def`; an exception keeps the worker from starting.
    """
    if callable(getattr(target, "to_config", None)):
        return lambda function: _hooked(function, target)
    return _hooked(target, None)


def _hooked(function: Any, resource: Declarable | None) -> Any:
    if not callable(function):
        raise TypeError(f"@worker_start takes a function or a resource, got {function!r}.")
    function.__flash_worker_start__ = Hook(function, resource)
    return function


def worker_start_hooks(namespace: Mapping[str, Any], resources: Iterable[Declarable] = ()) -> list[Callable[[], Any]]:
    """The hooks a module defines for workers of these resources, in order. `namespace` is its `__dict__`."""
    served = [id(resource) for resource in resources]
    found = []
    for value in namespace.values():
        hook = getattr(value, "__flash_worker_start__", None)
        if not isinstance(hook, Hook) or hook.function.__module__ != namespace.get("__name__"):
            continue
        if hook.resource is None or id(hook.resource) in served:
            found.append(hook.function)
    return found
