"""A generator's items wait in a bounded buffer and are handed out once."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.executions.items import (
    MAX_LIST_ITEMS,
    MAX_UNREAD_BYTES,
    MAX_UNREAD_ITEMS,
    ItemBuffer,
    join,
)
from flashmesh.functions.errors import ItemsGone, PayloadTooLarge


@given(st.lists(st.one_of(st.just(-1), st.binary(max_size=20)), max_size=200), st.integers(1, 7))
def test_each_item_is_handed_out_exactly_once_and_in_order(steps: list[int | bytes], limit: int) -> None:
    """However writes and reads interleave, the readings together are what was written."""
    buffer, written, read = ItemBuffer(), [], []
    for step in [*steps, *([-1] * 300)]:
        if isinstance(step, bytes):
            buffer.add(step)
            written.append(step)
        else:
            taken, position = buffer.take(limit=limit)
            read += taken
            assert position == len(read)
    assert read == written


def test_a_full_buffer_gives_no_credits_until_a_reader_takes_items() -> None:
    """1000 unread items, or 1 MiB of them, stop the generator."""
    many = ItemBuffer()
    many.take()
    for _ in range(MAX_UNREAD_ITEMS):
        assert many.room() > 0
        many.add(b"x")
    assert many.room() == 0
    many.take(limit=10)
    assert many.room() == 10
    large = ItemBuffer()
    large.take()
    large.add(b"x" * MAX_UNREAD_BYTES)
    assert large.room() == 0
    large.take()
    assert large.room() == MAX_UNREAD_ITEMS


def test_a_list_beyond_its_bound_is_an_error_that_says_to_stream() -> None:
    """Item 10 001 of a generator nobody streams fails the call."""
    buffer = ItemBuffer()
    for _ in range(MAX_LIST_ITEMS):
        buffer.add(b"1")
    with pytest.raises(PayloadTooLarge, match="Stream it"):
        buffer.add(b"1")


def test_items_that_were_read_and_dropped_are_gone_for_a_reader_that_goes_back() -> None:
    """A position before what is kept is answered 410, never with wrong items."""
    buffer = ItemBuffer()
    buffer.take()
    for _ in range(MAX_UNREAD_ITEMS):
        buffer.add(b"1")
    buffer.take()
    assert buffer.complete
    buffer.add(b"2")
    buffer.take()
    assert not buffer.complete
    with pytest.raises(ItemsGone):
        buffer.take(after=0)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 70_000])
def test_the_list_is_spliced_from_the_items_bytes(count: int) -> None:
    """JSON and MessagePack lists decode to the items; raw bytes are joined."""
    values = list(range(count))
    assert json.loads(join([json.dumps(value).encode() for value in values], "application/json")) == values
    packed = [msgspec.msgpack.encode(value) for value in values]
    assert msgspec.msgpack.decode(join(packed, "application/x-msgpack")) == values
    assert join([b"ab", b"c"], "application/octet-stream") == b"abc"
