"""Who may call an endpoint at its TCP address: decided from the request's head, without asking anybody.

The Unix socket stands in a folder that only this user may look into. A TCP port is open to every program of the
machine, and to every web page that a browser on it shows. So a call needs a token of the endpoint's own environment,
or comes from the loopback, under a loopback name, and not from another site's page: what a server asks for that has
no token (see gateway/access).
"""

import hashlib
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec

from flashmesh.kit.loopback import is_loopback, without_port
from flashmesh.wire.tokens import Claims, TokenRefused, TokenVerifier, is_token, read_claims
from flashmesh.worker.spec import WorkerSpec

OPEN: Final = frozenset({"/ping"})
"""Answered to everybody: it says nothing but that somebody is there."""
SCOPES: Final = frozenset({"peer", "call", "admin"})
_MOST_KNOWN: Final = 256


class Refusal(NamedTuple):
    """`status` 401 or 403; `message` names what would be let in."""

    status: int
    message: str


class _Entry(msgspec.Struct, frozen=True):
    id: str
    revoked: int = 0


class _Listed(msgspec.Struct, frozen=True):
    tokens: tuple[_Entry, ...] = ()


class Access:
    """Asked of every request that came by TCP.

    Args:
        public_key: 32 bytes; the key that signs this environment's tokens. Empty: no token is good.
        app, environment: what a token must count for.
        revocations: path of the list of revoked tokens; empty: none is revoked.
        public: everybody may call.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        public_key: bytes,
        app: str,
        environment: str,
        revocations: str = "",
        public: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._verifiers = (
            {name: TokenVerifier(public_key, name, clock=clock) for name in ("peers", "server")} if public_key else {}
        )
        self._place = (app, environment)
        self._revocations = revocations
        self._public = public
        self._mark: tuple[int, int, int] | None = None
        self._revoked: frozenset[str] = frozenset()
        self._known: OrderedDict[bytes, Claims] = OrderedDict()
        self._clock = clock

    @classmethod
    def of(cls, spec: WorkerSpec, *, public: bool = False) -> "Access":
        """As the spec of a deployed endpoint says. `public`: of a load-balanced one that serves without token."""
        return cls(
            public_key=bytes.fromhex(spec.public_key),
            app=spec.app,
            environment=spec.app_environment,
            revocations=spec.revocations,
            public=public,
        )

    def refuse(self, *, method: str, path: str, headers: Mapping[str, str], client: str) -> Refusal | None:
        """Why a request is turned away; None: let it in.

        Args:
            headers: names in lower case.
            client: the address it came from, without port.
        """
        if self._public or path in OPEN:
            return None
        page = _foreign_page(method, headers)
        if page is not None:
            return page
        token = _bearer(headers)
        if token and (is_token(token) or not is_loopback(client)):
            return self._refuse_token(token)
        if not is_loopback(client):
            return Refusal(401, "This endpoint wants a token: send `Authorization: Bearer TOKEN`.")
        name = without_port(headers.get("host", "").lower())
        if name and not is_loopback(name):
            return Refusal(403, f"This endpoint is not known as {name!r} here. Call it as 127.0.0.1, or send a token.")
        return None

    def _refuse_token(self, token: bytes) -> Refusal | None:
        try:
            claims = self._verified(token)
        except TokenRefused as error:
            return Refusal(401, str(error))
        if claims.scope not in SCOPES:
            return Refusal(403, f"The token {claims.sub!r} ({claims.scope}) may not call functions.")
        for noun, wanted, only in zip(("app", "env"), self._place, (claims.app, claims.env), strict=True):
            if only and only != wanted:
                return Refusal(403, f"The token {claims.sub!r} counts for the {noun} {only!r} and not for {wanted!r}.")
        return None

    def _verified(self, token: bytes) -> Claims:
        """What the token says, once its signature was checked. Raises TokenRefused."""
        key = hashlib.sha256(token).digest()
        claims = self._known.get(key)
        if claims is None:
            verifier = self._verifiers.get("peers" if read_claims(token).scope == "peer" else "server")
            if verifier is None:
                raise TokenRefused("No token is good here. Call the endpoint through its server.")
            claims = self._known[key] = verifier.verify(token)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        self._look()
        if claims.expired(self._clock()):
            raise TokenRefused(f"The token {claims.sub!r} has expired. Make another with `flash token create NAME`.")
        if claims.jti in self._revoked:
            raise TokenRefused(f"The token {claims.sub!r} was revoked. Make another with `flash token create NAME`.")
        return claims

    def _look(self) -> None:
        """Read the list of revoked tokens again if it was written. What was revoked once stays so."""
        if not self._revocations:
            return
        try:
            found = os.stat(self._revocations)  # noqa: PTH116 - with every call that bears a token
            mark = (found.st_ino, found.st_mtime_ns, found.st_size)
            if mark == self._mark:
                return
            with open(self._revocations, "rb") as file:  # noqa: PTH123
                listed = msgspec.json.decode(file.read(), type=_Listed)
        except (OSError, msgspec.DecodeError):
            return
        self._mark = mark
        self._revoked |= {entry.id for entry in listed.tokens if entry.revoked}


def _foreign_page(method: str, headers: Mapping[str, str]) -> Refusal | None:
    """Another site's page must not call functions of whoever opens it."""
    origin = headers.get("origin", "").rstrip("/").lower()
    host = headers.get("host", "").lower()
    if origin:
        if host and origin in (f"http://{host}", f"https://{host}"):
            return None
        return Refusal(403, f"Pages of {origin} may not call this endpoint. Call it through the server, which can.")
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return None
    opened = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if opened and method in ("GET", "HEAD"):
        return None  # a link somebody followed: it only reads
    return Refusal(403, "Requests that another site's page makes are refused. Call the endpoint from a program.")


def _bearer(headers: Mapping[str, str]) -> bytes:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip().encode("latin-1", "replace") if kind.lower() == "bearer" else b""
