"""Certificates of the server's own and of the user's, shown over real sockets."""

import datetime
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flashmesh.gateway.access import pinning
from flashmesh.gateway.access.certificates import (
    CertificateUnusable,
    given_certificate,
    listener_certificate,
    names_of,
    own_certificate,
    server_ssl_context,
)
from flashmesh.gateway.access.pinning import WrongFingerprint, client_ssl_context, normal_fingerprint

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
NAMES = {"localhost", "127.0.0.1", "::1"}


@contextmanager
def listening(context: ssl.SSLContext) -> Iterator[int]:
    """A server that shakes hands with whoever comes, on the port that is returned."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                try:
                    with plain, context.wrap_socket(plain, server_side=True) as secured:
                        secured.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def shake_hands(port: int, context: ssl.SSLContext, name: str = "localhost") -> ssl.SSLSocket:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        secured = context.wrap_socket(plain, server_hostname=name)
    with secured:
        return secured


def write_pair(
    folder: Path, *, begins: datetime.datetime = NOW - DAY, ends: datetime.datetime = NOW + DAY, locked: bool = False
) -> tuple[Path, Path]:
    """A certificate as a user may bring one, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "box.lan")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    lock = serialization.BestAvailableEncryption(b"secret") if locked else serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock)
    )
    return folder / "cert.pem", folder / "key.pem"


def test_a_client_that_knows_the_fingerprint_trusts_the_servers_own_certificate(tmp_path: Path) -> None:
    own = own_certificate(tmp_path, NAMES)
    with listening(server_ssl_context(own.cert, own.key)) as port:
        anchor = pinning.trusted(pinning.shown_chain("127.0.0.1", port), own.fingerprint)
        for name in NAMES:
            assert shake_hands(port, client_ssl_context(anchor), name).version() is None  # closed again, without error


def test_a_client_that_does_not_know_it_trusts_nothing(tmp_path: Path) -> None:
    own = own_certificate(tmp_path, NAMES)
    with listening(server_ssl_context(own.cert, own.key)) as port, pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(port, client_ssl_context(None))


def test_another_server_is_not_taken_for_the_pinned_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    own, other = own_certificate(tmp_path, NAMES), own_certificate(tmp_path / "other", NAMES)
    with listening(server_ssl_context(other.cert, other.key)) as port:
        chain = pinning.shown_chain("127.0.0.1", port)
        with pytest.raises(WrongFingerprint, match=other.fingerprint):
            pinning.trusted(chain, own.fingerprint)
    with listening(server_ssl_context(own.cert, own.key)) as port:
        anchor = pinning.trusted(pinning.shown_chain("127.0.0.1", port), own.fingerprint)
    with listening(server_ssl_context(other.cert, other.key)) as port, pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(port, client_ssl_context(anchor))


def test_a_name_the_certificate_lacks_is_refused(tmp_path: Path) -> None:
    own = own_certificate(tmp_path, NAMES)
    with listening(server_ssl_context(own.cert, own.key)) as port:
        anchor = pinning.trusted(pinning.shown_chain("127.0.0.1", port), own.fingerprint)
        with pytest.raises(ssl.SSLCertVerificationError, match="ostname"):
            shake_hands(port, client_ssl_context(anchor), "evil.example")


def test_a_users_certificate_may_be_pinned_itself(tmp_path: Path) -> None:
    given = given_certificate(*write_pair(tmp_path))
    with listening(server_ssl_context(given.cert, given.key)) as port:
        anchor = pinning.trusted(pinning.shown_chain("127.0.0.1", port), given.fingerprint)
        shake_hands(port, client_ssl_context(anchor))


def test_the_certificate_is_kept_and_renewed_before_it_ends_under_the_same_fingerprint(tmp_path: Path) -> None:
    first = own_certificate(tmp_path, NAMES, now=NOW)
    again = own_certificate(tmp_path, NAMES, now=NOW + 300 * DAY)
    assert (again.expires, again.fingerprint) == (first.expires, first.fingerprint)
    renewed = own_certificate(tmp_path, NAMES, now=NOW + 370 * DAY)
    assert renewed.expires > first.expires + 300 * DAY
    assert renewed.fingerprint == first.fingerprint


def test_a_new_name_gets_a_new_certificate_that_keeps_the_old_ones(tmp_path: Path) -> None:
    own_certificate(tmp_path, NAMES)
    own = own_certificate(tmp_path, {"box.lan", "192.0.2.7"})
    names = (
        x509.load_pem_x509_certificate(own.cert.read_bytes())
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    found = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    assert found == {*NAMES, "box.lan", "192.0.2.7"}


def test_a_certificate_of_a_lost_authority_is_replaced(tmp_path: Path) -> None:
    first = own_certificate(tmp_path, NAMES)
    (tmp_path / "ca.pem").unlink()
    second = own_certificate(tmp_path, NAMES)
    assert second.fingerprint != first.fingerprint
    with listening(server_ssl_context(second.cert, second.key)) as port:
        shake_hands(
            port, client_ssl_context(pinning.trusted(pinning.shown_chain("127.0.0.1", port), second.fingerprint))
        )


def test_only_this_user_may_read_the_private_keys(tmp_path: Path) -> None:
    own_certificate(tmp_path, NAMES)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "ca.pem": 0o600,
        "server.pem": 0o600,
    }


