"""Windows of streams, lists of items, records of a peer's stream: the pure parts."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import PayloadTooLarge
from flashmesh.wire.frames import JSON, MSGPACK
from flashmesh.worker.calls.exchange import RecordReader
from flashmesh.worker.face.answers import record
from flashmesh.worker.streams import WINDOW_BYTES, WINDOW_ITEMS, ItemList, Window


@given(st.lists(st.one_of(st.integers(0, WINDOW_BYTES), st.integers(-80, -1)), max_size=200))
def test_a_window_is_open_exactly_while_items_and_bytes_are_below_their_limits(steps: list[int]) -> None:
    """Non-negative: an item of that size is sent; negative: so many are granted back."""
    window = Window()
    sent: list[int] = []
    for step in steps:
        if step >= 0:
            window.spend(step)
            sent.append(step)
        else:
            window.grant(-step)
            del sent[:-step]
        assert window.is_open == (len(sent) < WINDOW_ITEMS and sum(sent) < WINDOW_BYTES)


def test_a_window_calls_back_once_when_it_opens() -> None:
    """And not while it stays closed."""
    window, calls = Window(), []
    for _ in range(WINDOW_ITEMS + 5):
        window.spend(1)
    window.on_open = lambda: calls.append(1)
    window.grant(3)
    assert calls == []
    window.grant(3)
    window.grant(3)
    assert calls == [1]


@given(st.lists(st.integers() | st.text()))
def test_a_list_of_encoded_items_is_the_encoded_list(items: list[int | str]) -> None:
    """Joined without decoding, in either form."""
    json_items, packed = ItemList(JSON), ItemList(MSGPACK)
    for item in items:
        json_items.add(msgspec.json.encode(item))
        packed.add(msgspec.msgpack.encode(str(item)))
    assert msgspec.json.decode(json_items.encoded()) == items
    assert msgspec.msgpack.decode(packed.encoded()) == [str(item) for item in items]


def test_a_list_has_a_bound_by_size_too() -> None:
    """64 MiB is the most."""
    items = ItemList(JSON)
    items.add(b"x" * (60 << 20))
    with pytest.raises(PayloadTooLarge, match="Stream it"):
        items.add(b"x" * (5 << 20))


@given(st.lists(st.tuples(st.sampled_from([b"I", b"E", b"X"]), st.binary(max_size=300))), st.integers(1, 50))
def test_records_come_out_as_they_went_in_however_they_are_cut(records: list[tuple[bytes, bytes]], size: int) -> None:
    """Any piece size gives the same records."""
    data = b"".join(record(kind, body) for kind, body in records)
    reader = RecordReader()
    found = [one for at in range(0, len(data), size) for one in reader.feed(data[at : at + size])]
    assert found == records
