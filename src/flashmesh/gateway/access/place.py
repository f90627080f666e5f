"""The app and the environment that a server's names belong to, and requests that mean others.

A name is looked up in the app and environment that the request says (`X-Flash-App`, `X-Flash-Environment`, `?app=`,
`?env=`), else in those its token counts for, else where it is served. A server without deployed environments serves one
of each, and its gate knows it; otherwise each look-up heeds what the request means (`where_of`).
"""

from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from flashmesh.gateway.access.pages import Refused
from flashmesh.gateway.access.tokens import Grant
from flashmesh.gateway.directory import Where

ENVIRONMENT: Final = "production"
"""Where functions are served that no deploy has put anywhere else."""
APP_HEADER: Final = b"x-flash-app"
ENVIRONMENT_HEADER: Final = b"x-flash-environment"
_BY_NAME: Final = ("/v1/functions", "/v2/", "/v1/executions", "/v1/logs", "/lb/")


class Place(NamedTuple):
    """What is served. `app` is empty for a server without a project: it has no name then that a request could mean."""

    app: str
    environment: str = ENVIRONMENT


def names_place(query: bytes, headers: Mapping[bytes, bytes]) -> bool:
    """Whether the request may say which place it means; on the way of every request."""
    return (
        APP_HEADER in headers
        or ENVIRONMENT_HEADER in headers
        or (query != b"" and (b"app=" in query or b"env=" in query or b"%" in query))
    )


def where_of(query: bytes, headers: Mapping[bytes, bytes], grant: Grant | None) -> Where:
    """The app and environment that a request means: what it says, else what its token counts for."""
    only_app, only_environment = (grant.app, grant.environment) if grant is not None else ("", "")
    if not names_place(query, headers):
        return Where(only_app, only_environment, only_app, only_environment)
    asked = dict(parse_qsl(query.decode("latin-1"))) if query else {}
    app = headers.get(APP_HEADER, b"").decode("latin-1") or asked.get("app", "")
    environment = headers.get(ENVIRONMENT_HEADER, b"").decode("latin-1") or asked.get("env", "")
    return Where(app or only_app, environment or only_environment, only_app, only_environment)


def is_by_name(path: str) -> bool:
    """Whether a path is looked up among what is served. What deploys may well name an app that is not."""
    return path.startswith(_BY_NAME)


def refuse_place(
    place: Place | None, grant: Grant | None, query: str, headers: Mapping[bytes, bytes]
) -> Refused | None:
    """A token of one app or environment, used for another; or a request for one that is not served.

    `place` None: whatever is asked for is served.
    """
    asked = dict(parse_qsl(query)) if query else {}
    for noun, name, header, served, only in (
        ("app", "app", APP_HEADER, place and place.app, grant.app if grant else ""),
        ("env", "environment", ENVIRONMENT_HEADER, place and place.environment, grant.environment if grant else ""),
    ):
        wanted = headers.get(header, b"").decode("latin-1") or asked.get(noun, "")
        if only and wanted and wanted != only and grant is not None:
            return Refused(
                403,
                f"The token {grant.name!r} counts for the {noun} {only!r} and not for {wanted!r}. "
                f"Make one with `flash token create NAME --{noun} {wanted}`.",
            )
        meant = wanted or only
        if meant and served is not None and meant != served:
            what = f"the {name} {served!r}" if served else f"no {name} by name"
            whose = "" if wanted or grant is None else f" The token {grant.name!r} counts for that {name} only."
            return Refused(404, f"The {name} {meant!r} is not served here; this server serves {what}.{whose}")
    return None


def serves(place: Place | None, grant: Grant) -> bool:
    """Whether what a token counts for is served."""
    if place is None:
        return True
    return grant.app in ("", place.app) and grant.environment in ("", place.environment)
