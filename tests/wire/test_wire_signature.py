"""Signatures: what they bind, and when they end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import UntrustedPayload
from flashmesh.wire.signature import Purpose, Signer

KEY = b"0123456789abcdef"


@given(st.binary(), st.text(), st.text())
def test_what_is_sealed_opens_for_the_same_purpose(data: bytes, function: str, execution: str) -> None:
    """Any bytes, any names."""
    signer = Signer(KEY, "dev")
    purpose = Purpose(function, "result", execution)
    assert signer.open(signer.seal(data, purpose), purpose) == data


@given(st.binary(min_size=1, max_size=80))
def test_forged_bytes_do_not_open(data: bytes) -> None:
    """Bytes nobody sealed raise UntrustedPayload, however short."""
    with pytest.raises(UntrustedPayload):
        Signer(KEY, "dev").open(data, Purpose())


def test_names_do_not_run_into_each_other() -> None:
    """A value for function "ab", execution "c" is not one for "a", "bc"."""
    signer = Signer(KEY, "dev")
    with pytest.raises(UntrustedPayload):
        signer.open(signer.seal(b"x", Purpose("ab", "call", "c")), Purpose("a", "call", "bc"))


def test_a_signature_expires() -> None:
    """After its lifetime it is refused, and says why."""
    now = [1000.0]
    signer = Signer(KEY, "dev", clock=lambda: now[0])
    sealed = signer.seal(b"x", Purpose(), lifetime_s=60)
    now[0] += 59
    assert signer.open(sealed, Purpose()) == b"x"
    now[0] += 2
    with pytest.raises(UntrustedPayload, match="expired"):
        signer.open(sealed, Purpose())


def test_a_short_key_is_refused() -> None:
    """Keys have 16 bytes at least; a new one has 32."""
    with pytest.raises(ValueError, match="16"):
        Signer(b"short", "dev")
    assert len(Signer.new_key()) == 32
