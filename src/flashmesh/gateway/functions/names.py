"""By which names callers find what is served. Pure: built anew at every change, then only read.

A name belongs to an app and an environment. A request says which it means, or its token does; else the only one that
has the name is meant, and `production` before others. Endpoint ids are the same for everybody.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple, TypeVar

from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound
from flashmesh.gateway.directory import ANYWHERE, Callee, Where
from flashmesh.kit.ids import EndpointName

T = TypeVar("T")
PRODUCTION: Final = "production"
HOW_TO_SAY: Final = "Say which with ?app= and ?env= (or X-Flash-App, X-Flash-Environment), or use its endpoint's id"


class Served(NamedTuple):
    """One endpoint: its callables, and the name its resource was declared with."""

    endpoint: EndpointName
    declared: str | None
    callees: tuple[Callee, ...]
    endpoint_id: str | None = None
    resource: str = ""
    """The resource's name; empty: the endpoint's."""
    app: str = ""
    environment: str = PRODUCTION


class _Place:
    """The names of one environment of one app."""

    def __init__(self, app: str, environment: str) -> None:
        self.app = app
        self.environment = environment
        self.ids: dict[str, list[Callee]] = {}
        self.bare: dict[str, list[Callee]] = {}
        self.resources: dict[str, list[Served]] = {}
        self.declared: dict[str, list[Served]] = {}

    def add(self, one: Served) -> None:
        for callee in one.callees:
            self.ids.setdefault(callee.function, []).append(callee)
            for name in _bare_names(callee.function):
                self.bare.setdefault(name, []).append(callee)
        self.resources.setdefault(one.resource or one.endpoint, []).append(one)
        if one.declared:
            self.declared.setdefault(one.declared, []).append(one)

    def has(self, name: str) -> bool:
        return any(name in known for known in (self.ids, self.bare, self.resources, self.declared))

    def known(self) -> set[str]:
        return {*self.ids, *self.bare, *self.resources, *self.declared}


def _ids(place: _Place) -> Mapping[str, Sequence[Callee]]:
    return place.ids


def _bare(place: _Place) -> Mapping[str, Sequence[Callee]]:
    return place.bare


def _resources(place: _Place) -> Mapping[str, Sequence[Served]]:
    return place.resources


def _declared(place: _Place) -> Mapping[str, Sequence[Served]]:
    return place.declared


class Names:
    """Two look-ups; each a few dictionaries', but for names that are unknown."""

    def __init__(self, served: Iterable[Served]) -> None:
        endpoints = list(served)
        self.callees = tuple(sorted((callee for one in endpoints for callee in one.callees), key=_by_id))
        self._endpoint_ids: dict[str, list[Served]] = {}
        self._of: dict[EndpointName, Served] = {}
        places: dict[tuple[str, str], _Place] = {}
        deployed = {(one.app, one.environment, one.resource) for one in endpoints if one.resource}
        for one in endpoints:
            key = (one.app, one.environment)
            place = places.setdefault(key, _Place(*key))
            if (*key, one.endpoint) not in deployed:  # else a deployment took the place of what its folder shows
                place.add(one)
            self._of[one.endpoint] = one
            if one.endpoint_id:
                self._endpoint_ids.setdefault(one.endpoint_id, []).append(one)
        self._places = sorted(places.values(), key=lambda place: (place.app, place.environment))

    def function(self, name: str, where: Where = ANYWHERE) -> Callee:
        """By id, or by a bare name that only one has."""
        places = self._meant(where)
        for kind in (_ids, _bare):
            found = [(place, callee) for place in places for callee in kind(place).get(name, ())]
            if found:
                return self._only(name, found, str_of_callee)
        raise self._unknown(name, places, where)

    def endpoint(self, name: str, where: Where = ANYWHERE) -> tuple[Callee, ...]:
        """By endpoint id, resource name, declared name, function; the first kind of name that anything has."""
        ids = [one for one in self._endpoint_ids.get(name, ()) if allows(where, one.app, one.environment)]
        if len(ids) == 1:
            return tuple(sorted(ids[0].callees, key=_by_id))
        places = self._meant(where)
        for kind in (_resources, _declared):
            found = [(place, one) for place in places for one in kind(place).get(name, ())]
            if found:
                return tuple(sorted(self._only(name, found, str_of_served).callees, key=_by_id))
        return (self.function(name, where),)

    def visible(self, endpoint: EndpointName, where: Where) -> bool:
        """Whether a caller who is limited to an app or environment may see what belongs to that endpoint."""
        if not where.only_app and not where.only_environment:
            return True
        one = self._of.get(endpoint)
        return one is not None and allows(where, one.app, one.environment)

    def within(self, endpoint: EndpointName, where: Where) -> bool:
        """Whether an endpoint is in the app and environment that are asked for."""
        if where == ANYWHERE:
            return True
        one = self._of.get(endpoint)
        return one is not None and _is_meant(one.app, one.environment, where)

    def taken(self, name: str) -> bool:
        """Whether a new function of this name would be mistaken for something."""
        return any(place.has(name) for place in self._places)

    def _meant(self, where: Where) -> Sequence[_Place]:
        if where == ANYWHERE:
            return self._places
        return [place for place in self._places if _is_meant(place.app, place.environment, where)]

    def _only(self, name: str, found: Sequence[tuple[_Place, T]], show: Callable[[T], str]) -> T:
        if len(found) == 1:
            return found[0][1]
        first = [one for place, one in found if place.environment == PRODUCTION]
        if len(first) == 1:
            return first[0]
        if len({id(place) for place, _ in found}) == 1:
            ids = ", ".join(sorted(show(one) for _, one in found))
            raise AmbiguousFunction(f"{name} could be any of: {ids}. Use one of these names")
        ids = ", ".join(sorted(f"{show(one)} ({_shown(place)}{_id_of(one)})" for place, one in found))
        raise AmbiguousFunction(f"{name} could be any of: {ids}. {HOW_TO_SAY}")

    def _unknown(self, name: str, places: Sequence[_Place], where: Where) -> FunctionNotFound:
        if not places and where != ANYWHERE:
            return FunctionNotFound(f"{_asked(where)} is not served here. `flash status` lists what is.")
        near = get_close_matches(name, {text: None for place in places for text in place.known()}, n=1)
        inside = f" in {_asked(where)}" if where != ANYWHERE else ""
        hint = f" Did you mean {near[0]}?" if near else " GET /v1/functions lists what is."
        return FunctionNotFound(f"no function {name[:200]} is served here{inside}.{hint}")


