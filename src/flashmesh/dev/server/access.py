"""Who may talk to the dev server: a decision over a request's headers, and the ASGI wrapper that obeys it.

A page on the web must not be able to call the functions of whoever opens it. So without a token only requests that are
addressed to a loopback name, and do not come from a foreign page, are let in. Beyond the loopback a token is needed.
"""

import dataclasses
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/ping"})
"""Answered to everybody; they tell nothing but that the server is up."""
COOKIE = "flash_token"
_TELLING = frozenset({b"origin", b"sec-fetch-site"})
"""Headers that say which page a request comes from."""
_MOST_HOSTS = 64
_ALLOWED_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_EXPOSED = b"X-Execution-Id, X-Cold-Start, Server-Timing, Retry-After, traceparent"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """What is allowed; made once from the options."""

    token: str | None = None
    loopback_only: bool = True
    """The server listens on the loopback only, so a token is not needed."""
    hosts: frozenset[str] = frozenset()
    """Host names allowed besides those of the loopback; `*` = any."""
    origins: frozenset[str] = frozenset()
    """Foreign origins allowed (`http://localhost:3000`); `*` = any."""

    @classmethod
    def make(
        cls, *, host: str, token: str | None, allow_host: Iterable[str], allow_origin: Iterable[str]
    ) -> "AccessRules":
        return cls(
            token=token,
            loopback_only=is_loopback(host),
            hosts=frozenset(name.lower() for name in allow_host),
            origins=frozenset(origin.rstrip("/").lower() for origin in allow_origin),
        )


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

    status: Literal[401, 403]
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class SignIn:
    """A browser opened the printed URL: keep the token in a cookie and show the URL without it."""

    location: str
    origin: None = None


Decision = Allowed | Preflight | Refused | SignIn


