"""This machine's key pair and admin token: `$FLASH_HOME/hosts/<machine id>/signing.key` and `token`.

Whoever starts first makes them, a server or a command. They are readable by this user alone and are never logged.
"""

import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.machine import create_once, replace
from flashmesh.wire.tokens import (
    AUDIENCES,
    Claims,
    Scope,
    TokenRefused,
    TokenSigner,
    key_id,
    new_seed,
    public_key,
    read_claims,
)

KEY_FILE: Final = "signing.key"
TOKEN_FILE: Final = "token"
ADMIN_NAME: Final = "admin"
"""Name of the token that a server makes for its own machine's commands."""


class KeyUnusable(FlashmeshError):
    """The key that signs this machine's tokens cannot be used."""

    code = "KEY_UNUSABLE"


class TokenKeys:
    """The key pair. Signs; checking is TokenVerifier's.

    Attributes:
        public: 32 bytes, for whoever checks tokens.
        id: names the pair in tokens.
    """

    def __init__(self, seed: bytes, public: bytes, *, clock: Callable[[], float] = time.time) -> None:
        self.public = public
        self.id = key_id(public)
        self._signer = TokenSigner(seed)
        self._clock = clock

    @classmethod
    def open(cls, folder: Path, *, clock: Callable[[], float] = time.time) -> "TokenKeys":
        """The pair of `folder`, made if there is none: by exactly one of the processes that ask at once.

        Raises:
            KeyUnusable: others may read it, or it is damaged.
        """
        path = folder / KEY_FILE
        text = create_once(path, _new_pair)
        check_private(path)
        try:
            seed, public = (b64decode(line, validate=True) for line in text.split())
        except ValueError as error:
            raise KeyUnusable(
                f"{path} is damaged. Remove it: a new key is made, and tokens of the old one end."
            ) from error
        if len(seed) != 32 or len(public) != 32:
            raise KeyUnusable(f"{path} is damaged. Remove it: a new key is made, and tokens of the old one end.")
        return cls(seed, public, clock=clock)

    def issue(
        self,
        name: str,
        scope: Scope,
        *,
        lifetime_s: float | None = None,
        app: str = "",
        environment: str = "",
        endpoint: str = "",
        build: str = "",
    ) -> tuple[str, Claims]:
        """A new token and what it says. `lifetime_s` None: it does not expire."""
        now = int(self._clock())
        claims = Claims(
            iss=self.id,
            aud=AUDIENCES[scope],
            scope=scope,
            sub=name,
            jti=os.urandom(8).hex(),
            iat=now,
            exp=0 if lifetime_s is None else now + max(1, int(lifetime_s)),
            app=app,
            env=environment,
            endpoint=endpoint,
            build=build,
        )
        return self._signer.sign(claims), claims


def admin_token(folder: Path, keys: TokenKeys) -> tuple[str, Claims]:
    """The admin token of this machine, made if there is none that `keys` signed.

    It is believed without checking its signature: it lies beside the private key, and whoever could write the one could
    read the other. So a server that only its own machine's commands talk to never loads the cryptography.
    """
    path = folder / TOKEN_FILE
    for _ in range(2):
        text = create_once(path, lambda: keys.issue(ADMIN_NAME, "admin")[0].encode() + b"\n").strip()
        check_private(path)
        try:
            claims = read_claims(text)
        except TokenRefused:
            claims = None
        if claims is not None and claims.iss == keys.id and claims.scope == "admin":
            return text.decode(), claims
        renew_admin_token(folder, keys)
    raise KeyUnusable(f"{path} is not the admin token of this machine's key. Remove it.")


def renew_admin_token(folder: Path, keys: TokenKeys) -> None:
    """Write another one in its place. The old one goes on counting until it is revoked."""
    replace(folder / TOKEN_FILE, keys.issue(ADMIN_NAME, "admin")[0].encode() + b"\n")


def check_private(path: Path) -> None:
    """Raises KeyUnusable when other users may read or write a secret file."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise KeyUnusable(
            f"Others may read {path} (mode {mode:04o}). Run `chmod 600 {path}`, or remove it to have a new one."
        )


def _new_pair() -> bytes:
    seed = new_seed()
    return b64encode(seed) + b"\n" + b64encode(public_key(seed)) + b"\n"
