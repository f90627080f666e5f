"""What a decorator wrote down: a function or class, the resource it runs on, and where it stands.

Decorating registers nothing anywhere: a loader asks a module for its declarations once it has imported it.
"""

from __future__ import annotations

import sys

from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.instances import Instances

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Literal, Protocol

    from flashmesh.functions.config import ResourceConfig

    class Declarable(Protocol):
        """A resource, or an Endpoint."""

        name: Any

        @property
        def is_load_balanced(self) -> bool: ...

        def to_config(self) -> ResourceConfig: ...


CO_GENERATOR = 0x20
CO_COROUTINE = 0x80
CO_ASYNC_GENERATOR = 0x200
"""The `inspect` constants; `inspect` itself takes longer to import than all of this package."""


class Body:
    """What kind of callable a function or method is.

    Attributes:
        is_async: `async def`, with or without `yield`.
        is_generator: it has a `yield`.
    """

    __slots__ = ("is_async", "is_generator", "name")

    def __init__(self, name: str, function: Any) -> None:
        flags = _flags(function)
        self.name = name
        self.is_async = bool(flags & (CO_COROUTINE | CO_ASYNC_GENERATOR))
        self.is_generator = bool(flags & (CO_GENERATOR | CO_ASYNC_GENERATOR))


class Declaration:
    """One decorated function or class.

    Attributes:
        target: the user's own function or class, undecorated.
        resource: the configuration object it was declared on; two that share it share an endpoint.
        kind: `function` or `class`.
        module, qualname, name: of the target.
        file: the file that defines it, as the interpreter names it (`<stdin>` and the like without one).
        method, path: the HTTP route, when the resource is load-balanced.
        dependencies, system_dependencies, accelerate_downloads: as declared.
        overrides: settings of this function that win over its resource's, under ResourceConfig's names.
        is_async, is_generator: of the function; False for a class.
        methods: public methods of a class by name, in order; empty for a function.
        local: `local=True`: it never leaves the process.
        decorated_by: `route` is `@api.get(…)`, whose function stays the plain function.
        instances: the class's objects in this process.
    """

    __slots__ = (
        "_config",
        "_line",
        "accelerate_downloads",
        "decorated_by",
        "dependencies",
        "file",
        "instances",
        "is_async",
        "is_generator",
        "kind",
        "local",
        "method",
        "methods",
        "module",
        "name",
        "overrides",
        "path",
        "qualname",
        "resource",
        "system_dependencies",
        "target",
    )

    def __init__(
        self,
        target: Callable[..., Any],
        resource: Declarable,
        *,
        decorated_by: Literal["remote", "endpoint", "route"],
        method: str | None = None,
        path: str | None = None,
        dependencies: tuple[str, ...] = (),
        system_dependencies: tuple[str, ...] = (),
        accelerate_downloads: bool = True,
        local: bool = False,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        check_target(target, decorated_by)
        body = Body(target.__name__, target)
        self.target = target
        self.resource = resource
        self.kind: Literal["function", "class"] = "class" if isinstance(target, type) else "function"
        self.module = target.__module__
        self.qualname = target.__qualname__
        self.name = target.__name__
        self.file = _file(target)
        self.method = method
        self.path = path
        self.dependencies = dependencies
        self.system_dependencies = system_dependencies
        self.accelerate_downloads = accelerate_downloads
        self.overrides = dict(overrides or {})
        self.is_async = body.is_async
        self.is_generator = body.is_generator
        self.methods = public_methods(target) if isinstance(target, type) else {}
        self.local = local
        self.decorated_by: Literal["remote", "endpoint", "route"] = decorated_by
        self.instances = Instances(target)
        self._config: ResourceConfig | None = None
        self._line: int | None = None

    @property
    def id(self) -> str:
        """`module.qualname`: how metrics, logs and records name it."""
        return f"{self.module}.{self.qualname}"

    @property
    def doc(self) -> str | None:
        return self.target.__doc__

    @property
    def config(self) -> ResourceConfig:
        """The resource's configuration with this function's own settings in it. Made at first use."""
        if self._config is None:
            from dataclasses import replace  # slow to import, and a call that stays here never needs it

            self._config = replace(
                self.resource.to_config(),
                dependencies=self.dependencies,
                system_dependencies=self.system_dependencies,
                accelerate_downloads=self.accelerate_downloads,
                **self.overrides,
            )
        return self._config

    @property
    def line(self) -> int:
        """The line of its `def` or `class`, from 1; 0 when the source cannot be read."""
        if self._line is None:
            self._line = _line(self.target)
        return self._line

    def __repr__(self) -> str:
        return f"<Declaration of {self.kind} {self.id} on {self.resource.name!r}>"


def declaration_of(thing: Any) -> Declaration | None:
    """What `thing` (a decorated function or class, or a route's plain function) declares; None for anything else."""
    found = getattr(thing, "__flash__", None)
    return found if isinstance(found, Declaration) else None


def declarations_in(namespace: Mapping[str, Any]) -> list[Declaration]:
    """Every declaration that a module defines, in the order of the file.

    `namespace` is the module's `__dict__`. Names imported from elsewhere are left out; routes are found through their
    Endpoint too, so that two functions of one name (or a deleted one) are both there.
    """
    found: dict[int, Declaration] = {}
    for value in list(namespace.values()):
        declaration = declaration_of(value)
        candidates = [declaration] if declaration is not None else []
        candidates += getattr(value, "route_declarations", ()) if not isinstance(value, type) else ()
        for candidate in candidates:
            if candidate.module == namespace.get("__name__"):
                found[id(candidate)] = candidate
    return sorted(found.values(), key=_position)


def check_target(target: Any, decorated_by: str) -> None:
    """Raises TypeError unless it is a function or class, DeclarationError when it is decorated already.

    A plain function may serve several routes.
    """
    if isinstance(target, staticmethod | classmethod | property):
        raise TypeError("Decorate the class or a module-level function, not one of a class's methods.")
    if not (isinstance(target, type) or (callable(target) and hasattr(target, "__qualname__"))):
        raise TypeError(f"Only a function or a class can be decorated, got {target!r}.")
    declared = declaration_of(target) if "__flash__" in getattr(target, "__dict__", {}) else None
    if declared is not None and (declared.decorated_by, decorated_by) != ("route", "route"):
        raise DeclarationError(f"{target.__qualname__} is declared already. Keep one of the two decorators.")


def public_methods(cls: type) -> dict[str, Body]:
    """The methods a class serves: functions whose names do not begin with `_`, inherited ones too."""
    found: dict[str, Body] = {}
    for base in reversed(cls.__mro__[:-1]):
        for name, value in vars(base).items():
            function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if name.startswith("_") or isinstance(value, type) or not callable(function):
                found.pop(name, None)
            else:
                found[name] = Body(name, function)
    return found


def _flags(function: Any) -> int:
    while hasattr(function, "func") and hasattr(function, "keywords"):  # functools.partial
        function = function.func
    code = getattr(function, "__code__", None)
    return code.co_flags if code is not None else 0


def _file(target: Any) -> str:
    function = target
    if isinstance(target, type):
        function = next((value for value in vars(target).values() if hasattr(value, "__code__")), None)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is not None:
        return str(code.co_filename)
    return str(getattr(sys.modules.get(target.__module__), "__file__", None) or "<unknown>")


def _line(target: Any) -> int:
    from inspect import getsourcelines, unwrap  # slow to import

    try:
        lines, first = getsourcelines(unwrap(target))
    except (OSError, TypeError):
        code = getattr(target, "__code__", None)
        return code.co_firstlineno if code is not None else 0
    for offset, line in enumerate(lines):  # the decorators stand above the `def`
        if line.lstrip().startswith(("def ", "async def ", "class ")):
            return first + offset
    return first


def _position(declaration: Declaration) -> tuple[int, str]:
    function: Any = declaration.target
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    return (code.co_firstlineno if code is not None else declaration.line, declaration.qualname)
