"""How a worker reaches the server that feeds it: the socket its spec names, or what the environment says.

A worker on another machine is told by environment variables, because its spec knows only this machine's paths:

    FLASH_LINK_ADDRESS       host:port of the server's link (`flash server --link-host`); everything else needs this one
    FLASH_LINK_TOKEN         the link token for its endpoint and build; or
    FLASH_LINK_TOKEN_FILE    a file that holds it, read at every connection, so that it can be renewed
    FLASH_LINK_FINGERPRINT   what the server prints: SHA-256 of its authority's certificate, or of one it was given; or
    FLASH_LINK_CA            a PEM file with that certificate
    FLASH_LINK_TLS           0: without TLS, in a network that protects the connection by itself
"""

import logging
import ssl
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire import tls
from flashmesh.wire.connection import TCP_REDIAL_S, Connect, Link, by_tcp, by_unix

log = logging.getLogger(__name__)

UNIX_REDIAL_S: Final = (0.05, 0.25)
"""100 workers are all back within 230 ms of their session's return; a longer pause makes that seconds."""
ADDRESS: Final = "FLASH_LINK_ADDRESS"
TOKEN: Final = "FLASH_LINK_TOKEN"
TOKEN_FILE: Final = "FLASH_LINK_TOKEN_FILE"
FINGERPRINT: Final = "FLASH_LINK_FINGERPRINT"
CA: Final = "FLASH_LINK_CA"
TLS: Final = "FLASH_LINK_TLS"


class LinkMisconfigured(FlashmeshError):
    """The variables that say where the server's link is do not fit together."""

    code = "LINK_MISCONFIGURED"


@dataclass(frozen=True, slots=True)
class Dialling:
    """`connect` reaches the server, `token` gives what to show it (raises OSError), `redial_s` are the shortest and the
    longest pause between two attempts."""

    connect: Connect
    token: Callable[[], str]
    redial_s: tuple[float, float]


def dialling(path: str, environ: MutableMapping[str, str]) -> Dialling:
    """By the socket at `path`, or by TCP where the environment names an address.

    A token in the environment is taken out of it: processes that user code starts do not inherit it.

    Raises LinkMisconfigured, naming the variable.
    """
    address = environ.get(ADDRESS)
    if not address:
        return Dialling(by_unix(path), lambda: "", UNIX_REDIAL_S)
    host, port = _host_and_port(address)
    return Dialling(_over_tcp(host, port, environ), _token(environ), TCP_REDIAL_S)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise LinkMisconfigured(f"{ADDRESS} is {address!r}; it must be HOST:PORT, as the server prints it.")
    return host, int(port)


def _token(environ: MutableMapping[str, str]) -> Callable[[], str]:
    text, file = environ.pop(TOKEN, ""), environ.get(TOKEN_FILE)
    if text:
        return lambda: text
    if not file:
        raise LinkMisconfigured(f"With {ADDRESS} a link token is needed: set {TOKEN_FILE} or {TOKEN}.")
    try:
        _read_token(Path(file))
    except OSError as error:
        raise LinkMisconfigured(f"{TOKEN_FILE} cannot be read: {error}.") from error
    return partial(_read_token, Path(file))


def _read_token(file: Path) -> str:
    return file.read_text().strip()


def _over_tcp(host: str, port: int, environ: Mapping[str, str]) -> Connect:
    if environ.get(TLS) == "0":
        return by_tcp(host, port, None)
    authority, fingerprint = environ.get(CA), environ.get(FINGERPRINT)
    if not authority and not fingerprint:
        raise LinkMisconfigured(
            f"With {ADDRESS} the server must be known by its certificate: set {FINGERPRINT}, or {CA} to a file. "
            f"{TLS}=0 is for networks that protect the connection by themselves."
        )
    context: ssl.SSLContext | None = None
    if authority:
        try:
            context = tls.client_context(authority)
        except OSError as error:  # ssl.SSLError, too
            raise LinkMisconfigured(f"{CA} is {authority!r}, which is no certificate in PEM form: {error}.") from error

    said = ""

    async def connect(link: Link) -> None:
        """Raises LinkLost, UntrustedServer."""
        nonlocal context, said
        try:
            if context is None:
                context = await tls.pinned_context(host, port, fingerprint or "")
            await by_tcp(host, port, context)(link)
        except tls.UntrustedServer as error:
            if said != str(error):  # dialled again for ever: said once
                said = str(error)
                log.warning("%s", error)
            raise

    return connect
