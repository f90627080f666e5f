"""The gate: asked of every request, by the lean server with a request's bytes, by the ASGI guard with its scope.

Most requests come from a program that talks to a name known to be good, without a token or with one that was verified
before: those cost a few dictionary lookups. Everything else is decided by `decide`, which tells its reasons.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from flashmesh.gateway.access import pages
from flashmesh.gateway.access.pages import Header, PageRules, Preflight, Refused, SignIn
from flashmesh.gateway.access.place import Place, is_by_name, names_place, refuse_place, serves
from flashmesh.gateway.access.scopes import WITHOUT_TOKEN, permits, required_scope
from flashmesh.gateway.access.tokens import Grant, Tokens
from flashmesh.gateway.http import JSON_TYPE, Answer, Headers
from flashmesh.wire.tokens import SCOPES, Scope, TokenRefused, is_token

COOKIE: Final = "flash_server_token"
"""Not the dev server's: browsers send cookies of a host to all its ports."""
_Table = dict[tuple[bytes | str, bytes | str], bool]
_WORDS: Final = {401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND"}
_MOST_HOSTS: Final = 64
_MOST_PATHS: Final = 4096
_HINT: Final = (
    "Send `Authorization: Bearer TOKEN`. The admin token of the server's machine is in "
    "$FLASH_HOME/hosts/<machine id>/token; `flash token create NAME --scope {needed}` makes another."
)


@dataclasses.dataclass(frozen=True, slots=True)
class Entered:
    """Let it in. `origin` is the foreign origin whose page may read the answer, else None."""

    principal: str
    """Name of the token; empty for the loopback without one, and for what is open to all."""
    origin: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class TurnedAway:
    """A refusal; a page of `origin` may read why."""

    refusal: Refused
    origin: str | None = None


Decision = Entered | Preflight | TurnedAway | SignIn


def decide(
    rules: PageRules,
    tokens: Tokens,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[bytes, bytes],
    websocket: bool = False,
    place: Place | None = None,
) -> Decision:
    """The whole rule. `path` is decoded, `headers` has lower-case names, `place` is what is served (None: anything).

    Order: what is open to all; the token; the Host, which a good token makes up for; the page it comes from; what the
    token may do.
    """
    if required_scope(method, path) is None:
        return Entered("")
    grant = _shown(rules, tokens, headers)
    host = pages.host_of(headers)
    proven = isinstance(grant, Grant)  # no page of another site can make a browser send a token in that header
    refused = None if proven else pages.refuse_host(rules, host)
    if refused is not None:
        return TurnedAway(refused)
    page = pages.judge_page(rules, method=method, host=host, headers=headers, websocket=websocket, origin_only=proven)
    if isinstance(page, Refused):
        return TurnedAway(page)
    if isinstance(page, Preflight):
        return page
    if isinstance(grant, Refused):
        return TurnedAway(grant, page.origin)
    if grant is None:
        signed_in = _sign_in(tokens, method, path, query, headers)
        if signed_in is not None:
            return signed_in
        grant = _of_cookie(tokens, method, headers, websocket)
    refused = _refuse_scope(rules, grant, method, path)
    if refused is None:
        refused = refuse_place(place if is_by_name(path) else None, grant, query, headers)
    if refused is not None:
        return TurnedAway(refused, page.origin)
    return Entered("" if grant is None else grant.name, page.origin)


def _shown(rules: PageRules, tokens: Tokens, headers: Mapping[bytes, bytes]) -> Grant | Refused | None:
    """What the Authorization header allows.

    One of our tokens is judged by what it says. What is none of ours (a client of another service sends its own key)
    does not count on the loopback, where most is served without; elsewhere it is refused.
    """
    if b"authorization" not in headers:
        return None
    token = pages.bearer(headers).encode("latin-1")
    if not is_token(token) and rules.loopback_only:
        return None
    try:
        return tokens.verify(token, shown=headers[b"authorization"])
    except TokenRefused as error:
        return Refused(401, str(error))


def _sign_in(tokens: Tokens, method: str, path: str, query: str, headers: Mapping[bytes, bytes]) -> SignIn | None:
    """A token in the address is for a person who opens a page: it is taken out of sight at once.

    For programs there is a header, which servers and proxies do not log.
    """
    if method != "GET" or "token=" not in query or b"text/html" not in headers.get(b"accept", b""):
        return None
    for token in pages.tokens_in(query):
        try:
            tokens.verify(token.encode("utf-8", "replace"))
        except TokenRefused:
            continue
        return SignIn(pages.without_token(path, query), token=token)
    return None


def _of_cookie(tokens: Tokens, method: str, headers: Mapping[bytes, bytes], websocket: bool) -> Grant | None:
    token = pages.cookie(headers, COOKIE) if b"cookie" in headers else ""
    if not token or not pages.cookie_counts(method, headers, websocket=websocket):
        return None
    try:
        return tokens.verify(token.encode("latin-1"))
    except TokenRefused:
        return None  # left over from an earlier server of that name


def _refuse_scope(rules: PageRules, grant: Grant | None, method: str, path: str) -> Refused | None:
    needed = required_scope(method, path)
    if grant is not None:
        if permits(grant.scope, method, path):
            return None
        return Refused(
            403,
            f"The token {grant.name!r} may {_may(grant.scope)}; this needs the scope {needed}. "
            f"Make one with `flash token create NAME --scope {needed}`.",
        )
    hint = _HINT.format(needed=needed)
    if not rules.loopback_only:
        return Refused(401, f"This server listens beyond its machine, so every request needs a token. {hint}")
    if needed in WITHOUT_TOKEN:
        return None
    return Refused(401, f"{method} {path} needs a token of the scope {needed}, on the loopback too. {hint}")


def _may(scope: Scope) -> str:
    return "call and read" if scope == "call" else f"do what the scope {scope} allows"


class AccessGate:
    """Implements `Gate` for the lean server; `guard` stands before an ASGI application.

    Args:
        rules: made with `PageRules.make(host=…, allow_host=…, allow_origin=…)`.
        tokens: this machine's.
        place: the app and environment that are served; None: any.
    """

    def __init__(self, rules: PageRules, tokens: Tokens, place: Place | None = None) -> None:
        self.rules = rules
        self.tokens = tokens
        self.place = place
        self._good_hosts: set[bytes] = set()
        """Host headers that were let in without a token; empty for a server that listens beyond the loopback."""
        self._allowed: dict[Scope, _Table] = {scope: {} for scope in SCOPES}
        """By scope, for the requests seen lately: whether they may be made."""
        self._open: _Table = {}
        """The same for requests without a token."""

    def check(self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes]) -> Answer | str:
        """The refusal to send, or the name of the caller (empty: loopback without a token).

        `path` is as it came, percent-encoded. What bears an Origin belongs to `guard`, which adds CORS headers to
        answers: a request that is let in here is answered without them.
        """
        if type(headers) is Headers and headers.free:
            return ""
        known = self.quick(method, path, query, headers)
        if known is not None:
            if type(headers) is Headers and b"authorization" not in headers:
                headers.free = True  # it rests on the rules alone, which do not change
            return known
        decision = self.decide(
            method=method.decode("latin-1"),
            path=unquote(path.decode("latin-1")),
            query=query.decode("latin-1"),
            headers=headers,
        )
        return decision.principal if isinstance(decision, Entered) else answer(decision, headers)

    def quick(self, method: bytes | str, path: bytes | str, query: bytes, headers: Mapping[bytes, bytes]) -> str | None:
        """The caller's name where nothing needs thought; None says nothing about what `decide` will say.

        A `path` of bytes is percent-encoded, one of text is decoded.
        """
        shown = headers.get(b"authorization")
        if b"origin" in headers or names_place(query, headers):
            return None
        if shown is not None:
            grant = self.tokens.known(shown)
            if grant is None:
                return None
            if grant.limited and not serves(self.place, grant):
                return None
            name, scope = grant.name, grant.scope
            table = self._allowed[scope]
        else:
            if (
                headers.get(b"host") not in self._good_hosts
                or b"sec-fetch-site" in headers
                or b"cookie" in headers
                or b"token=" in query
            ):
                return None
            name, scope, table = "", None, self._open
        may = table.get((method, path))
        if may is None:
            may = _learn(table, scope, method, path)
        return name if may else None

    def decide(
        self, *, method: str, path: str, query: str, headers: Mapping[bytes, bytes], websocket: bool = False
    ) -> Decision:
        """As `decide`; remembers good hosts."""
        found = decide(
            self.rules,
            self.tokens,
            method=method,
            path=path,
            query=query,
            headers=headers,
            websocket=websocket,
            place=self.place,
        )
        if isinstance(found, Entered) and required_scope(method, path) is not None:
            self._remember(headers)
        return found

    def grant(self, principal: str) -> Grant | None:
        """What the token of a caller allows, among others its app and environment; None without one."""
        return self.tokens.grant(principal) if principal else None

    def _remember(self, headers: Mapping[bytes, bytes]) -> None:
        """Only the loopback without a token asks for the name; one that a token made up for is not good by itself."""
        if len(self._good_hosts) >= _MOST_HOSTS or not self.rules.loopback_only:
            return
        if pages.refuse_host(self.rules, pages.host_of(headers)) is None:
            self._good_hosts.add(headers.get(b"host", b""))


