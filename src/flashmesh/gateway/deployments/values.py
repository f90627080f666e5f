"""Values of environment variables, as the server tells them apart: by a hash under a key of its own.

The hash stands in manifests, where everybody may read it; without the key it tells nothing of a value that could be
guessed.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError

KEY_FILE: Final = "values.key"
_KEY_BYTES: Final = 32


class ValuesKey:
    """Made by `open`."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def open(cls, folder: Path) -> "ValuesKey":
        """The server's key in its data directory; made at the first time. Raises FlashmeshError when it is damaged."""
        path = folder / KEY_FILE
        try:
            key = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except FileNotFoundError:
            return cls(_make(path))
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        if len(key) != _KEY_BYTES:
            raise _damaged(path, ValueError("it has another length"))
        return cls(key)

    def hash(self, values: Mapping[str, str]) -> str:
        """12 hex; empty where there are no values."""
        if not values:
            return ""
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for name, value in sorted(values.items()):
            for part in (name, value):
                data = part.encode("utf-8", "surrogateescape")
                digest.update(len(data).to_bytes(8, "big") + data)
        return digest.hexdigest()[:12]


def chosen(names: Collection[str], given: Mapping[str, str] | None, kept: Mapping[str, str]) -> dict[str, str]:
    """The values a resource is to have.

    Args:
        names: those that its manifest declares.
        given: what came with the deploy; it may have more names (`--env-file`). None: nothing was said.
        kept: what it serves with now.
    """
    if given is not None:
        return dict(given)
    return {name: kept[name] for name in sorted(names) if name in kept}


def _make(path: Path) -> bytes:
    key = secrets.token_bytes(_KEY_BYTES)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.hex() + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    return key


def _damaged(path: Path, error: Exception) -> FlashmeshError:
    return FlashmeshError(
        f"{path} cannot be used: {error}. Put it back from a backup, or remove it: every resource with environment "
        "variables is deployed anew then."
    )
