"""TLS: a certificate authority of this machine's own, and the certificate it signs for the server.

Clients know the authority by its fingerprint, which does not change when the certificate is renewed; the server sends
the authority's certificate along, so that a fingerprint is all a client needs.
"""

import dataclasses
import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.loopback import is_loopback
from flashmesh.kit.machine import create_once, replace

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

AUTHORITY_FILE: Final = "ca.pem"
"""Certificate and private key of the authority, in one file so that they always belong together."""
SERVER_FILE: Final = "server.pem"
"""The server's private key, its certificate and the authority's."""
_AUTHORITY_LIFE: Final = datetime.timedelta(days=3650)
_SERVER_LIFE: Final = datetime.timedelta(days=397)
"""The longest that browsers accept."""
_RENEWED_BEFORE: Final = datetime.timedelta(days=30)
_BACKDATED: Final = datetime.timedelta(hours=1)
"""Clocks of other machines may be behind."""
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: forward secret, authenticated. TLS 1.3 has no others."""


class CertificateUnusable(FlashmeshError):
    """The certificate or key of the HTTP port cannot be used."""

    code = "CERTIFICATE_UNUSABLE"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """What a listener needs, and what clients are told."""

    cert: Path
    key: Path
    fingerprint: str
    """`sha256:` and 64 hex digits: of the authority, or of the given certificate itself."""
    expires: datetime.datetime


def own_certificate(folder: Path, names: Iterable[str], *, now: datetime.datetime | None = None) -> ServerCertificate:
    """The server's certificate for `names`, signed by the authority of `folder`; both are made if need be.

    A certificate that ends within 30 days, lacks one of the names or is of another authority is replaced.

    Args:
        folder: this machine's, `$FLASH_HOME/hosts/<machine id>`.
        names: host names and addresses that clients use, see `names_of`.
    """
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC) if now is None else now
    wanted = frozenset(names)
    authority = create_once(folder / AUTHORITY_FILE, lambda: _new_authority(now))
    ca = x509.load_pem_x509_certificate(authority)
    path = folder / SERVER_FILE
    found = _read_own(path, ca)
    if found is None or found.not_valid_after_utc - now < _RENEWED_BEFORE or not wanted <= _names_in(found):
        held = frozenset() if found is None else _names_in(found)
        replace(path, _new_server(authority, wanted | held, now))
        found = x509.load_pem_x509_certificate(path.read_bytes())
    return ServerCertificate(cert=path, key=path, fingerprint=fingerprint(ca), expires=found.not_valid_after_utc)


def given_certificate(cert: Path, key: Path, *, now: datetime.datetime | None = None) -> ServerCertificate:
    """The certificate that `--tls-cert` and `--tls-key` name, checked before anybody connects.

    Raises:
        CertificateUnusable: names the file and what is wrong with it.
    """
    from cryptography.hazmat.primitives import serialization

    now = datetime.datetime.now(datetime.UTC) if now is None else now
    leaf = _load_certificate(cert)
    private = _load_key(key)
    forms = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*forms) != private.public_key().public_bytes(*forms):
        raise CertificateUnusable(
            f"{key} is not the private key of {cert}. Name the pair with --tls-cert and --tls-key."
        )
    if leaf.not_valid_after_utc <= now:
        raise CertificateUnusable(f"{cert} expired on {leaf.not_valid_after_utc:%Y-%m-%d}. Renew it.")
    if leaf.not_valid_before_utc > now:
        raise CertificateUnusable(
            f"{cert} is not valid before {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC. Check this machine's clock."
        )
    return ServerCertificate(cert=cert, key=key, fingerprint=fingerprint(leaf), expires=leaf.not_valid_after_utc)


def listener_certificate(
    folder: Path,
    *,
    host: str,
    cert: Path | None = None,
    key: Path | None = None,
    names: Iterable[str] = (),
    plain_networks: Iterable[str] = (),
) -> ServerCertificate | None:
    """The certificate of a listener on `host`; None: it speaks without TLS.

    What the user gives is used everywhere. Otherwise the loopback and addresses of `plain_networks` (an overlay, a
    cluster's own, which guard what passes through them) do without, and all else gets a certificate of our own.

    Args:
        names: besides this machine's own, for a certificate of ours: `--allow-host`.
    Raises:
        CertificateUnusable: half a pair, or one that cannot be used.
    """
    if cert is not None and key is not None:
        return given_certificate(cert, key)
    if cert is not None or key is not None:
        missing = "--tls-key" if key is None else "--tls-cert"
        raise CertificateUnusable(f"A certificate and its key belong together: {missing} is missing.")
    if is_loopback(host) or _is_within(host, plain_networks):
        return None
    return own_certificate(folder, names_of(host, names))


def _is_within(host: str, networks: Iterable[str]) -> bool:
    try:
        ranges = [ipaddress.ip_network(network, strict=False) for network in networks]
    except ValueError as error:
        raise CertificateUnusable(f"{error}. Say a network such as 10.42.0.0/16.") from error
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False  # a name: who knows where it will lead
    return any(address in network for network in ranges)


def server_ssl_context(cert: Path, key: Path, *, lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> ssl.SSLContext:
    """TLS of a listener: 1.2 and 1.3 with forward secrecy, HTTP/1.1. `lowest`: 1.3 for links.

    Raises:
        CertificateUnusable: the files cannot be loaded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = lowest
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise CertificateUnusable(f"{cert} and {key} cannot be loaded: {error}.") from error
    return context


def fingerprint(certificate: "x509.Certificate") -> str:
    """`sha256:` and 64 hex digits."""
    from cryptography.hazmat.primitives import hashes

    return "sha256:" + certificate.fingerprint(hashes.SHA256()).hex()


def names_of(host: str, more: Iterable[str] = ()) -> frozenset[str]:
    """Names and addresses by which clients reach a server that listens on `host`: this machine's, and `more`."""
    found = {"localhost", "127.0.0.1", "::1", socket.gethostname(), *more}
    if host in ("", "0.0.0.0", "::"):
        found.update(_addresses())
    else:
        found.add(host)
    return frozenset(name for name in (_plain(name) for name in found) if name)


def _plain(name: str) -> str:
    """A name as a certificate can bear it; empty for one it cannot."""
    name = name.strip("[]").rstrip(".").lower().partition("%")[0]
    return name if name.isascii() and 0 < len(name) <= 253 and name != "*" and " " not in name else ""


def _addresses() -> set[str]:
    """This machine's own addresses, as far as the system tells without being asked for each interface."""
    found: set[str] = set()
    try:
        found.update(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        pass
    for family, far in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((far, 9))  # sends nothing; the system chooses the address it would send from
                found.add(str(probe.getsockname()[0]))
        except OSError:
            continue
    return found


def _new_authority(now: datetime.datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = _subject("flashmesh authority of this machine")
    public = key.public_key()
    certificate = (
        _begun(name, name, public, now, _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(certificate) + _key_pem(key)


def _new_server(authority: bytes, names: frozenset[str], now: datetime.datetime) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    ca = x509.load_pem_x509_certificate(authority)
    ca_key = serialization.load_pem_private_key(authority, None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise CertificateUnusable(f"{AUTHORITY_FILE} is damaged. Remove it; clients then need the new fingerprint.")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _begun(_subject("flashmesh server"), ca.subject, key.public_key(), now, _SERVER_LIFE)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    return _key_pem(key) + _pem(certificate) + _pem(ca)


def _begun(
    subject: "x509.Name", issuer: "x509.Name", public: "object", now: datetime.datetime, life: datetime.timedelta
) -> "x509.CertificateBuilder":
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)  # type: ignore[arg-type] # the union of public keys has no name of its own here
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
    )


def _subject(name: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _key_usage(*, signs_certificates: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _names_in(certificate: "x509.Certificate") -> frozenset[str]:
    from cryptography import x509

    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return frozenset([*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))])


def _read_own(path: Path, ca: "x509.Certificate") -> "x509.Certificate | None":
    """The server's certificate of an earlier start; None if it cannot be used (any more)."""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
        found.verify_directly_issued_by(ca)
        _names_in(found)
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return None
    return found


def _pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: "EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateUnusable(f"{path} ({option}) cannot be read: {error.strerror}.") from error


def _load_certificate(path: Path) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read(path, "--tls-cert"))
    except ValueError as error:
        raise CertificateUnusable(f"{path} (--tls-cert) holds no certificate in PEM form.") from error


def _load_key(path: Path) -> "PrivateKeyTypes":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        return serialization.load_pem_private_key(_read(path, "--tls-key"), None)
    except TypeError as error:
        raise CertificateUnusable(
            f"{path} (--tls-key) is locked with a passphrase, which a server cannot type. "
            f"Unlock it: `openssl pkey -in {path} -out unlocked.pem`."
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateUnusable(f"{path} (--tls-key) holds no private key in PEM form.") from error
