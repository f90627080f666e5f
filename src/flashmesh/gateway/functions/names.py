"""By which names callers find what is served. Pure: built anew at every change, then only read."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NamedTuple, TypeVar

from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound
from flashmesh.gateway.directory import Callee
from flashmesh.kit.ids import EndpointName

T = TypeVar("T")


class Served(NamedTuple):
    """One endpoint: its callables, and the name its resource was declared with."""

    endpoint: EndpointName
    declared: str | None
    callees: tuple[Callee, ...]
    endpoint_id: str | None = None


class Names:
    """Two look-ups; each a dictionary's, but for names that are unknown."""

    def __init__(self, served: Iterable[Served]) -> None:
        endpoints = list(served)
        self.callees = tuple(sorted((callee for one in endpoints for callee in one.callees), key=_by_id))
        self._ids = {str(callee.function): callee for callee in self.callees}
        self._bare: dict[str, list[Callee]] = {}
        for callee in self.callees:
            for name in _bare_names(callee.function):
                self._bare.setdefault(name, []).append(callee)
        self._endpoint_ids: dict[str, list[Served]] = {}
        self._resources: dict[str, list[Served]] = {}
        self._declared: dict[str, list[Served]] = {}
        for one in endpoints:
            if one.endpoint_id:
                self._endpoint_ids.setdefault(one.endpoint_id, []).append(one)
            self._resources.setdefault(one.endpoint, []).append(one)
            if one.declared:
                self._declared.setdefault(one.declared, []).append(one)

    def function(self, name: str) -> Callee:
        """By id, or by a bare name that only one has."""
        found = self._ids.get(name)
        return found if found is not None else self._only(name, self._bare.get(name, []), str_of_callee)

    def endpoint(self, name: str) -> tuple[Callee, ...]:
        """By endpoint id, resource name, declared name, function; the first kind of name that anything has."""
        for known in (self._endpoint_ids, self._resources, self._declared):
            if name in known:
                one = self._only(name, known[name], str_of_served)
                return tuple(sorted(one.callees, key=_by_id))
        return (self.function(name),)

    def taken(self, name: str) -> bool:
        """Whether a new function of this name would be mistaken for something."""
        return any(name in known for known in (self._ids, self._bare, self._resources, self._declared))

    def _only(self, name: str, found: list[T], show: Callable[[T], str]) -> T:
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(sorted(show(one) for one in found))
            raise AmbiguousFunction(f"{name} could be any of: {ids}. Use one of these names")
        near = get_close_matches(name, [*self._ids, *self._bare, *self._resources, *self._declared], n=1)
        hint = f" Did you mean {near[0]}?" if near else " GET /v1/functions lists what is."
        raise FunctionNotFound(f"no function {name[:200]} is served here.{hint}")


def _by_id(callee: Callee) -> str:
    return callee.function


def str_of_callee(callee: Callee) -> str:
    return callee.function


def str_of_served(served: Served) -> str:
    return served.endpoint


def _bare_names(function: str) -> set[str]:
    """`m.Counter.inc` is called by `inc` and by `Counter.inc`."""
    parts = function.split(".")
    return {".".join(parts[-count:]) for count in (1, 2) if count < len(parts)}
