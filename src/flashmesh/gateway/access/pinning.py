"""The client's side of TLS: trust in a server whose authority is known by its fingerprint alone."""

import hashlib
import hmac
import re
import socket
import ssl
from typing import Final

from flashmesh.functions.errors import FlashmeshError

_FINGERPRINT: Final = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


class WrongFingerprint(FlashmeshError):
    """The server's certificate is not the one that was named: it is another server, or somebody is in between."""

    code = "WRONG_FINGERPRINT"


def normal_fingerprint(text: str) -> str:
    """`sha256:` and 64 hex digits, from them with or without prefix, colons and capitals. Raises ValueError."""
    found = _FINGERPRINT.fullmatch(text.strip().lower().replace("sha256:", "", 1).replace(":", ""))
    if found is None:
        raise ValueError("A fingerprint is `sha256:` and 64 hex digits, as `flash server` prints it.")
    return "sha256:" + found[1]


def shown_chain(host: str, port: int, *, timeout_s: float = 10.0) -> list[bytes]:
    """The certificates (DER) that a server shows, its own first. Nothing is trusted and nothing is sent.

    Raises:
        OSError: no answer, or no TLS there.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    plain = socket.create_connection((host, port), timeout=timeout_s)
    with plain, context.wrap_socket(plain, server_hostname=host) as secured:
        return _chain_of(secured)


def trusted(chain: list[bytes], fingerprint: str) -> str:
    """The certificate (PEM) of `chain` that the fingerprint names: the anchor for `client_ssl_context`.

    Raises:
        WrongFingerprint: none of them.
    """
    wanted = normal_fingerprint(fingerprint)
    for certificate in chain:
        if hmac.compare_digest(fingerprint_of(certificate), wanted):
            return ssl.DER_cert_to_PEM_cert(certificate)
    shown = fingerprint_of(chain[-1]) if chain else "no certificate"
    raise WrongFingerprint(
        f"The server shows {shown}, and not {wanted}: it is another one, or somebody is in between. "
        "Compare with what `flash server` printed on its machine."
    )


def fingerprint_of(certificate: bytes) -> str:
    """Of a certificate in DER form."""
    return "sha256:" + hashlib.sha256(certificate).hexdigest()


def client_ssl_context(anchor: str | None, *, lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """TLS towards a server. `anchor` (PEM): the one certificate to trust; None: what this machine trusts.

    The host's name is checked in both cases.
    """
    context = ssl.create_default_context(cadata=anchor)
    context.minimum_version = lowest
    if anchor is not None:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the anchor may be the server's own certificate
    return context


def _chain_of(secured: ssl.SSLSocket) -> list[bytes]:
    public = getattr(secured, "get_unverified_chain", None)  # from Python 3.13 on
    if public is not None:
        return [bytes(certificate) for certificate in public()]
    inner = secured._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner or ()]