def is_loopback(host: str) -> bool:
    """Whether `host` (no port) is a name or address of this machine's loopback; `*.localhost` counts."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost") or name == "::1":
        return True
    parts = name.split(".")
    return len(parts) == 4 and parts[0] == "127" and all(part.isascii() and part.isdigit() for part in parts)


def decide(
    rules: AccessRules, *, method: str, path: str, query: str, headers: dict[bytes, bytes], websocket: bool = False
) -> Decision:
    """The whole rule. `headers` has lower-case names.

    Order: what is open to all; the Host; the page it comes from; the token.
    """
    if path in OPEN_PATHS:
        return Allowed()
    host = headers.get(b"host", b"").decode("latin-1").lower()
    refused = _refuse_host(rules, host)
    if refused is not None:
        return refused
    origin = headers.get(b"origin", b"").decode("latin-1").rstrip("/").lower()
    foreign = bool(origin) and not _is_own(origin, host)
    if foreign and not _origin_allowed(rules, origin):
        return Refused(403, f"Pages of {origin} may not call this server. Allow it with `--allow-origin {origin}`.")
    if not origin and _is_cross_site(headers, method, websocket):
        return Refused(
            403, "Requests that another site's page makes are refused. Allow that site with `--allow-origin ORIGIN`."
        )
    if foreign and method == "OPTIONS" and b"access-control-request-method" in headers:
        return Preflight(origin)
    return _check_token(rules, path, query, headers, origin if foreign else None)


def _refuse_host(rules: AccessRules, host: str) -> Refused | None:
    if not rules.loopback_only or "*" in rules.hosts:
        return None  # beyond the loopback the token is what counts
    name = _without_port(host)
    if not name or is_loopback(name) or name in rules.hosts or host in rules.hosts:
        return None
    return Refused(403, f"This server is not known as {name!r}. Allow the name with `--allow-host {name}`.")


def _check_token(
    rules: AccessRules, path: str, query: str, headers: dict[bytes, bytes], origin: str | None
) -> Decision:
    if rules.token is None:
        if rules.loopback_only:
            return Allowed(origin)
        return Refused(
            401, "This server listens beyond this machine and has no token. Start it again with `flash run`."
        )
    if rules.loopback_only:
        return Allowed(origin)
    if _is(rules.token, _bearer(headers)) or _is(rules.token, _cookie(headers)):
        return Allowed(origin)
    pairs = parse_qsl(query, keep_blank_values=True)
    if any(key == "token" and _is(rules.token, value) for key, value in pairs):
        if b"text/html" not in headers.get(b"accept", b""):
            return Allowed(origin)
        rest = urlencode([(key, value) for key, value in pairs if key != "token"])
        return SignIn(f"{path}?{rest}" if rest else path)
    return Refused(401, "A token is needed: `Authorization: Bearer TOKEN`, or open the URL that `flash run` printed.")


def _is_cross_site(headers: dict[bytes, bytes], method: str, websocket: bool) -> bool:
    """Browsers say so. A link on another page may open one of ours: a document got by GET only reads."""
    if headers.get(b"sec-fetch-site") not in (b"cross-site", b"same-site"):
        return False
    opened = headers.get(b"sec-fetch-mode") == b"navigate" and method in ("GET", "HEAD") and not websocket
    return not (opened and headers.get(b"sec-fetch-dest") == b"document")


def _is_own(origin: str, host: str) -> bool:
    """A page of this very server: same host and port."""
    return bool(host) and origin in (f"http://{host}", f"https://{host}")


def _origin_allowed(rules: AccessRules, origin: str) -> bool:
    return "*" in rules.origins or origin in rules.origins


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].split("]")[0]
    return host.rsplit(":", 1)[0] if host.count(":") == 1 else host


def _bearer(headers: dict[bytes, bytes]) -> str:
    kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _cookie(headers: dict[bytes, bytes]) -> str:
    for pair in headers.get(b"cookie", b"").decode("latin-1").split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _is(token: str, shown: str) -> bool:
    return bool(shown) and hmac.compare_digest(token.encode(), shown.encode())


class Guard:
    """The ASGI application in front of everything else."""

    def __init__(self, application: Application, rules: AccessRules) -> None:
        self._application = application
        self._rules = rules
        self._good_hosts: set[bytes] = set()
        """Host headers that were let in before, where only they decide."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._application(scope, receive, send)
            return
        if self._is_plain(scope["headers"]):
            await self._application(scope, receive, send)
            return
        decision = decide(
            self._rules,
            method=scope.get("method", "GET"),
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers=dict(scope["headers"]),
            websocket=kind == "websocket",
        )
        if isinstance(decision, Allowed):
            self._remember(scope)
            if decision.origin is not None and kind == "http":
                send = _with_headers(send, cors_headers(decision.origin))
            await self._application(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(decision, scope, send)

    def _is_plain(self, headers: list[Header]) -> bool:
        """Most requests: to a host that is known to be good, and from no browser page. One pass, no decision."""
        good = False
        for name, value in headers:
            if name == b"host":
                good = value in self._good_hosts
            elif name in _TELLING:
                return False
        return good

    def _remember(self, scope: Scope) -> None:
        if self._rules.loopback_only and scope["path"] not in OPEN_PATHS and len(self._good_hosts) < _MOST_HOSTS:
            self._good_hosts.update(value for name, value in scope["headers"] if name == b"host")


def cors_headers(origin: str) -> list[Header]:
    """What lets a page of `origin` read the answer."""
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"Origin"),
    ]


def _with_headers(send: Send, more: list[Header]) -> Send:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            ours = {name for name, _ in more if name != b"vary"}
            kept = [(name, value) for name, value in message.get("headers", ()) if name.lower() not in ours]
            message = {**message, "headers": [*kept, *more]}
        await send(message)

    return sending


async def _answer(decision: Preflight | Refused | SignIn, scope: Scope, send: Send) -> None:
    headers: list[Header]
    if isinstance(decision, Preflight):
        wanted = dict(scope["headers"]).get(b"access-control-request-headers", b"*")
        headers = [
            *cors_headers(decision.origin),
            (b"access-control-allow-methods", _ALLOWED_METHODS),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"600"),
        ]
        status, body = 204, b""
    elif isinstance(decision, SignIn):
        token = dict(parse_qsl(scope["query_string"].decode("latin-1")))["token"]
        cookie = f"{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", decision.location.encode("latin-1")), (b"set-cookie", cookie.encode("latin-1"))]
        status, body = 303, b""
    else:
        status, body = decision.status, json.dumps({"error": decision.message, "code": "REFUSED"}).encode()
        headers = [(b"content-type", b"application/json")]
        if decision.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
