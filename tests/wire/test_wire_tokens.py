"""The codec of tokens: what it signs it opens, and nothing else."""

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.wire.tokens import (
    AUDIENCES,
    LEEWAY_S,
    SCOPES,
    Claims,
    Scope,
    TokenRefused,
    TokenSigner,
    TokenVerifier,
    is_token,
    key_id,
    new_seed,
    public_key,
    read_claims,
)

NOON = 1_800_000_000
SEED = new_seed()
PUBLIC = public_key(SEED)
SIGNER = TokenSigner(SEED)
SERVER = TokenVerifier(PUBLIC, "server", clock=lambda: float(NOON))


def claims(scope: Scope = "call", **more: object) -> Claims:
    said = {"iss": key_id(PUBLIC), "aud": AUDIENCES[scope], "scope": scope, "sub": "ci", "jti": "id", "iat": NOON}
    return Claims(**{**said, **more})  # type: ignore[arg-type] # fields by name


def text_of(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


TOKEN = SIGNER.sign(claims())


@given(
    scope=st.sampled_from(SCOPES),
    name=st.text(max_size=40),
    app=st.text(max_size=20),
    exp=st.integers(NOON, NOON + 10**9),
)
def test_what_was_signed_is_read_back(scope: Scope, name: str, app: str, exp: int) -> None:
    said = claims(scope, sub=name, app=app, exp=exp)
    token = SIGNER.sign(said).encode()
    assert is_token(token)
    assert TokenVerifier(PUBLIC, AUDIENCES[scope][-1], clock=lambda: float(NOON)).verify(token) == said
    assert read_claims(token) == said


@given(st.integers(0, len(TOKEN) - 1), st.integers(1, 255))
def test_a_token_with_any_byte_changed_is_refused(place: int, change: int) -> None:
    raw = bytearray(TOKEN.encode())
    raw[place] ^= change
    with pytest.raises(TokenRefused):
        SERVER.verify(bytes(raw))


def test_a_signature_has_one_text_only() -> None:
    """The last character carries spare bits, which a lenient decoder drops."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [TOKEN[:-1] + letter for letter in letters if letter != TOKEN[-1]]
    for other in [*others, TOKEN + "=", TOKEN + "==", TOKEN + "\n", " " + TOKEN, TOKEN[:-4] + "=" + TOKEN[-4:]]:
        with pytest.raises(TokenRefused):
            SERVER.verify(other.encode())


@given(st.binary(max_size=400))
def test_anything_else_is_refused(raw: bytes) -> None:
    for shown in (raw, TOKEN.encode() + b"." + raw, TOKEN.encode()[:37] + raw):
        with pytest.raises(TokenRefused):
            SERVER.verify(shown)


@given(st.integers(0, len(TOKEN) - 1))
def test_a_part_of_a_token_is_refused(length: int) -> None:
    with pytest.raises(TokenRefused):
        SERVER.verify(TOKEN[:length].encode())


@pytest.mark.parametrize("header", ['{"alg":"none"}', '{"alg":"none","typ":"JWT"}', '{"alg":"None","typ":"JWT"}'])
def test_an_unsigned_token_is_refused(header: str) -> None:
    body = TOKEN.split(".")[1]
    for signature in ("", TOKEN.split(".")[2]):
        with pytest.raises(TokenRefused):
            SERVER.verify(f"{text_of(header.encode())}.{body}.{signature}".encode())


@pytest.mark.parametrize("algorithm", ["HS256", "EdDSA"])
def test_the_public_key_does_not_sign(algorithm: str) -> None:
    header = text_of(json.dumps({"alg": algorithm, "typ": "JWT"}, separators=(",", ":")).encode())
    signed = f"{header}.{TOKEN.split('.')[1]}"
    for key in (PUBLIC, base64.b64encode(PUBLIC), b""):
        mac = hmac.new(key, signed.encode(), hashlib.sha256).digest()
        for signature in (mac, mac * 2):
            with pytest.raises(TokenRefused):
                SERVER.verify(f"{signed}.{text_of(signature)}".encode())


def test_another_key_s_token_is_refused() -> None:
    with pytest.raises(TokenRefused, match="not signed by this server"):
        SERVER.verify(TokenSigner(new_seed()).sign(claims()).encode())


@pytest.mark.parametrize(
    ("scope", "place"), [("call", "link"), ("admin", "peers"), ("link", "peers"), ("peer", "link")]
)
def test_a_token_for_another_audience_is_refused(scope: Scope, place: str) -> None:
    verifier = TokenVerifier(PUBLIC, place, clock=lambda: float(NOON))  # type: ignore[arg-type] # from a table
    with pytest.raises(TokenRefused, match="not meant for this place"):
        verifier.verify(SIGNER.sign(claims(scope)).encode())


def test_a_token_is_refused_from_its_expiry_on_with_tolerance_for_clocks() -> None:
    token = SIGNER.sign(claims(exp=NOON)).encode()
    TokenVerifier(PUBLIC, "server", clock=lambda: NOON + LEEWAY_S - 1.0).verify(token)
    with pytest.raises(TokenRefused, match="expired"):
        TokenVerifier(PUBLIC, "server", clock=lambda: float(NOON + LEEWAY_S)).verify(token)


@pytest.mark.parametrize(
    "said",
    [
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        json.dumps({"scope": "root", "aud": ["server"]}).encode(),
        json.dumps(
            {"iss": "", "aud": ["server"], "scope": "call", "sub": "", "jti": "", "iat": 0, "exp": "never"}
        ).encode(),
        json.dumps({"iss": "", "aud": ["server"], "scope": "call", "sub": "", "jti": "", "iat": 0, "x": 1}).encode(),
    ],
)
def test_signed_claims_that_are_not_understood_are_refused(said: bytes) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signed = f"{TOKEN.split('.')[0]}.{text_of(said)}"
    signature = Ed25519PrivateKey.from_private_bytes(SEED).sign(signed.encode())
    with pytest.raises(TokenRefused, match="says nothing"):
        SERVER.verify(f"{signed}.{text_of(signature)}".encode())


def test_a_token_is_a_web_token_that_other_libraries_read() -> None:
    header, body, _ = TOKEN.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "==")) == {"alg": "EdDSA", "typ": "JWT"}
    assert json.loads(base64.urlsafe_b64decode(body + "=="))["sub"] == "ci"
    assert len(TOKEN) < 300