def _learn(table: _Table, scope: Scope | None, method: bytes | str, path: bytes | str) -> bool:
    """Whether such a request may be made; kept in `table`, which forgets all when it is full."""
    verb = method if isinstance(method, str) else method.decode("latin-1")
    place = path if isinstance(path, str) else unquote(path.decode("latin-1"))
    if scope is None:
        needed = required_scope(verb, place)
        may = needed is None or needed in WITHOUT_TOKEN
    else:
        may = permits(scope, verb, place)
    if len(table) >= _MOST_PATHS:
        table.clear()
    table[(method, path)] = may
    return may


def answer(
    decision: Preflight | TurnedAway | SignIn, headers: Mapping[bytes, bytes], *, secure: bool = False
) -> Answer:
    """What is sent instead of the application's answer. `secure`: the request came over TLS."""
    if isinstance(decision, Preflight):
        return Answer(204, pages.preflight_headers(decision.origin, headers), b"")
    if isinstance(decision, SignIn):
        place: Header = (b"location", decision.location.encode("latin-1"))
        quiet: Header = (b"referrer-policy", b"no-referrer")
        return Answer(303, [place, quiet, pages.session_cookie(COOKIE, decision.token, secure=secure)], b"")
    refusal = decision.refusal
    word = _WORDS[refusal.status]
    more = [] if decision.origin is None else pages.cors_headers(decision.origin)
    if refusal.status == 401:
        more.append((b"www-authenticate", b"Bearer"))
    return Answer(refusal.status, [JSON_TYPE, *more], json.dumps({"error": word, "message": refusal.message}).encode())
