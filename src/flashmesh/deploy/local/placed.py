"""What an endpoint of a deployment has, and one of a session has not. Plain data."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """Where a deployed endpoint stands: its place in an app, its address, and who may call it there."""

    resource_name: str
    """In the environment's manifest; the endpoint's own name is its id."""
    app: str
    environment: str
    manifest: Path
    """The environment's manifest, which its workers route calls by."""
    tcp: tuple[str, int]
    """Host and port it answers at; port 0: any that is free, which it then keeps."""
    token_file: Path
    """Holds the token its workers call others with."""
    public_key: bytes = b""
    """The key that signs the tokens its workers take, 32 bytes; empty: they take none."""
    revocations: Path | None = None
    """The list of tokens that are refused all the same."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables its workers get below the resource's own."""

    @property
    def scope(self) -> str:
        """What its signatures are bound to."""
        return f"{self.app}/{self.environment}"


def url_of(address: tuple[str, int]) -> str:
    """`http://127.0.0.1:41234`."""
    host, port = address
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def address_of(url: str | None, *, host: str) -> tuple[str, int]:
    """Host and port to listen on for an endpoint that was reached at `url`; None: any port of `host`."""
    from urllib.parse import urlsplit  # where a server starts without deployments, nobody needs it

    port = None if url is None else urlsplit(url).port
    return host, port or 0
