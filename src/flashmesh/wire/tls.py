"""TLS 1.3 for links over TCP: the server's own authority, pinned by file or by fingerprint.

A client trusts one authority and no other: neither the system's list nor any public one can vouch for the server. Where
only the authority's fingerprint is known (a join token carries that), `authority_at` fetches its certificate from the
server itself, which needs no trust because the certificate must have that fingerprint; then an ordinary handshake
verifies the server against it.
"""

import asyncio
import hashlib
import socket
import ssl
from pathlib import Path
from typing import Any

from flashmesh.functions.errors import FlashmeshError, LinkLost


class UntrustedServer(FlashmeshError, ConnectionError):
    """The server's certificate is not the one to expect here. Check the address and the fingerprint."""

    code = "UNTRUSTED_SERVER"


def server_context(cert: str | Path, key: str | Path) -> ssl.SSLContext:
    """What a server listens with.

    Args:
        cert: PEM file: its certificate, followed by the authority's so that clients can fetch it by fingerprint.
        key: PEM file of the private key.
    Raises:
        OSError: a file cannot be read. ssl.SSLError: they are no certificate and key, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert, key)
    return context


def client_context(ca_file: str | Path | None = None, *, ca_data: str | None = None) -> ssl.SSLContext:
    """What a client dials with: trusts exactly the authority given, as PEM file or text (`authority_at`).

    Raises OSError, ssl.SSLError.
    """
    if ca_file is None and ca_data is None:
        raise ValueError("Give the authority's certificate: ca_file or ca_data.")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a server's own certificate may be what is known of it
    context.load_verify_locations(cafile=ca_file, cadata=ca_data)
    return context


def fingerprint(certificate: bytes | str) -> str:
    """SHA-256 of a certificate (DER bytes or PEM text) in lower-case hex, as tokens carry it."""
    der = ssl.PEM_cert_to_DER_cert(certificate) if isinstance(certificate, str) else certificate
    return hashlib.sha256(der).hexdigest()


def same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints are one, however they are written: colons, capitals, a `sha256:` in front."""
    return _plain(one) == _plain(other)


def authority_at(host: str, port: int, wanted: str, *, timeout: float = 10.0) -> str:
    """The PEM text of the certificate with this fingerprint, from the chain a server shows. Blocks.

    Raises LinkLost when nobody answers, UntrustedServer when the chain has no such certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing is believed: what comes must have the fingerprint
    try:
        with socket.create_connection((host, port), timeout) as plain, context.wrap_socket(plain) as sock:
            chain = _chain(sock)
    except OSError as error:
        raise refused(host, port, error, timeout) from error
    for certificate in chain:
        if same_fingerprint(fingerprint(certificate), wanted):
            return ssl.DER_cert_to_PEM_cert(certificate)
    shown = ", ".join(fingerprint(certificate)[:16] for certificate in chain)
    raise UntrustedServer(
        f"{host}:{port} shows no certificate with fingerprint {wanted[:23]}… (it shows {shown}). "
        "Another server answers there, or this one has a new authority: log in again."
    )


async def pinned_context(host: str, port: int, wanted: str) -> ssl.SSLContext:
    """`client_context` of the authority with this fingerprint. Raises as `authority_at`."""
    return client_context(ca_data=await asyncio.to_thread(authority_at, host, port, wanted))


def refused(host: str, port: int, error: Exception, seconds: float) -> FlashmeshError:
    """What a failed connection means for whoever dialled."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        return UntrustedServer(
            f"The certificate of {where} cannot be trusted: {error.verify_message or error}. "
            "Check the address and the fingerprint."
        )
    if isinstance(error, ssl.SSLError):
        return LinkLost(f"{where} does not speak TLS 1.3 with us ({error.reason or error}). Check the port.")
    if isinstance(error, TimeoutError):
        return LinkLost(f"{where} did not answer within {seconds:.0f} s. Check the address, and that the server runs.")
    if isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return LinkLost(f"{where} ended the connection before it began. Check the port, and that it speaks TLS 1.3.")
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return LinkLost(f"Nobody answers at {where}: {text}. Check the address, and that the server runs.")


def _chain(sock: ssl.SSLSocket) -> list[bytes]:
    """DER of the certificates the server showed, unverified."""
    if hasattr(sock, "get_unverified_chain"):  # Python 3.13
        return [bytes(certificate) for certificate in sock.get_unverified_chain()]
    inner: Any = sock._sslobj  # type: ignore[attr-defined]  # what that method calls; it is there since 3.10
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain()]


def _plain(text: str) -> str:
    return text.strip().lower().removeprefix("sha256:").replace(":", "")
