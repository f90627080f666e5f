"""Who may talk to the dev server: a decision over a request's headers, and the ASGI wrapper that obeys it.

Names and pages are judged as on the control plane (`gateway/access/pages.py`). Without a token only requests that are
addressed to a loopback name, and do not come from a foreign page, are let in. Beyond the loopback a token is needed.
"""

import dataclasses
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from flashmesh.gateway.access import pages
from flashmesh.gateway.access.pages import (
    TELLING,
    Allowed,
    Header,
    PageRules,
    Preflight,
    Refused,
    SignIn,
    cors_headers,
)
from flashmesh.kit.loopback import is_loopback

__all__ = [
    "AccessRules", "Allowed", "Guard", "Header", "Preflight", "Receive", "Refused", "Scope", "Send", "SignIn",
    "cors_headers", "decide", "is_loopback",
]  # fmt: skip

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/ping"})
"""Answered to everybody; they tell nothing but that the server is up."""
COOKIE = "flash_token"
_MOST_HOSTS = 64

Decision = Allowed | Preflight | Refused | SignIn


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessRules:
    """What is allowed; made once from the options."""

    pages: PageRules
    token: str | None = None

    @property
    def loopback_only(self) -> bool:
        """The server listens on the loopback only, so a token is not needed."""
        return self.pages.loopback_only

    @classmethod
    def make(
        cls, *, host: str, token: str | None, allow_host: Iterable[str], allow_origin: Iterable[str]
    ) -> "AccessRules":
        return cls(token=token, pages=PageRules.make(host=host, allow_host=allow_host, allow_origin=allow_origin))


def decide(
    rules: AccessRules, *, method: str, path: str, query: str, headers: dict[bytes, bytes], websocket: bool = False
) -> Decision:
    """The whole rule. `headers` has lower-case names.

    Order: what is open to all; the Host; the page it comes from; the token.
    """
    if path in OPEN_PATHS:
        return Allowed()
    host = pages.host_of(headers)
    refused = pages.refuse_host(rules.pages, host)
    if refused is not None:
        return refused
    page = pages.judge_page(rules.pages, method=method, host=host, headers=headers, websocket=websocket)
    if not isinstance(page, Allowed):
        return page
    if rules.loopback_only:
        return page
    return _check_token(rules, path, query, headers, page)


def _check_token(rules: AccessRules, path: str, query: str, headers: dict[bytes, bytes], page: Allowed) -> Decision:
    if rules.token is None:
        return Refused(
            401, "This server listens beyond this machine and has no token. Start it again with `flash run`."
        )
    cookie = pages.cookie(headers, COOKIE) if page.origin is None else ""  # a foreign page has to know the token
    if _is(rules.token, pages.bearer(headers)) or _is(rules.token, cookie):
        return page
    if "token=" in query and any(_is(rules.token, shown) for shown in pages.tokens_in(query)):
        if b"text/html" not in headers.get(b"accept", b""):
            return page
        return SignIn(pages.without_token(path, query), token=rules.token)
    return Refused(401, "A token is needed: `Authorization: Bearer TOKEN`, or open the URL that `flash run` printed.")


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
        headers = pages.joined(scope["headers"])
        if self.is_plain(headers):
            await self._application(scope, receive, send)
            return
        decision = decide(
            self._rules,
            method=scope.get("method", "GET"),
            path=scope["path"],
            query=scope["query_string"].decode("latin-1"),
            headers=headers,
            websocket=kind == "websocket",
        )
        if isinstance(decision, Allowed):
            self._remember(scope)
            if decision.origin is not None and kind == "http":
                send = pages.with_headers(send, cors_headers(decision.origin))
            await self._application(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _answer(decision, scope, send)

    def is_plain(self, headers: Mapping[bytes, bytes]) -> bool:
        """Most requests: to a host that is known to be good, and from no browser page. No decision."""
        return headers.get(b"host") in self._good_hosts and TELLING.isdisjoint(headers)

    def _remember(self, scope: Scope) -> None:
        if self._rules.loopback_only and scope["path"] not in OPEN_PATHS and len(self._good_hosts) < _MOST_HOSTS:
            self._good_hosts.update(value for name, value in scope["headers"] if name == b"host")


async def _answer(decision: Preflight | Refused | SignIn, scope: Scope, send: Send) -> None:
    headers: list[Header]
    body = b""
    if isinstance(decision, Preflight):
        status, headers = 204, pages.preflight_headers(decision.origin, pages.joined(scope["headers"]))
    elif isinstance(decision, SignIn):
        place = (b"location", decision.location.encode("latin-1"))
        status, headers = 303, [place, pages.session_cookie(COOKIE, decision.token)]
    else:
        status, body = decision.status, json.dumps({"error": decision.message, "code": "REFUSED"}).encode()
        headers = [(b"content-type", b"application/json")]
        if decision.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
