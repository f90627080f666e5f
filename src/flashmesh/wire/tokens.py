"""Tokens that say who may do what, and that anybody with the public key can check without asking.

A token is a JSON Web Token (RFC 7519) with one header, the same for all, signed with Ed25519 (RFC 8037). Because the
header is compared and never interpreted, no token can choose another algorithm. The signature covers the text of the
claims, and its own text must be the canonical one: no two texts are the same token.
"""

import hashlib
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, get_args

import msgspec

from flashmesh.functions.errors import FlashmeshError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

Scope = Literal["admin", "call", "metrics", "peer", "link"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)
Audience = Literal["server", "peers", "link"]
"""Who takes a token: the server's HTTP port, the endpoints of an environment, the server's end of a link."""

AUDIENCES: Final[dict[Scope, tuple[Audience, ...]]] = {
    "admin": ("server",),
    "call": ("server",),
    "metrics": ("server",),
    "peer": ("server", "peers"),
    "link": ("server", "link"),
}
LEEWAY_S: Final = 30
"""How far the clocks of two machines may be apart."""
_HEADER: Final = b"eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9"
"""{"alg":"EdDSA","typ":"JWT"}"""
_PREFIX: Final = _HEADER + b"."
_SIGNATURE_CHARACTERS: Final = 86
_LONGEST: Final = 4096


class TokenRefused(FlashmeshError):
    """The token is not valid. Make another with `flash token create NAME`."""

    code = "UNAUTHORIZED"
    status = 401


class Claims(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """What a token says. Times are whole seconds since the epoch."""

    iss: str
    """Which key signed it (see `key_id`)."""
    aud: tuple[Audience, ...]
    scope: Scope
    sub: str
    """Its name, as logs show it."""
    jti: str
    """Its id, by which it is revoked."""
    iat: int
    exp: int = 0
    """From when it is refused; 0: never."""
    app: str = ""
    """The only app it counts for; empty: any."""
    env: str = ""
    """The only environment it counts for; empty: any."""
    endpoint: str = ""
    """Link tokens: the endpoint whose worker holds it."""
    build: str = ""
    """Link tokens: the build that worker runs."""

    def expired(self, now: float) -> bool:
        return bool(self.exp) and now >= self.exp + LEEWAY_S


def new_seed() -> bytes:
    """A new private key: 32 random bytes."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes_raw()


def public_key(seed: bytes) -> bytes:
    """The 32 bytes that check what `seed` signs."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def key_id(public: bytes) -> str:
    """A short name of a public key: 16 hex digits."""
    return hashlib.sha256(public).hexdigest()[:16]


def is_token(text: bytes) -> bool:
    """Whether it claims to be one of these tokens. Says nothing about whether it is valid."""
    return text.startswith(_PREFIX)


class TokenSigner:
    """Signs tokens; the private key's holder."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._key: Ed25519PrivateKey | None = None

    def sign(self, claims: Claims) -> str:
        if self._key is None:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

            self._key = Ed25519PrivateKey.from_private_bytes(self._seed)
        signed = _PREFIX + _to_text(msgspec.json.encode(claims))
        return (signed + b"." + _to_text(self._key.sign(signed))).decode()


class TokenVerifier:
    """Checks tokens that one key signed for one audience.

    Args:
        public: that key, 32 bytes.
        clock: seconds since the epoch.
    """

    def __init__(self, public: bytes, audience: Audience, *, clock: Callable[[], float] = time.time) -> None:
        self._public = public
        self._audience: Audience = audience
        self._clock = clock
        self._key: Ed25519PublicKey | None = None

    def verify(self, token: bytes) -> Claims:
        """What the token says. Takes about 0.1 ms: remember what was verified.

        Raises:
            TokenRefused: not of this form, not signed by this key, for another audience, or expired.
        """
        signed, _, signature = token.rpartition(b".")
        if len(token) > _LONGEST or not is_token(signed) or signed.count(b".") != 1:
            raise TokenRefused("The token is not one of this server. Make one with `flash token create NAME`.")
        if not self._is_signed(signed, signature):
            raise TokenRefused(
                "The token was not signed by this server, or was changed. Make one here with `flash token create NAME`."
            )
        claims = read_claims(token)
        if self._audience not in claims.aud:
            raise TokenRefused(f"The token {claims.sub!r} ({claims.scope}) is not meant for this place.")
        if claims.expired(self._clock()):
            raise TokenRefused(
                f"The token {claims.sub!r} has expired. Make another with `flash token create {claims.sub}`."
            )
        return claims

    def _is_signed(self, signed: bytes, text: bytes) -> bool:
        if len(text) != _SIGNATURE_CHARACTERS:
            return False
        try:
            signature = urlsafe_b64decode(text + b"==")
        except ValueError:
            return False
        if _to_text(signature) != text:  # spare bits, or characters that the decoder skips
            return False
        from cryptography.exceptions import InvalidSignature

        if self._key is None:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

            self._key = Ed25519PublicKey.from_public_bytes(self._public)
        try:
            self._key.verify(signature, signed)
        except InvalidSignature:
            return False
        return True


def read_claims(token: bytes) -> Claims:
    """What a token says, unchecked: for one whose origin is known. Raises TokenRefused when it says nothing."""
    parts = token.split(b".")
    try:
        text = parts[1]
        return msgspec.json.decode(urlsafe_b64decode(text + b"=" * (-len(text) % 4)), type=Claims)
    except (IndexError, ValueError, msgspec.DecodeError) as error:
        raise TokenRefused("The token says nothing that this version understands.") from error


def _to_text(raw: bytes) -> bytes:
    return urlsafe_b64encode(raw).rstrip(b"=")