def test_two_processes_that_need_an_authority_at_once_have_the_same(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from flashmesh.gateway.access.certificates import own_certificate\n"
        f"print(own_certificate(Path({str(tmp_path)!r}), ['localhost']).fingerprint)"
    )
    made = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in made]
    assert len(set(said)) == 1 and said[0].startswith("sha256:")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_today_s_tls_is_spoken(tmp_path: Path, version: ssl.TLSVersion) -> None:
    own = own_certificate(tmp_path, NAMES)
    client = client_ssl_context(None)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.minimum_version = client.maximum_version = version
    with listening(server_ssl_context(own.cert, own.key)) as port:
        shake_hands(port, client)


def test_a_link_speaks_tls_1_3_only(tmp_path: Path) -> None:
    own = own_certificate(tmp_path, NAMES)
    client = client_ssl_context(None)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    context = server_ssl_context(own.cert, own.key, lowest=ssl.TLSVersion.TLSv1_3)
    with listening(context) as port, pytest.raises(ssl.SSLError):
        shake_hands(port, client)


# --tls-cert and --tls-key


def test_a_users_pair_is_taken(tmp_path: Path) -> None:
    given = given_certificate(*write_pair(tmp_path))
    assert abs(given.expires - (NOW + DAY)) < datetime.timedelta(seconds=2)
    server_ssl_context(given.cert, given.key)


def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    cert, _ = write_pair(tmp_path)
    _, key = write_pair(tmp_path / "other")
    with pytest.raises(CertificateUnusable, match="is not the private key of"):
        given_certificate(cert, key)


def test_an_expired_certificate_is_named_with_its_day(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, begins=NOW - 9 * DAY, ends=NOW - DAY)
    with pytest.raises(CertificateUnusable, match=f"expired on {NOW - DAY:%Y-%m-%d}"):
        given_certificate(*pair)


def test_a_certificate_of_tomorrow_is_named(tmp_path: Path) -> None:
    with pytest.raises(CertificateUnusable, match="not valid before"):
        given_certificate(*write_pair(tmp_path, begins=NOW + DAY, ends=NOW + 2 * DAY))


def test_a_locked_key_is_named_with_the_command_that_unlocks_it(tmp_path: Path) -> None:
    with pytest.raises(CertificateUnusable, match="openssl pkey"):
        given_certificate(*write_pair(tmp_path, locked=True))


@pytest.mark.parametrize("name", ["cert.pem", "key.pem"])
def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path, name: str) -> None:
    cert, key = write_pair(tmp_path)
    (tmp_path / name).write_text("hello")
    with pytest.raises(CertificateUnusable, match=f"{name}.*PEM form"):
        given_certificate(cert, key)
    (tmp_path / name).unlink()
    with pytest.raises(CertificateUnusable, match=f"{name}.*cannot be read"):
        given_certificate(cert, key)


# Names and fingerprints


def test_the_names_of_a_server_are_its_machines_and_those_it_was_told() -> None:
    names = names_of("0.0.0.0", ["Box.LAN.", "[2001:db8::7]", "*", "two words"])
    assert {"localhost", "127.0.0.1", "::1", "box.lan", "2001:db8::7"} <= names
    assert not {"0.0.0.0", "*", "two words"} & names
    assert "192.0.2.9" in names_of("192.0.2.9")


@pytest.mark.parametrize(
    "text", ["ab" * 32, "AB" * 32, "sha256:" + "ab" * 32, ":".join(["AB"] * 32), "SHA256:" + ":".join(["ab"] * 32)]
)
def test_a_fingerprint_may_be_written_as_other_tools_write_it(text: str) -> None:
    assert normal_fingerprint(text) == "sha256:" + "ab" * 32


@pytest.mark.parametrize("text", ["", "sha256:", "ab" * 20, "sha1:" + "ab" * 32, "zz" * 32])
def test_what_is_no_fingerprint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 hex digits"):
        normal_fingerprint(text)


# Which listener speaks TLS


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_loopback_speaks_without_tls(tmp_path: Path, host: str) -> None:
    assert listener_certificate(tmp_path, host=host) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "box.lan"])
def test_beyond_the_loopback_a_listener_speaks_tls_with_a_certificate_of_our_own(tmp_path: Path, host: str) -> None:
    found = listener_certificate(tmp_path, host=host, names=["web.lan"], plain_networks=["10.42.0.0/16"])
    assert found is not None
    assert found.cert == tmp_path / "server.pem"


def test_on_a_network_that_is_named_a_listener_speaks_without(tmp_path: Path) -> None:
    assert listener_certificate(tmp_path, host="10.42.3.4", plain_networks=["10.42.0.0/16"]) is None
    assert listener_certificate(tmp_path, host="0.0.0.0", plain_networks=["10.42.0.0/16"]) is not None
    with pytest.raises(CertificateUnusable, match="Say a network"):
        listener_certificate(tmp_path, host="0.0.0.0", plain_networks=["ten"])


def test_a_given_certificate_is_used_on_the_loopback_too(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    found = listener_certificate(tmp_path, host="127.0.0.1", cert=cert, key=key)
    assert found is not None and found.cert == cert


@pytest.mark.parametrize("given", ["cert", "key"])
def test_half_a_pair_is_an_error_that_names_the_other_option(tmp_path: Path, given: str) -> None:
    with pytest.raises(CertificateUnusable, match="--tls-key" if given == "cert" else "--tls-cert"):
        listener_certificate(tmp_path, host="127.0.0.1", **{given: tmp_path / "x.pem"})
