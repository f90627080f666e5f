"""What the server and the starter of commands say to each other."""

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flashmesh.gateway.functions.external.messages import Unpacker, packed

_VALUES = st.integers() | st.text(max_size=300)
_MESSAGES = st.lists(st.dictionaries(st.text(max_size=8), _VALUES, max_size=4), max_size=6)


@given(messages=_MESSAGES, data=st.data())
def test_messages_come_out_as_they_went_in_however_the_bytes_are_cut(
    messages: list[dict[str, Any]], data: st.DataObject
) -> None:
    stream = b"".join(map(packed, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    unpacker = Unpacker()
    heard = [
        message
        for start, end in pairwise(sorted({0, len(stream), *cuts}))
        for message in unpacker.feed(stream[start:end])
    ]
    assert heard == messages


def test_what_had_begun_is_forgotten_with_who_said_it() -> None:
    unpacker = Unpacker()
    assert list(unpacker.feed(packed({"pid": 1})[:-1])) == []
    unpacker.clear()
    assert list(unpacker.feed(packed({"pid": 2}))) == [{"pid": 2}]
