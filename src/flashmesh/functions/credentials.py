"""Which key belongs to which address. A key goes nowhere else, and never over an open network in clear."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from flashmesh.functions.errors import InsecureAddress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

RUNPOD_DOMAINS = ("runpod.ai", "runpod.io")


def check_address(url: str) -> SplitResult:
    """The parts of an address that may be called: https, or http on this machine. Raises InsecureAddress."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return parts
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return parts
    shown = f"{parts.scheme}://{parts.hostname}" if parts.hostname else url
    raise InsecureAddress(f"{shown} is neither https nor on this machine, so nothing is sent there. Use https://…")


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def key_for(url: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The bearer token for an address, or None.

    RUNPOD_API_KEY (else the key in `~/.runpod/config.toml`) belongs to runpod.ai, runpod.io and the hosts of
    `RUNPOD_*_URL`; FLASH_TOKEN to the host of FLASH_SERVER.
    """
    env = os.environ if environment is None else environment
    address = _origin(url)
    server = env.get("FLASH_SERVER", "").strip()
    if server and address == _origin(server):
        return env.get("FLASH_TOKEN", "").strip() or None
    named = {
        _origin(value.strip()) for name, value in env.items() if name.startswith("RUNPOD_") and name.endswith("_URL")
    }
    host = urlsplit(url).hostname or ""
    at_runpod = any(host == domain or host.endswith("." + domain) for domain in RUNPOD_DOMAINS)
    if at_runpod or address in named:
        return env.get("RUNPOD_API_KEY", "").strip() or _saved_runpod_key()
    return None


def _origin(url: str) -> tuple[str, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = None
    return (parts.hostname or "", port or {"https": 443, "http": 80}.get(parts.scheme))


def _saved_runpod_key() -> str | None:
    """The key that `flash login` and runpodctl save. An unreadable file counts as none."""
    import tomllib
    from pathlib import Path

    try:
        saved = tomllib.loads((Path.home() / ".runpod" / "config.toml").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return None
    default = saved.get("default")
    key = default.get("api_key") if isinstance(default, dict) else saved.get("apikey")
    return key.strip() or None if isinstance(key, str) else None
