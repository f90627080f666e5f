"""From an address that may be called to a connection: what it resolves to, and whom TLS trusts."""

import socket
import ssl
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path
from time import monotonic
from typing import Any, Final

from flashmesh.functions.errors import SettingsError
from flashmesh.routing.addresses import PLAIN_NETWORKS, Address, AddressRefused, Rules, is_loopback, may_connect

CA_FILE: Final = "FLASH_CA_FILE"
"""A PEM file of authorities that are trusted beside those of the system: the server's own, for its endpoints."""
CONNECT_S: Final = 10.0
_LOOPBACK: Final = ("127.0.0.1", "::1")

Found = tuple[Any, ...]
"""What getaddrinfo says of one way to reach a host."""


def fixed_hosts(address: Address) -> tuple[str, ...]:
    """The hosts to try without asking anybody; empty: the name has to be resolved.

    `localhost` and what ends in it never go to a resolver, which could answer with another machine.
    """
    if address.ip is not None:
        return (str(address.ip),)
    return _LOOPBACK if is_loopback(address) else ()


def allowed(found: Iterable[Found], address: Address, rules: Rules) -> list[Found]:
    """Of what a name was resolved to, what may be connected to. Raises AddressRefused when nothing may.

    The connection goes to these very numbers: nobody can have the name mean something else in between.
    """
    ways = list(found)
    if address.resolved:
        ways = [way for way in ways if may_connect(ip_address(way[4][0]), rules)]
        if not ways:
            raise AddressRefused(
                f"{address.host} is not in the networks of {PLAIN_NETWORKS}, so no call goes there without TLS."
            )
    return ways


def connect(address: Address, rules: Rules, *, seconds: float) -> socket.socket:
    """A connected TCP socket that waits at most `seconds`. Blocks. Raises OSError, AddressRefused."""
    until = monotonic() + min(CONNECT_S, seconds)
    hosts: tuple[str, ...] = fixed_hosts(address) or (address.host,)
    last: OSError = ConnectionRefusedError(f"nothing is known of {address.host}")
    for host in hosts:
        for family, kind, protocol, _, where in allowed(
            socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM), address, rules
        ):
            peer = socket.socket(family, kind, protocol)
            try:
                peer.settimeout(max(0.001, until - monotonic()))
                peer.connect(where)
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                peer.close()
                last = error
            else:
                peer.settimeout(max(0.001, seconds))
                return peer
    raise last


def client_context(ca_file: str) -> ssl.SSLContext:
    """TLS towards endpoints and State Managers: the system's authorities, and those of `ca_file` if it is given.

    Raises SettingsError naming the variable.
    """
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError, too
            raise SettingsError(f"{CA_FILE} is {ca_file!r}, which is no file of certificates: {error}.") from error
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it may hold the server's own certificate
    return context


def ca_file_of(text: str | None) -> str:
    """The file FLASH_CA_FILE names, `~` replaced; empty when it is not set."""
    return str(Path(text).expanduser()) if text and text.strip() else ""
