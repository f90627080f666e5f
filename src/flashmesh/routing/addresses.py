"""Which addresses a manifest may send a call to. Decisions over text and configuration; nothing is looked up here.

A manifest says where endpoints are, and it comes from elsewhere. What it may not do is choose how much a call is
protected: TLS is asked for everywhere, except on this machine and in the networks that LOCAL configuration names
(`FLASH_PLAIN_NETWORKS`: overlays and clusters, which protect what passes by themselves). Text that two programs could
read in two ways is refused rather than read: `0177.0.0.1` and `2130706433` are the loopback address to one resolver and
a name to another.

| address                         | may be called                                                                     |
|---------------------------------|-----------------------------------------------------------------------------------|
| `https://host…`                 | always; the certificate says who answers                                          |
| `http://` loopback, `localhost` | always; nothing leaves the machine                                                |
| `http://` another IP            | inside FLASH_PLAIN_NETWORKS                                                       |
| `http://` another name          | where FLASH_PLAIN_NETWORKS names something, if what it resolves to is inside      |
| `unix:/…/name.sock`             | in the folder where this endpoint's own socket stands                             |
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, Literal
from urllib.parse import urlsplit

from flashmesh.functions.errors import InsecureAddress, SettingsError

PLAIN_NETWORKS: Final = "FLASH_PLAIN_NETWORKS"
UNIX_PATH_BYTES: Final = 107
"""The longest path a Unix socket can have (Linux: 108 with the byte that ends it)."""

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_PRIVATE: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "::1/128", "fc00::/7",
    )
)  # fmt: skip
"""Where plain networks may lie: what no router of the internet forwards. 100.64.0.0/10 is what overlays use. Link-local
addresses are left out: clouds answer there with the machine's own credentials."""
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PATH: Final = re.compile(r"[!-~]*")


