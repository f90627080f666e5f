"""Our public names as the scan sees them: which is the decorator, which are resources, and what calling one gives."""

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, Literal, Protocol

Kind = Literal["remote", "endpoint", "resource", "value", "unknown"]


class Vocabulary(Protocol):
    """The names a project may import from us."""

    def kind(self, name: str) -> Kind:
        """What `name` is. `value`: any other name of ours (enums, volumes, templates); `unknown`: none of ours."""
        ...

    def get(self, name: str) -> Any:
        """The object itself. Raises AttributeError."""
        ...

    def parameter_names(self, name: str) -> tuple[str, ...]:
        """The names of the positional parameters of a class, `self` left out; empty when they cannot be told."""
        ...


class PublicNames:
    """The real thing: the attributes of `flashmesh`."""

    def __init__(self, lookup: Callable[[str], Any] | None = None) -> None:
        self._lookup = lookup
        self._kinds: dict[str, Kind] = {}

    def kind(self, name: str) -> Kind:
        kind = self._kinds.get(name)
        if kind is None:
            kind = self._kinds[name] = self._find_kind(name)
        return kind

    def get(self, name: str) -> Any:
        if self._lookup is None:
            self._lookup = partial(getattr, import_module("flashmesh"))
        return self._lookup(name)

    def parameter_names(self, name: str) -> tuple[str, ...]:
        try:
            parameters = inspect.signature(self.get(name)).parameters.values()
        except (TypeError, ValueError):
            return ()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return tuple(parameter.name for parameter in parameters if parameter.kind in positional)

    def _find_kind(self, name: str) -> Kind:
        if name == "remote":
            return "remote"
        if name == "Endpoint":
            return "endpoint"
        try:
            found = self.get(name)
        except AttributeError:
            return "unknown"
        return "resource" if isinstance(found, type) and hasattr(found, "is_load_balanced") else "value"
