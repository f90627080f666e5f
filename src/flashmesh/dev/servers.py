"""Which server this machine's programs use: FLASH_SERVER, `flash login`'s, or the one that runs here."""

import dataclasses
import json
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from flashmesh.functions.credentials import check_address
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.home import flash_home

LOGIN_FILE: Final = "login.json"
"""In `$FLASH_HOME`: what `flash login` wrote."""


class LoginFailed(FlashmeshError):
    """The server could not be used as it was named."""

    code = "LOGIN_FAILED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerAddress:
    """A server and what it needs to be shown. The token belongs to this address and goes nowhere else."""

    url: str
    """Scheme, host and port, without a slash at the end."""
    token: str | None = dataclasses.field(default=None, repr=False)
    anchor: str | None = dataclasses.field(default=None, repr=False)
    """The certificate (PEM) to trust; None: what this machine trusts."""
    source: str = "FLASH_SERVER"
    """Who said so: `FLASH_SERVER`, `flash login` or `this machine`."""

    def headers(self) -> dict[str, str]:
        """What to send along."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS towards it; None for plain HTTP, which is this machine's only."""
        if not self.url.startswith("https:"):
            return None
        from flashmesh.gateway.access.pinning import client_ssl_context

        return client_ssl_context(self.anchor)


def server_address(env: Mapping[str, str] | None = None) -> ServerAddress | None:
    """The server that commands use: FLASH_SERVER, else `flash login`'s, else the one that runs on this machine.

    FLASH_TOKEN counts for FLASH_SERVER alone. A server that is named twice keeps the token known for it.

    Raises:
        InsecureAddress: neither https nor on this machine.
        LoginFailed: what `flash login` wrote cannot be read.
    """
    env = os.environ if env is None else env
    home = flash_home(env)
    named = env.get("FLASH_SERVER", "").strip()
    if not named:
        return logged_in_server(home) or local_server(home, env)
    check_address(named)
    known = next(
        (
            address
            for address in (logged_in_server(home), local_server(home, env))
            if address is not None and _origin(address.url) == _origin(named)
        ),
        ServerAddress(url=named),
    )
    token = env.get("FLASH_TOKEN", "").strip() or known.token
    return ServerAddress(url=named.rstrip("/"), token=token, anchor=known.anchor)


def logged_in_server(home: Path) -> ServerAddress | None:
    """What `flash login` remembered in `home`. Raises LoginFailed."""
    path = home / LOGIN_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return ServerAddress(
            url=str(document["url"]),
            token=document.get("token"),
            anchor=document.get("anchor"),
            source="flash login",
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoginFailed(f"{path} cannot be read ({error}). Log in again: `flash login URL`.") from error


def local_server(home: Path, env: Mapping[str, str]) -> ServerAddress | None:
    """The server of this machine and user that is running, with its admin token."""
    from flashmesh.gateway.access.keys import TOKEN_FILE, check_private
    from flashmesh.gateway.data import live_server
    from flashmesh.kit.machine import host_folder

    folder = host_folder(home, environ=env, make=False)
    found = live_server(folder / "server")
    if found is None:
        return None
    path = folder / TOKEN_FILE
    try:
        check_private(path)
        token = path.read_text(encoding="ascii").strip()
    except OSError:
        token = None
    anchor = _own_authority(folder) if found.url.startswith("https:") else None
    return ServerAddress(url=found.url.rstrip("/"), token=token, anchor=anchor, source="this machine")


def _own_authority(folder: Path) -> str | None:
    from flashmesh.gateway.access.certificates import AUTHORITY_FILE

    try:
        text = (folder / AUTHORITY_FILE).read_text(encoding="ascii")
    except OSError:
        return None  # a certificate the user gave
    end = "-----END CERTIFICATE-----\n"
    return text[: text.index(end) + len(end)]


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
