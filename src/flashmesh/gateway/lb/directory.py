"""Which load-balanced endpoints there are, by every name that a URL may use."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Protocol

from flashmesh.functions.errors import AmbiguousFunction, EndpointUnavailable, FlashmeshError
from flashmesh.kit.ids import EndpointName
from flashmesh.project.model import ResourceSpec


class EndpointNotFound(FlashmeshError):
    """No load-balanced endpoint has this name."""

    code = "ENDPOINT_NOT_FOUND"
    status = 404


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LbEndpoint:
    """One of them."""

    endpoint: EndpointName
    socket_path: str
    """Where its workers take connections."""
    public: bool = False
    """It serves without a token."""
    app: str = ""
    environment: str = ""


class LbDirectory(Protocol):
    """Asked for every request, so it is a dictionary's look-up or little more."""

    def find(self, name: str, *, app: str, environment: str) -> LbEndpoint:
        """By endpoint id, resource name or declared name, in that order; upper and lower case alike.

        Args:
            app, environment: which the request or its token means; empty: the only one, `production` first. Ids need
                neither.
        Raises:
            EndpointNotFound, AmbiguousFunction (naming the ids), EndpointUnavailable (it has no socket now).
        """
        ...

    def has(self, name: str) -> bool:
        """Whether anything is found by this name, in whatever app and environment."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LbServed:
    """An endpoint as it is listed."""

    endpoint: EndpointName
    id: str = ""
    resource: str = ""
    declared: str = ""
    public: bool = False
    app: str = ""
    environment: str = ""

    @property
    def names(self) -> tuple[str, str, str]:
        return (self.id, self.resource, self.declared)


class LbTable:
    """An LbDirectory of what it was told.

    Args:
        socket_of: the path of an endpoint's socket; None while it has none.
    """

    def __init__(self, socket_of: Callable[[EndpointName], str | None]) -> None:
        self._socket_of = socket_of
        self._groups: dict[str, tuple[LbServed, ...]] = {}
        self._kinds: tuple[dict[str, list[LbServed]], ...] = ({}, {}, {})

    def serve(self, group: str, served: Iterable[LbServed]) -> None:
        """Exactly these are the group's endpoints now."""
        self._groups[group] = tuple(served)
        kinds: tuple[dict[str, list[LbServed]], ...] = ({}, {}, {})
        for one in (one for found in self._groups.values() for one in found):
            for kind, name in zip(kinds, one.names, strict=True):
                if name:
                    kind.setdefault(name.lower(), []).append(one)
        self._kinds = kinds

    def has(self, name: str) -> bool:
        return any(name.lower() in kind for kind in self._kinds)

    def find(self, name: str, *, app: str = "", environment: str = "") -> LbEndpoint:
        for kind in self._kinds:
            found = kind.get(name.lower())
            if found:
                return self._as_now(found[0] if kind is self._kinds[0] else self._choose(name, found, app, environment))
        known = ", ".join(sorted({one.resource or one.endpoint for one in self._all()})[:20])
        there = f"There is: {known}." if known else "There is none here."
        raise EndpointNotFound(f"No HTTP endpoint is called {name[:200]!r}. {there}")

    def _choose(self, name: str, found: list[LbServed], app: str, environment: str) -> LbServed:
        meant = [one for one in found if app in ("", one.app) and environment in ("", one.environment)]
        if len(meant) > 1 and not environment:
            meant = [one for one in meant if one.environment == "production"] or meant
        if len(meant) == 1:
            return meant[0]
        if not meant:
            raise EndpointNotFound(
                f"{name[:200]!r} is no HTTP endpoint of {'/'.join(filter(None, (app, environment)))}."
            )
        ids = ", ".join(sorted(one.id or one.endpoint for one in meant))
        raise AmbiguousFunction(f"{name} could be any of: {ids}. Use one of these names")

    def _as_now(self, one: LbServed) -> LbEndpoint:
        path = self._socket_of(one.endpoint)
        if path is None:
            raise EndpointUnavailable(f"{one.endpoint} has no socket now. Try again in a moment.")
        return LbEndpoint(
            endpoint=one.endpoint, socket_path=path, public=one.public, app=one.app, environment=one.environment
        )

    def _all(self) -> Iterable[LbServed]:
        return (one for found in self._kinds[1].values() for one in found)


def listed(resource: ResourceSpec, endpoint: EndpointName, *, app: str = "", environment: str = "") -> LbServed:
    """A resource as a table takes it.

    Args:
        endpoint: its name in this process; of a deployed one its id.
        app, environment: where it is deployed; empty for a session's.
    """
    return LbServed(
        endpoint=endpoint,
        id=endpoint if app else resource.config.endpoint_id or "",
        resource=resource.name,
        declared=resource.config.name or "",
        public=resource.config.public,
        app=app,
        environment=environment,
    )
