"""Where bodies end, however their bytes are cut."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.lb.framing import Body, Chunked, KnownLength, Malformed


def taken(body: Body, data: bytes, cuts: list[int]) -> int:
    """Feed `data` in pieces; how much of it belonged to the body."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    total = 0
    for start, end in itertools.pairwise(places):
        part = body.take(data[start:end])
        total += part
        if part < end - start:
            break
    return total


chunks = st.lists(st.binary(min_size=1, max_size=40), max_size=8)


@given(
    pieces=chunks, trailers=st.lists(st.sampled_from([b"a: b", b"x-sum: 1"]), max_size=3), cuts=st.lists(st.integers(0))
)
def test_a_chunked_body_ends_behind_its_trailers_wherever_it_is_cut(
    pieces: list[bytes], trailers: list[bytes], cuts: list[int]
) -> None:
    framed = b"".join(b"%x;why=not\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    whole = framed + b"0\r\n" + b"".join(line + b"\r\n" for line in trailers) + b"\r\n"
    body = Chunked(decode=True)
    assert taken(body, whole + b"GET / HTTP/1.1\r\n", cuts) == len(whole)
    assert body.complete and body.size == len(b"".join(pieces))
    assert bytes(body.content) == b"".join(pieces)


@given(length=st.integers(0, 200), more=st.binary(max_size=50), cuts=st.lists(st.integers(0)))
def test_a_body_of_known_length_takes_exactly_that(length: int, more: bytes, cuts: list[int]) -> None:
    body = KnownLength(length)
    data = b"x" * length + more
    assert (taken(body, data, cuts) if length else 0) == length
    assert body.complete and body.size == length


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"-1\r\n\r\n",
        b"1 2\r\na\r\n",
        b"1\na\n",
        b"1\r\nab\r\n",
        b"1\r\na\rb",
        b"fffffffffffffffff\r\n",
        b"1;" + b"x" * 5000,
        b"0\r\n" + b"a: b\r\n" * 5000,
        b"1\r\na\r\n0\r\na: b\n\r\n",
    ],
)
def test_what_is_no_chunked_body_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        Chunked().take(data)


def test_chunks_that_are_all_framing_are_refused() -> None:
    with pytest.raises(Malformed, match="send larger ones"):
        Chunked().take((b"1;" + b"x" * 100 + b"\r\na\r\n") * 5000)
