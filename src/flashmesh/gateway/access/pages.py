"""Which names a server answers to, and which web pages may call it: decisions over a request's headers.

A page on the web must not be able to call the functions of whoever opens it. A browser tells where a request comes
from (Origin, Sec-Fetch-Site) and to which name it goes (Host); a page of a name that was pointed at the loopback after
it was loaded still sends that name.
"""

import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode

from flashmesh.kit.loopback import is_loopback, without_port

Header = tuple[bytes, bytes]
Send = Callable[[Any], Awaitable[None]]
"""As in ASGI."""

_ALLOWED_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = b"X-Execution-Id, X-Cold-Start, X-Queue-Reject-Reason, Server-Timing, Retry-After, traceparent"
TELLING = frozenset({b"origin", b"sec-fetch-site"})
"""Headers that say which page a request comes from."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PageRules:
    """What is allowed; made once from the options."""

    loopback_only: bool = True
    """The server listens on the loopback only, so much is served without a token."""
    hosts: frozenset[str] = frozenset()
    """Host names allowed besides those of the loopback; `*` = any."""
    origins: frozenset[str] = frozenset()
    """Foreign origins allowed (`http://localhost:3000`); `*` = any."""

    @classmethod
    def make(cls, *, host: str, allow_host: Iterable[str] = (), allow_origin: Iterable[str] = ()) -> "PageRules":
        """`host` is the address the server listens on."""
        return cls(loopback_only=is_loopback(host), hosts=host_names(allow_host), origins=origin_names(allow_origin))


@dataclasses.dataclass(frozen=True, slots=True)
class Allowed:
    """Let it in. `origin` is the foreign origin whose page may read the answer, else None."""

    origin: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Preflight:
    """Answer a browser's question whether that page may send the request."""

    origin: str


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Answer `status` with `message`, which names what would allow it."""

    status: Literal[401, 403, 404]
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class SignIn:
    """A browser opened a URL with a token in it: keep the token in a cookie and show the URL without it."""

    location: str
    origin: None = None
    token: str = dataclasses.field(default="", repr=False, compare=False)
    """The one to keep."""


def host_names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name.lower() for name in names)


def origin_names(origins: Iterable[str]) -> frozenset[str]:
    return frozenset(origin.rstrip("/").lower() for origin in origins)


def host_of(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"host", b"").decode("latin-1").lower()


def refuse_host(rules: PageRules, host: str) -> Refused | None:
    """A name this server is not known by. Beyond the loopback the token is what counts."""
    if not rules.loopback_only or "*" in rules.hosts:
        return None
    name = without_port(host)
    if not name or is_loopback(name) or name in rules.hosts or host in rules.hosts:
        return None
    return Refused(403, f"This server is not known as {name!r}. Allow the name with `--allow-host {name}`.")


def judge_page(
    rules: PageRules,
    *,
    method: str,
    host: str,
    headers: Mapping[bytes, bytes],
    websocket: bool = False,
    origin_only: bool = False,
) -> Allowed | Preflight | Refused:
    """Whether the page that makes the request, if one does, may make it.

    Args:
        origin_only: the request bears what another site's page cannot know; only a declared Origin counts.
    """
    origin = headers.get(b"origin", b"").decode("latin-1").rstrip("/").lower()
    foreign = bool(origin) and not _is_own(origin, host)
    if foreign and not ("*" in rules.origins or origin in rules.origins):
        return Refused(403, f"Pages of {origin} may not call this server. Allow it with `--allow-origin {origin}`.")
    if not origin and not origin_only and _is_cross_site(headers, method, websocket):
        return Refused(
            403, "Requests that another site's page makes are refused. Allow that site with `--allow-origin ORIGIN`."
        )
    if foreign and method == "OPTIONS" and b"access-control-request-method" in headers:
        return Preflight(origin)
    return Allowed(origin if foreign else None)


def cookie_counts(method: str, headers: Mapping[bytes, bytes], *, websocket: bool = False) -> bool:
    """Whether a cookie may stand for its user: browsers send it whoever wrote the page.

    What only reads shows its answer to the user alone. What changes something must come from a page of this very
    server, which its browser has to say. To be asked of requests that `judge_page` allowed.
    """
    host = host_of(headers)
    origin = headers.get(b"origin", b"").decode("latin-1").rstrip("/").lower()
    if origin:
        return _is_own(origin, host)
    return headers.get(b"sec-fetch-site") == b"same-origin" or (method in ("GET", "HEAD") and not websocket)


def bearer(headers: Mapping[bytes, bytes]) -> str:
    """The token of the Authorization header; empty without one."""
    kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def cookie(headers: Mapping[bytes, bytes], wanted: str) -> str:
    """The value of a cookie; empty without it."""
    for pair in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == wanted:
            return value
    return ""


def tokens_in(query: str) -> list[str]:
    """The values of `token=` in a query."""
    return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == "token"]


def without_token(path: str, query: str) -> str:
    """Where to send a browser that has signed in. `path` is decoded.

    The result is fit for a header, and on this server: two slashes at the start would name another one.
    """
    rest = urlencode([(key, value) for key, value in parse_qsl(query, keep_blank_values=True) if key != "token"])
    place = "/" + quote(path, safe="/:@!$&'()*+,;=~-._").lstrip("/")
    return f"{place}?{rest}" if rest else place


def session_cookie(name: str, token: str, *, secure: bool = False) -> Header:
    """Scripts cannot read it, other sites' pages cannot make a browser send it."""
    text = f"{name}={token}; HttpOnly; SameSite=Strict; Path=/" + ("; Secure" if secure else "")
    return (b"set-cookie", text.encode("latin-1"))


def cors_headers(origin: str) -> list[Header]:
    """What lets a page of `origin` read the answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def preflight_headers(origin: str, headers: Mapping[bytes, bytes]) -> list[Header]:
    """The answer to a browser's question before it sends a page's request."""
    return [
        *cors_headers(origin),
        (b"access-control-allow-methods", _ALLOWED_METHODS),
        (b"access-control-allow-headers", headers.get(b"access-control-request-headers", b"*")),
        (b"access-control-max-age", b"600"),
    ]


def joined(headers: Iterable[Header]) -> dict[bytes, bytes]:
    """Headers by name. Of one that came twice the values are joined, so that no second Host or Origin goes unseen."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = found[name] + b", " + value if name in found else value
    return found


def with_headers(send: Send, more: list[Header]) -> Send:
    """A `send` whose answers bear `more` too, instead of what they say of the same names."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in more if name != b"vary"}
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in ours]
            message = {**message, "headers": [*kept, *more]}
        await send(message)

    return sending


def _is_own(origin: str, host: str) -> bool:
    """A page of this very server: same host and port."""
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _is_cross_site(headers: Mapping[bytes, bytes], method: str, websocket: bool) -> bool:
    """Browsers say so. A link on another page may open one of ours: a document got by GET only reads."""
    if headers.get(b"sec-fetch-site") not in (b"cross-site", b"same-site"):
        return False
    opened = headers.get(b"sec-fetch-mode") == b"navigate" and method in ("GET", "HEAD") and not websocket
    return not (opened and headers.get(b"sec-fetch-dest") == b"document")
