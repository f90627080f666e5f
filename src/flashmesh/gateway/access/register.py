"""The tokens that were made on this machine, and which of them are revoked: `tokens.json` beside the key.

Tokens are checked without it; it is needed to list and to revoke them. A command writes it, a running server notices.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from flashmesh.functions.errors import FlashmeshError
from flashmesh.functions.nearest import did_you_mean
from flashmesh.gateway.access.keys import ADMIN_NAME
from flashmesh.kit.machine import replace
from flashmesh.wire.tokens import Claims, Scope

FILE: Final = "tokens.json"
_KEPT_EXPIRED_S: Final = 30 * 24 * 3600
"""How long expired tokens are listed, and revoked ones remembered: far longer than clocks differ."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", re.ASCII)


class TokenNameUnusable(FlashmeshError, ValueError):
    """A token's name has up to 63 letters, digits, `.`, `_`, `@` and `-`, and begins with a letter or digit."""

    code = "VALIDATION_ERROR"
    status = 400


class TokenNotFound(FlashmeshError, LookupError):
    """No token has this name or id. `flash token list` shows them."""

    code = "TOKEN_NOT_FOUND"
    status = 404


class RegisterDamaged(FlashmeshError):
    """The list of tokens cannot be read, so it is not known which of them are revoked."""

    code = "TOKENS_UNREADABLE"


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A token that was made here; its text is not kept. Times are whole seconds since the epoch, 0 = never."""

    id: str
    name: str
    scope: Scope
    app: str = ""
    environment: str = ""
    issued: int
    expires: int = 0
    revoked: int = 0

    @classmethod
    def of(cls, claims: Claims, *, revoked: int = 0) -> "Issued":
        return cls(
            id=claims.jti,
            name=claims.sub,
            scope=claims.scope,
            app=claims.app,
            environment=claims.env,
            issued=claims.iat,
            expires=claims.exp,
            revoked=revoked,
        )

    def state(self, now: float) -> str:
        """`active`, `revoked` or `expired`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and now >= self.expires else "active"


class _Document(msgspec.Struct, frozen=True):
    tokens: tuple[Issued, ...] = ()
    version: int = 1


class Register:
    """The file. Writers take turns; readers never wait.

    Args:
        folder: of this machine, `$FLASH_HOME/hosts/<machine id>`.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = folder / FILE
        self._lock = folder / f"{FILE}.lock"
        self._clock = clock

    def read(self) -> tuple[Issued, ...]:
        """All that are still of interest, oldest first. Raises RegisterDamaged."""
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=_Document).tokens
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise RegisterDamaged(
                f"{self.path} cannot be read ({error}), so it is not known which tokens are revoked. "
                f"Restore it, or remove it together with signing.key to end all tokens."
            ) from error

    def revoked(self) -> frozenset[str]:
        """Ids of tokens that are refused though nothing else is wrong with them."""
        return frozenset(token.id for token in self.read() if token.revoked)

    def mark(self) -> tuple[int, int, int]:
        """Differs whenever the file was written since."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 - on the way of requests: no Path work
        except OSError:
            return (0, 0, 0)
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def add(self, claims: Claims) -> Issued:
        """Note a new token. Raises TokenNameUnusable: a live one has that name."""
        check_name(claims.sub)
        with self._writing() as tokens:
            now = self._clock()
            if any(token.name == claims.sub and token.state(now) == "active" for token in tokens):
                raise TokenNameUnusable(
                    f"A token is named {claims.sub} already. Choose another name, or revoke that one first: "
                    f"`flash token revoke {claims.sub}`."
                )
            tokens.append(Issued.of(claims))
            return tokens[-1]

    def revoke(self, name_or_id: str) -> Issued:
        """Refuse that token from now on. One that is revoked stays as it is. Raises TokenNotFound."""
        with self._writing() as tokens:
            index = _find(tokens, name_or_id, self._clock())
            if not tokens[index].revoked:
                tokens[index] = msgspec.structs.replace(tokens[index], revoked=int(self._clock()))
            return tokens[index]

    def revoke_claims(self, claims: Claims) -> Issued:
        """Refuse a token that was made without being noted."""
        with self._writing() as tokens:
            tokens.append(Issued.of(claims, revoked=int(self._clock())))
            return tokens[-1]

    @contextlib.contextmanager
    def _writing(self) -> Iterator[list[Issued]]:
        """The list, to be changed in place; written on leaving unless something was raised."""
        handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            tokens = list(self.read())
            yield tokens
            now = self._clock()
            kept = tuple(token for token in tokens if not token.expires or now < token.expires + _KEPT_EXPIRED_S)
            replace(self.path, msgspec.json.format(msgspec.json.encode(_Document(tokens=kept)), indent=1) + b"\n")
        finally:
            os.close(handle)


def check_name(name: str) -> None:
    """Raises TokenNameUnusable."""
    if not _NAME.fullmatch(name):
        raise TokenNameUnusable
    if name == ADMIN_NAME:
        raise TokenNameUnusable(f"{ADMIN_NAME!r} is this machine's own token. Choose another name.")


def _find(tokens: list[Issued], name_or_id: str, now: float) -> int:
    """By id, else the live one of that name, else the newest of that name."""
    for index, token in enumerate(tokens):
        if token.id == name_or_id:
            return index
    named = [index for index, token in enumerate(tokens) if token.name == name_or_id]
    live = [index for index in named if tokens[index].state(now) == "active"]
    if named:
        return (live or named)[-1]
    near = did_you_mean(name_or_id, [token.name for token in tokens])
    raise TokenNotFound(f"No token has the name or id {name_or_id!r}{near}. `flash token list` shows them.")
