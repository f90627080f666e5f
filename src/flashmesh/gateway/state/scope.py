"""Which app and environment a request means. Pure.

What it says (headers, query), else what its token counts for, else the only one there is, else `production`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from flashmesh.functions.errors import FlashmeshError
from flashmesh.functions.nearest import did_you_mean
from flashmesh.gateway.state.records import DEFAULT_ENVIRONMENT, AppNotFound, EnvironmentNotFound


class Scope(NamedTuple):
    """An environment of an app, by their names."""

    app: str
    environment: str


class Holder(Protocol):
    """What a token says of where it counts."""

    @property
    def name(self) -> str: ...

    @property
    def app(self) -> str:
        """The only app; empty: any."""
        ...

    @property
    def environment(self) -> str:
        """The only environment; empty: any."""
        ...


class ScopeAmbiguous(FlashmeshError):
    """Several environments could be meant. Say which with `?app=` and `?env=`, or X-Flash-App and
    X-Flash-Environment."""

    code = "AMBIGUOUS_SCOPE"
    status = 409

    def __init__(self, candidates: Sequence[Scope]) -> None:
        places = [f"{one.app}/{one.environment}" for one in candidates]
        super().__init__(
            f"Several environments could be meant: {', '.join(places[:20])}. Say which with `?app=` and `?env=`, "
            "or the headers X-Flash-App and X-Flash-Environment."
        )
        self.details = tuple(places[:100])


class OutOfScope(FlashmeshError):
    """The token counts for another app or environment."""

    code = "FORBIDDEN"
    status = 403


def find_scope(
    known: Mapping[str, Sequence[str]], app: str | None, environment: str | None, holder: Holder | None = None
) -> Scope:
    """The one environment that is meant.

    Args:
        known: environments by app.
    Raises:
        AppNotFound, EnvironmentNotFound: what was said, or what the token counts for, does not exist.
        OutOfScope: the token does not count for what was said.
        ScopeAmbiguous: several fit.
    """
    app = _one_of("app", app, "" if holder is None else holder.app, holder)
    environment = _one_of("environment", environment, "" if holder is None else holder.environment, holder)
    if app and app not in known:
        near = did_you_mean(app, list(known))
        raise AppNotFound(f"There is no app {app!r}{near}. `flash app list` shows them.")
    apps = [app] if app else list(known)
    found = [Scope(name, one) for name in apps for one in known[name] if not environment or one == environment]
    if len(found) > 1:
        found = [one for one in found if one.environment == DEFAULT_ENVIRONMENT] or found
    if not found:
        raise EnvironmentNotFound(_missing(known, app, environment))
    if len(found) > 1:
        raise ScopeAmbiguous(found)
    return found[0]


def _one_of(noun: str, said: str | None, only: str, holder: Holder | None) -> str:
    if said and only and said != only:
        name = "" if holder is None else holder.name
        raise OutOfScope(f"The token {name!r} counts for the {noun} {only!r} and not for {said!r}.")
    return said or only


def _missing(known: Mapping[str, Sequence[str]], app: str, environment: str) -> str:
    if app and environment:
        near = did_you_mean(environment, list(known[app]))
        return f"The app {app!r} has no environment {environment!r}{near}. `flash env list --app {app}` shows them."
    if app:
        return f"The app {app!r} has no environment yet. `flash deploy` makes one."
    if environment:
        return f"No app has an environment {environment!r}. `flash env list` shows them."
    return "Nothing was deployed here yet. `flash deploy` does it."
