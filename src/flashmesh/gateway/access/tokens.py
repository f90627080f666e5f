"""The tokens a running server takes: verified once, then remembered until they expire or are revoked."""

import dataclasses
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flashmesh.gateway.access.keys import KeyUnusable, TokenKeys, admin_token, renew_admin_token
from flashmesh.gateway.access.register import Register, RegisterDamaged
from flashmesh.wire.tokens import Audience, Claims, Scope, TokenRefused, TokenVerifier

log = logging.getLogger(__name__)

LOOK_S: Final = 0.25
"""How long a revocation may go unnoticed. Looking is one stat of a file, and only requests with tokens make us look."""
_MOST_CACHED: Final = 4096
_sha256 = hashlib.sha256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a verified token allows."""

    name: str
    """As records and logs show it."""
    id: str
    scope: Scope
    app: str = ""
    """The only app it counts for; empty: any."""
    environment: str = ""
    """The only environment it counts for; empty: any."""
    endpoint: str = ""
    build: str = ""
    limited: bool = False
    """Whether it counts for one app or environment only."""
    expires: float = float("inf")
    """Seconds since the epoch from when it is refused."""

    @classmethod
    def of(cls, claims: Claims) -> "Grant":
        return cls(
            name=claims.sub,
            id=claims.jti,
            scope=claims.scope,
            app=claims.app,
            environment=claims.env,
            endpoint=claims.endpoint,
            build=claims.build,
            limited=bool(claims.app or claims.env),
            expires=float(claims.exp) if claims.exp else float("inf"),
        )


class Tokens:
    """What the gate asks.

    Verified tokens are remembered by their SHA-256: looking one up takes no time that depends on how much of a guess
    was right, and the tokens themselves are not kept in memory.

    Args:
        folder: this machine's, `$FLASH_HOME/hosts/<machine id>` (see `host_folder`). Key and admin token are made there
            if they are missing.
        clock: seconds since the epoch.
    Raises:
        KeyUnusable, RegisterDamaged: what is there cannot be trusted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clock: Callable[[], float] = time.time,
        most_cached: int = _MOST_CACHED,
    ) -> None:
        self.keys = TokenKeys.open(folder, clock=clock)
        self._folder = folder
        self._clock = clock
        self._most_cached = most_cached
        self._register = Register(folder, clock=clock)
        self._verifiers: dict[Audience, TokenVerifier] = {}
        self._cache: OrderedDict[bytes, Grant] = OrderedDict()
        self._by_name: dict[str, Grant] = {}
        self._own: dict[bytes, Grant] = {}
        """The admin token of this machine's commands: always known, so that it needs no cryptography."""
        self._looked = clock()
        self._look_at = self._looked + LOOK_S
        self._mark = self._register.mark()
        self._revoked = self._register.revoked()
        if admin_token(folder, self.keys)[1].jti in self._revoked:  # whoever revoked it could not write the next
            renew_admin_token(folder, self.keys)
        self._read_own()

    @property
    def revocations(self) -> Path:
        """The list of tokens; those that are refused stand in it too."""
        return self._register.path

    @property
    def admin_token(self) -> str:
        """The token by which this machine's commands are known."""
        return admin_token(self._folder, self.keys)[0]

    def known(self, shown: bytes) -> Grant | None:
        """What is remembered of the token in an Authorization header's value; None: it has to be verified.

        On the way of every request.
        """
        now = self._clock()
        if not self._looked <= now < self._look_at:
            self._look()
        key = _sha256(shown).digest()
        grant = self._cache.get(key)
        if grant is None:
            return self._own.get(key)
        if now >= grant.expires:
            del self._cache[key]
            return None
        self._cache.move_to_end(key)
        return grant

    def verify(self, token: bytes, *, shown: bytes | None = None) -> Grant:
        """What a token allows here. Raises TokenRefused.

        Args:
            shown: the Authorization header's value it came in, by which it is remembered. None: as if it had come in
                one.
        """
        shown = b"Bearer " + token if shown is None else shown
        grant = self.known(shown)
        if grant is None:
            own = self._own.get(_sha256(b"Bearer " + token).digest())
            grant = own or Grant.of(self.claims(token, "server"))
            self._cache[_sha256(shown).digest()] = grant
            self._by_name[grant.name] = grant
            if len(self._cache) > self._most_cached:
                self._forget_oldest()
        return grant

    def claims(self, token: bytes, audience: Audience) -> Claims:
        """What a token says to that audience (`link`: the server's end of a link). Nothing is remembered.

        Raises:
            TokenRefused: not ours, changed, for somebody else, expired or revoked.
        """
        if not self._looked <= self._clock() < self._look_at:
            self._look()
        verifier = self._verifiers.get(audience)
        if verifier is None:
            verifier = self._verifiers[audience] = TokenVerifier(self.keys.public, audience, clock=self._clock)
        claims = verifier.verify(token)
        if claims.jti in self._revoked:
            raise TokenRefused(
                f"The token {claims.sub!r} was revoked. Make another with `flash token create {claims.sub}`."
            )
        return claims

    def grant(self, name: str) -> Grant | None:
        """What the token of that name allows, as last verified; None for an unknown one and for no token at all."""
        return self._by_name.get(name)

    def _forget_oldest(self) -> None:
        _, oldest = self._cache.popitem(last=False)
        if self._by_name.get(oldest.name) is oldest:
            del self._by_name[oldest.name]

    def _look(self) -> None:
        """Whether tokens were revoked meanwhile. A clock that was set back makes us look too."""
        self._looked = self._clock()
        self._look_at = self._looked + LOOK_S
        mark = self._register.mark()
        if mark == self._mark:
            return
        self._mark = mark
        try:
            self._revoked |= self._register.revoked()  # a file that was put back or emptied revives nothing
            self._cache.clear()
            self._by_name.clear()
            self._own.clear()
            self._read_own()
        except (RegisterDamaged, KeyUnusable, OSError) as error:
            log.error("%s What was revoked before stays revoked.", error)

    def _read_own(self) -> None:
        token, claims = admin_token(self._folder, self.keys)
        if claims.jti in self._revoked:
            return
        grant = Grant.of(claims)
        self._own = {_sha256(b"Bearer " + token.encode()).digest(): grant}
        self._by_name[grant.name] = grant
