"""What each path needs, and what each kind of token may: two tables. Nothing here does more than compare."""

import re
from typing import Final

from flashmesh.wire.tokens import Scope

READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN: Final = frozenset({"/healthz", "/readyz"})
"""Answered to everybody; they tell nothing but that the server is up."""
_TICKETS: Final = ("PUT", re.compile(r"/v1/uploads/[A-Za-z0-9_-]{32}"))
"""Open too: the path itself is the leave, given to an admin, for one artifact and some minutes."""

_INVOKE: Final = ("POST", re.compile(r"/v1/functions/[^/]+:(invoke|enqueue)"))
_RUN: Final = ("POST", re.compile(r"/v2/[^/]+(/[^/]+)?/(run|runsync|run_sync)"))
_CANCEL: Final = ("DELETE", re.compile(r"/v1/executions/[^/]+"))
_QUERY: Final = ("POST", re.compile(r"/graphql"))
"""Of the State Manager. Its mutations need `admin`, which is seen where the document is read."""
_CALLS: Final = (
    _INVOKE,
    _RUN,
    _CANCEL,
    _QUERY,
    ("POST", re.compile(r"/v1/executions/[^/]+:retry")),
    ("POST", re.compile(r"/v1/internal/executions/[^/]+:complete")),
    ("POST", re.compile(r"/v2/[^/]+(/[^/]+)?/purge-queue")),
    ("POST", re.compile(r"/v2/[^/]+(/[^/]+)?/(status|stream|cancel|retry)/[^/]+")),
)
"""What changes something and is part of calling. Whatever else changes something needs `admin`: a path that is added
later is closed until it is written here."""

_PEERS: Final = (
    _INVOKE,
    _RUN,
    _CANCEL,
    _QUERY,
    ("POST", re.compile(r"/v2/[^/]+(/[^/]+)?/(status|stream|cancel)/[^/]+")),
    ("GET", re.compile(r"/v2/[^/]+(/[^/]+)?/(status|stream)/[^/]+")),
    ("GET", re.compile(r"/v1/executions/[^/]+")),
    ("GET", re.compile(r"/manifest|/graphql")),
)
"""What user code may do with its worker's token: call, look after its calls, read its environment's manifest."""

_ADMIN_READS: Final = re.compile(r"/v1/builds|/v1/deployments(/.*)?")
"""What a deploy looks at: whose code is where, and from whom."""

_MAY: Final[dict[Scope, frozenset[Scope]]] = {
    "admin": frozenset({"admin", "call", "metrics", "peer", "link"}),
    "call": frozenset({"call"}),
    "metrics": frozenset({"metrics"}),
    "peer": frozenset({"peer"}),
    "link": frozenset({"link"}),
}
WITHOUT_TOKEN: Final = frozenset({"call", "metrics"})
"""What the loopback serves without a token: invoke, reads, docs."""


def required_scope(method: str, path: str) -> Scope | None:
    """The scope a request needs; None: it is open to all.

    Args:
        method: in capitals.
        path: decoded, without the query.
    """
    if path in _OPEN or _is_one_of((_TICKETS,), method, path):
        return None
    if _has_dots(path):
        return "admin"
    if path == "/lb" or path.startswith("/lb/"):
        return "call"  # a resource's own routes: what their methods mean is its business
    if _is_odd(path) or path.startswith(("/graphql/", "/v1/admin/")) or _ADMIN_READS.fullmatch(path):
        return "admin"
    if method in READING:
        if path == "/metrics":
            return "metrics"
        return "link" if path.startswith("/v1/builds/") else "call"  # sources; what else is read tells of calls
    return "call" if _is_one_of(_CALLS, method, path) else "admin"


def permits(scope: Scope, method: str, path: str) -> bool:
    """Whether a token of that scope may make the request."""
    needed = required_scope(method, path)
    if needed is None or needed in _MAY[scope]:
        return True
    return scope == "peer" and needed == "call" and (path.startswith("/lb/") or _is_peers(method, path))


def _is_peers(method: str, path: str) -> bool:
    return _is_one_of(_PEERS, "GET" if method == "HEAD" else method, path)


def _is_one_of(table: tuple[tuple[str, re.Pattern[str]], ...], method: str, path: str) -> bool:
    return any(verb == method and form.fullmatch(path) for verb, form in table)


def _has_dots(path: str) -> bool:
    """Segments that something between the client and us might take away."""
    return "/./" in path or "/../" in path or path.endswith(("/.", "/.."))


def _is_odd(path: str) -> bool:
    """A path that something between the client and us might read in another way. None of ours looks like that."""
    return "//" in path or "\\" in path or not path.isprintable() or not path.startswith("/")