class AddressRefused(InsecureAddress):
    """A call may not go to this address."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What this machine's own configuration allows.

    Attributes:
        plain: networks that may be reached without TLS, beside loopback.
        sockets: the folder that endpoints of this machine have their sockets in; empty: none may be called.
    """

    plain: tuple[Network, ...] = ()
    sockets: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """An address that may be called.

    Attributes:
        scheme: `unix` is a socket's path, kept in `path`.
        host: lower case; an IPv6 address without brackets. port: with the scheme's own filled in.
        path: what stands behind the host, without a slash at its end.
        ip: the host, when it is an address and no name.
        resolved: the name's addresses decide: see `may_connect`.
    """

    scheme: Literal["https", "http", "unix"]
    path: str
    host: str = ""
    port: int = 0
    ip: Ip | None = None
    resolved: bool = False

    @property
    def authority(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        """`scheme://host:port`, which connections are kept by and keys belong to."""
        return f"{self.scheme}://{self.authority}"


_PORTS: Final = {"https": 443, "http": 80, "unix": 0}


def rules_of(plain: str, *, sockets: str = "") -> Rules:
    """The rules for a value of FLASH_PLAIN_NETWORKS: networks such as `10.42.0.0/16`, separated by commas.

    Raises SettingsError for one that is none, or that is not private.
    """
    return Rules(tuple(_network(text.strip()) for text in plain.split(",") if text.strip()), sockets)


def read_address(url: str, rules: Rules) -> Address:
    """The address in a manifest's text. Raises AddressRefused, naming what is wrong and never a password in it."""
    if not url or not _PATH.fullmatch(url) or "\\" in url:
        raise AddressRefused("The address holds characters that no address has. Write it as https://host:port/path.")
    if url.startswith("unix:"):
        return _socket(url.removeprefix("unix:"), rules)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(f"The address cannot be read: {error}.") from error
    if "@" in parts.netloc:
        raise AddressRefused("The address holds a user or password, which would show in logs. Leave it out.")
    if parts.scheme not in ("https", "http"):
        raise AddressRefused(f"Calls go by https or http, not {parts.scheme or 'nothing'!r}. Write https://…")
    if "?" in url or "#" in url:
        raise AddressRefused("The address of an endpoint has neither query nor fragment. Leave them out.")
    if port == 0 or parts.netloc.endswith(":"):
        raise AddressRefused("The address has no usable port.")
    host, ip = _host(parts.netloc, parts.hostname or "")
    scheme: Literal["https", "http"] = "https" if parts.scheme == "https" else "http"
    address = Address(scheme, parts.path.rstrip("/"), host, port or _PORTS[scheme], ip)
    return address if scheme == "https" else _plain(address, rules)


def may_connect(ip: Ip, rules: Rules) -> bool:
    """Whether plain http may go to this very address: the check of what a name was resolved to."""
    ip = _unmapped(ip)
    return ip.is_loopback or any(ip in network for network in rules.plain)


def is_loopback(address: Address) -> bool:
    """Whether it certainly is this machine: by its number or by the name that is kept for it (RFC 6761)."""
    if address.ip is not None:
        return _unmapped(address.ip).is_loopback
    return address.host == "localhost" or address.host.endswith(".localhost")


def _plain(address: Address, rules: Rules) -> Address:
    if is_loopback(address):
        return address
    if address.ip is not None and may_connect(address.ip, rules):
        return address
    if address.ip is None and rules.plain:
        return Address("http", address.path, address.host, address.port, None, True)
    raise AddressRefused(
        f"http://{address.authority} is neither https nor on this machine, so no call goes there. Use https, or name "
        f"its network in {PLAIN_NETWORKS} if that network protects what passes."
    )


def _host(netloc: str, host: str) -> tuple[str, Ip | None]:
    """The host, and the IP address if it is one in the only form that everybody reads alike."""
    if netloc.startswith("["):
        try:
            ip = IPv6Address(host)  # a zone id (`%eth0`) is taken by it, and would be this machine's own affair
        except ValueError as error:
            raise AddressRefused(f"[{host}] is no IPv6 address.") from error
        if ip.scope_id is not None:
            raise AddressRefused("The address holds a zone id, which means nothing on another machine. Leave it out.")
        return ip.compressed, ip
    labels = host.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return host, IPv4Address(host)
        except ValueError as error:
            raise AddressRefused(
                f"{host} could be read as several addresses. Write it as four decimal numbers."
            ) from error
    if len(host) > 253 or not all(len(label) < 64 and _LABEL.fullmatch(label) for label in labels):
        raise AddressRefused("The address has no host that can be read. Write https://host:port.")
    return host, None


def _socket(path: str, rules: Rules) -> Address:
    folder, _, name = path.rpartition("/")
    if not rules.sockets or folder != rules.sockets.rstrip("/") or not name.endswith(".sock"):
        raise AddressRefused("The socket is not among those of this machine's endpoints.")
    if len(path) > UNIX_PATH_BYTES:
        raise AddressRefused(f"The socket's path is longer than the {UNIX_PATH_BYTES} bytes that one may have.")
    return Address("unix", path)


def _network(text: str) -> Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise SettingsError(
            f"{PLAIN_NETWORKS}: {text!r} is no network ({error}). Write for example 10.42.0.0/16."
        ) from error
    if not _is_inside(network, _PRIVATE):
        raise SettingsError(
            f"{PLAIN_NETWORKS}: {text} is not a private network, where calls would go unprotected. Use https there."
        )
    return network


def _is_inside(network: Network, others: Iterable[Network]) -> bool:
    return any(
        network.version == other.version and network.subnet_of(other)  # type: ignore[arg-type]  # same version
        for other in others
    )


def _unmapped(ip: Ip) -> Ip:
    """`::ffff:127.0.0.1` is 127.0.0.1 to the kernel."""
    return ip.ipv4_mapped or ip if isinstance(ip, IPv6Address) else ip
