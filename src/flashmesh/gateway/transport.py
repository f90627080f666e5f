"""Who speaks TLS, with which certificate, and who may dial the link from another machine."""

import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

from flashmesh.gateway.access.certificates import (
    ServerCertificate,
    given_certificate,
    names_of,
    own_certificate,
    server_ssl_context,
)
from flashmesh.gateway.access.tokens import Tokens
from flashmesh.gateway.settings import ServerSettings
from flashmesh.wire import tls
from flashmesh.wire.frames import Hello
from flashmesh.wire.tokens import TokenRefused


def certificate(settings: ServerSettings, folder: Path) -> ServerCertificate | None:
    """What the HTTP port shows; None: it speaks plain HTTP, on the loopback and in networks named as plain.

    A certificate that was given is used wherever the port is.

    Raises CertificateUnusable.
    """
    if settings.tls_cert is not None and settings.tls_key is not None:
        return given_certificate(settings.tls_cert, settings.tls_key)
    if settings.loopback or is_plain(settings.host, settings.plain_networks):
        return None
    return own_certificate(folder, names_of(settings.host, settings.allow_host))


def http_context(found: ServerCertificate) -> ssl.SSLContext:
    """TLS of the HTTP port. Raises CertificateUnusable."""
    return server_ssl_context(found.cert, found.key)


def link_certificate(settings: ServerSettings, folder: Path) -> ServerCertificate | None:
    """What the link's port shows; None: no TLS, in networks named as plain. Raises CertificateUnusable."""
    if is_plain(settings.link_host, settings.plain_networks):
        return None
    if settings.tls_cert is not None and settings.tls_key is not None:
        return given_certificate(settings.tls_cert, settings.tls_key)
    return own_certificate(folder, names_of(settings.link_host, settings.allow_host))


def link_context(found: ServerCertificate) -> ssl.SSLContext:
    """TLS of the link's port."""
    return tls.server_context(found.cert, found.key)


def is_plain(host: str, networks: tuple[str, ...]) -> bool:
    """Whether an address lies in one of the networks that are named as protected by themselves."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False  # a name may lead anywhere
    return any(address in ipaddress.ip_network(network) for network in networks)


def link_check(tokens: Tokens) -> Callable[[Hello], str | None]:
    """Decides who may dial the link over TCP: workers with a link token of this server, for the endpoint and build that
    it names. Returns why not."""

    def check(hello: Hello) -> str | None:
        if hello.role != "worker":
            return f"Only workers dial in over TCP, not a {hello.role}."
        try:
            claims = tokens.claims(hello.token.encode(), "link")
        except TokenRefused as error:
            return str(error)
        for noun, only, said in (("endpoint", claims.endpoint, hello.endpoint), ("build", claims.build, hello.build)):
            if only and only != said:
                return f"This link token is for the {noun} {only!r} and not for {said!r}."
        return None

    return check
