"""Where calls may be sent: https anywhere, plain http only within ranges that settings name. Pure.

The range is asked of the address a name resolves to, each time a connection is opened: a name that is moved elsewhere
later gains nothing by it.
"""

import dataclasses
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from flashmesh.functions.errors import InsecureAddress, ValidationError

Network = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
LOOPBACK: Final[tuple[Network, ...]] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
_FIELD: Final = "endpointUrl"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where to POST. `path` holds the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def parse_target(url: str) -> Target:
    """A function's address; one without a path means `/invoke`. Raises ValidationError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValidationError(f"{_FIELD}: {error}", field=_FIELD) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValidationError(f"{_FIELD}: not an http:// or https:// address", field=_FIELD)
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValidationError(f"{_FIELD}: a user, a password or a #fragment does not belong in it", field=_FIELD)
    if not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        raise ValidationError(f"{_FIELD}: write it in ASCII, without blanks (percent-encoded)", field=_FIELD)
    if port == 0:
        raise ValidationError(f"{_FIELD}: port 0 is no port", field=_FIELD)
    path = parts.path if parts.path not in ("", "/") else "/invoke"
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path + query)


class PlainHttp:
    """The ranges that http without TLS may go to: the loopback and those given."""

    def __init__(self, ranges: Iterable[str | Network] = ()) -> None:
        self._ranges = (*LOOPBACK, *(ip_network(given) if isinstance(given, str) else given for given in ranges))

    def permits(self, address: str) -> bool:
        """`address` is an IP address as text."""
        found = ip_address(address.partition("%")[0])
        if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
            found = found.ipv4_mapped
        return any(found.version == network.version and found in network for network in self._ranges)

    def check_literal(self, target: Target) -> None:
        """Raises ValidationError for an address that could never be called; names are checked when they resolve."""
        if target.scheme == "https":
            return
        try:
            permitted = self.permits(target.host)
        except ValueError:
            return
        if not permitted:
            raise ValidationError(f"{_FIELD}: {_advice(target.host)}", field=_FIELD)

    def choose(self, target: Target, resolved: Iterable[str]) -> list[str]:
        """Those of the resolved addresses that may be connected to. Raises InsecureAddress when none may."""
        found = list(resolved)
        allowed = found if target.scheme == "https" else [address for address in found if self.permits(address)]
        if not allowed:
            raise InsecureAddress(f"{target.host}: {_advice(', '.join(found) or target.host)}")
        return allowed


def _advice(where: str) -> str:
    return f"plain http to {where} is not allowed. Use https, or name its range in the server's settings"