def allows(where: Where, app: str, environment: str) -> bool:
    """Whether what a caller's token counts for includes that environment."""
    return where.only_app in ("", app) and where.only_environment in ("", environment)


def _is_meant(app: str, environment: str, where: Where) -> bool:
    return where.app in ("", app) and where.environment in ("", environment) and allows(where, app, environment)


def _asked(where: Where) -> str:
    app, environment = where.app or where.only_app, where.environment or where.only_environment
    parts: Mapping[str, str] = {"The app": app, "the environment": environment}
    words = [f"{noun} {value[:80]!r}" for noun, value in parts.items() if value]
    text = ", ".join(words)
    return text[0].upper() + text[1:]


def _shown(place: _Place) -> str:
    return f"{place.app or 'no app'}/{place.environment}"


def _id_of(one: object) -> str:
    if isinstance(one, Callee) and one.named:
        return f", endpoint {one.endpoint}"
    return ""


def _by_id(callee: Callee) -> tuple[str, str]:
    return callee.function, callee.endpoint


def str_of_callee(callee: Callee) -> str:
    return callee.function


def str_of_served(served: Served) -> str:
    return served.endpoint


def _bare_names(function: str) -> set[str]:
    """`m.Counter.inc` is called by `inc` and by `Counter.inc`."""
    parts = function.split(".")
    return {".".join(parts[-count:]) for count in (1, 2) if count < len(parts)}
