"""Signatures over pickled values, so that nothing is unpickled that a party of the same environment did not pickle."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from flashmesh.functions.errors import UntrustedPayload

LIFETIME_S: Final = 24 * 3600
"""How long a signed value may be opened: as long as the execution it belongs to may wait and be kept."""
_MAC_BYTES: Final = 32
_EXPIRY_BYTES: Final = 8


class Purpose(NamedTuple):
    """What a signed value is for. One signed for one purpose is refused for another."""

    function: str = ""
    direction: Literal["call", "result"] = "call"
    execution: str = ""


class Signer:
    """Seals and opens bytes with the environment's key.

    Args:
        key: the environment's secret; at least 16 bytes.
        environment: its name, which is part of what is signed.
        clock: seconds since the epoch, as both parties know them.
    """

    def __init__(self, key: bytes, environment: str, *, clock: Callable[[], float] = time.time) -> None:
        if len(key) < 16:
            raise ValueError(
                f"The signing key has {len(key)} bytes; it needs 16 at least. Make one with Signer.new_key()."
            )
        self._key = key
        self._environment = environment
        self._clock = clock

    @staticmethod
    def new_key() -> bytes:
        """A random key."""
        return secrets.token_bytes(32)

    def seal(self, data: bytes, purpose: Purpose, *, lifetime_s: float = LIFETIME_S) -> bytes:
        """`data` behind its signature and its expiry."""
        expiry = int(self._clock() + lifetime_s).to_bytes(_EXPIRY_BYTES, "big")
        return self._mac(data, purpose, expiry) + expiry + data

    def open(self, sealed: bytes, purpose: Purpose) -> bytes:
        """The data. Raises UntrustedPayload for another key, environment or purpose, changed bytes, or expired."""
        mac, rest = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        expiry, data = rest[:_EXPIRY_BYTES], rest[_EXPIRY_BYTES:]
        if len(expiry) < _EXPIRY_BYTES or not hmac.compare_digest(mac, self._mac(data, purpose, expiry)):
            raise UntrustedPayload(
                "A pickled value was not signed by this environment for this call, so it was not opened. "
                "Send plain values, or call from a process of the same session."
            )
        if int.from_bytes(expiry, "big") < self._clock():
            raise UntrustedPayload(
                "A pickled value's signature has expired, so it was not opened. Send the call again."
            )
        return data

    def _mac(self, data: bytes, purpose: Purpose, expiry: bytes) -> bytes:
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (self._environment, *purpose):
            raw = part.encode()
            mac.update(len(raw).to_bytes(4, "big") + raw)  # lengths keep "ab"+"c" apart from "a"+"bc"
        mac.update(expiry)
        mac.update(data)
        return mac.digest()
