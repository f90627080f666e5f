"""Frames to bytes and back: any frames, split anywhere, garbage included."""

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmesh.functions.errors import LinkProtocolError, PayloadTooLarge, SettingsError
from flashmesh.wire import reading
from flashmesh.wire.codec import encode, payload_limit
from flashmesh.wire.frames import (
    INLINE_PAYLOAD_BYTES,
    MAX_FRAME_BYTES,
    Answer,
    AnyFrame,
    Cancel,
    Chunk,
    Credit,
    Error,
    Hello,
    Invoke,
    Log,
    Query,
    Ready,
    Result,
    Started,
)
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import FrameWriter

ids = st.sampled_from(["a", "b", "c", "d"])
sizes = st.one_of(
    st.integers(0, 100), st.sampled_from([INLINE_PAYLOAD_BYTES, INLINE_PAYLOAD_BYTES + 1, 70_000, 200_000])
)


@st.composite
def payloads(draw: Any) -> bytes:
    return draw(st.binary(min_size=1, max_size=3)) * draw(sizes)


anything: st.SearchStrategy[AnyFrame] = st.one_of(
    st.builds(Hello, st.just(1), st.sampled_from(["worker", "client"]), pid=st.integers(0, 9)),
    st.builds(Ready, st.integers(0, 5), st.builds(lambda n: {"x": "y" * n}, sizes)),
    st.builds(Started, ids, worker=st.text(max_size=5), cold=st.booleans()),
    st.builds(Chunk, ids, item=st.just(True), data=payloads()),
    st.builds(Result, ids, items=st.integers(-1, 5), payload=payloads()),
    st.builds(Error, ids, st.just("TIMEOUT"), payload=payloads()),
    st.builds(Credit, ids, items=st.integers(0, 5)),
    st.builds(Cancel, ids),
    st.builds(Invoke, ids, st.just("m.f"), meta=st.builds(lambda n: {"m": "x" * n}, sizes), payload=payloads()),
    st.builds(Query, st.integers(1, 3), st.just("status")),
    st.builds(Answer, st.integers(1, 3), st.builds(lambda n: {"p": b"x" * n}, sizes), more=st.booleans()),
    st.builds(Log, st.just("e"), st.just("w"), st.just("stdout"), st.text(max_size=20)),
)


def same(frame: AnyFrame) -> AnyFrame:
    """The frame without `size`, which only says how a payload travelled."""
    return msgspec.structs.replace(frame, size=0) if hasattr(frame, "size") else frame


def key(frame: AnyFrame) -> Any:
    return getattr(frame, "execution", None) or (type(frame), getattr(frame, "id", None))


def through(frames: list[AnyFrame], *, limit: int, cuts: random.Random | None = None) -> list[AnyFrame]:
    writer, reader = FrameWriter(), FrameReader()
    for frame in frames:
        writer.put(frame)
    data = b""
    while writer:
        data += writer.take(limit)
    found: list[AnyFrame] = []
    position = 0
    while position < len(data):
        step = len(data) if cuts is None else cuts.choice([1, 2, 3, 5, 100, 5000, 65536, 300_000])
        found += reader.feed(data[position : position + step])
        position += step
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(anything, max_size=12), st.sampled_from([1, 4096, 65536, 262144]), st.randoms(use_true_random=False))
def test_frames_survive_any_split_and_keep_their_order(frames: list[AnyFrame], limit: int, cuts: random.Random) -> None:
    """Every frame arrives whole and once; those of one execution or question arrive in the order they were put."""
    found = through(frames, limit=limit, cuts=cuts)
    for one in {key(frame) for frame in frames}:
        assert [same(f) for f in found if key(f) == one] == [same(f) for f in frames if key(f) == one]
    assert len(found) == len(frames)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=400), max_size=5))
def test_garbage_is_refused_or_waited_for(pieces: list[bytes]) -> None:
    """Random bytes end in LinkProtocolError or an incomplete frame: nothing else is raised, nothing more is kept."""
    reader = FrameReader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except LinkProtocolError:
        return
    assert len(reader._partial) <= sum(map(len, pieces))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100), st.integers(0, 60), st.integers(0, 255))
def test_a_changed_byte_never_raises_anything_else(payload: bytes, position: int, byte: int) -> None:
    """Flipping any byte of a valid frame gives frames or LinkProtocolError."""
    data = bytearray(encode(Invoke("some-execution", "m.f", meta={"a": [1, "x"]}, payload=payload)))
    data[position % len(data)] = byte
    try:
        FrameReader().feed(bytes(data))
    except LinkProtocolError:
        pass


def frame_of(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"GET / HTTP/1.1\r\n\r\n",
        frame_of(b"\x92\x63\xc0"),
        frame_of(b"\x91" * 60_000),
        frame_of(msgspec.msgpack.encode([3, "e", "m.f", 0, "", "", "", 0, {}, 10**12, b""])),
        frame_of(msgspec.msgpack.encode([5, "unknown", 0, False, True, b"x"])),
        frame_of(msgspec.msgpack.encode([5, "", 1, False, True, b"\x91\x02"])),
    ],
    ids=["empty", "huge", "over", "http", "kind", "nested", "announced", "no head", "needless pieces"],
)
def test_what_is_not_our_protocol_is_refused_at_once(data: bytes) -> None:
    """Wrong lengths, kinds, sizes and pieces raise LinkProtocolError as soon as they are seen."""
    with pytest.raises(LinkProtocolError):
        FrameReader().feed(data)


def test_more_bytes_than_announced_are_refused() -> None:
    """A payload that outgrows its size, or ends before it, is an error; nothing unbounded is kept."""
    head = encode(Invoke("e", "m.f", size=10))
    for piece in (Chunk("e", data=b"x" * 11), Chunk("e", data=b"x" * 9)):
        reader = FrameReader()
        assert reader.feed(head) == []
        with pytest.raises(LinkProtocolError):
            reader.feed(encode(piece))


def test_an_endless_item_is_refused_at_the_limit() -> None:
    """Items and oversize frames, which announce no size, stop at the payload limit."""
    for execution, item in (("e", True), ("", False)):
        reader = FrameReader(max_payload=100_000)
        with pytest.raises(LinkProtocolError):
            for _ in range(10):
                reader.feed(encode(Chunk(execution, 1, item, False, bytes(20_000))))


def test_too_many_open_payloads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender that only ever announces cannot fill the memory with heads."""
    monkeypatch.setattr(reading, "OPEN_LIMIT", 3)
    reader = FrameReader()
    with pytest.raises(LinkProtocolError, match="at once"):
        for number in range(5):
            reader.feed(encode(Invoke(f"e{number}", "m.f", size=10)))
    with pytest.raises(LinkProtocolError, match="second payload"):
        FrameReader().feed(encode(Invoke("e", "m.f", size=10)) * 2)


def test_a_payload_over_the_limit_is_not_put() -> None:
    """The writer refuses it, names the setting and stays as it was."""
    writer = FrameWriter(max_payload=100_000)
    for frame in (Result("e", payload=bytes(100_001)), Chunk("e", item=True, data=bytes(100_001)),
                  Answer(1, {"p": bytes(100_001)})):  # fmt: skip
        with pytest.raises(PayloadTooLarge, match="FLASH_MAX_BODY_BYTES"):
            writer.put(frame)
    assert not writer
    assert writer.take() == b""


def test_the_limit_is_a_setting() -> None:
    """FLASH_MAX_BODY_BYTES sets it, 64 MiB is the default, anything but a size is an error naming the variable."""
    assert payload_limit({}) == 64 * 1024 * 1024
    assert payload_limit({"FLASH_MAX_BODY_BYTES": "1000"}) == 1000
    for bad in ("64MB", "0", "-1", "1.5"):
        with pytest.raises(SettingsError, match="FLASH_MAX_BODY_BYTES"):
            payload_limit({"FLASH_MAX_BODY_BYTES": bad})


def test_a_control_frame_passes_a_large_payload() -> None:
    """CANCEL of another execution leaves with the next write although megabytes of payload were put before it."""
    writer, reader = FrameWriter(), FrameReader()
    writer.put(Invoke("big", "m.f", payload=bytes(8_000_000)))
    first = reader.feed(writer.take())
    writer.put(Cancel("other"))
    assert first == []
    assert reader.feed(writer.take()) == [Cancel("other")]


def test_large_payloads_share_the_link() -> None:
    """Two payloads put one after the other progress together: the short one is not behind the long one."""
    writer, reader = FrameWriter(), FrameReader()
    writer.put(Result("long", payload=bytes(4_000_000)))
    writer.put(Result("short", payload=bytes(200_000)))
    order: list[str] = []
    while writer:
        order += [frame.execution for frame in reader.feed(writer.take()) if isinstance(frame, Result)]
    assert order == ["short", "long"]


def test_pieces_progress_while_small_frames_never_stop() -> None:
    """A flood of small frames does not starve a large payload."""
    writer, reader = FrameWriter(), FrameReader()
    writer.put(Result("large", payload=bytes(1_000_000)))
    for _ in range(100):
        for number in range(20):
            writer.put(Result(f"s{number}", payload=bytes(20_000)))
        if any(frame.execution == "large" for frame in reader.feed(writer.take()) if isinstance(frame, Result)):
            return
    pytest.fail("the large payload never arrived")


def test_a_frame_alone_is_encoded_in_one_piece_or_refused() -> None:
    """`encode` gives what a reader reads; over 64 KiB it says what to use."""
    frame = Result("e", payload=b"x")
    assert FrameReader().feed(encode(frame)) == [frame]
    with pytest.raises(LinkProtocolError, match="FrameWriter"):
        encode(Result("e", payload=bytes(MAX_FRAME_BYTES)))


def test_reading_bytes_one_at_a_time_is_linear() -> None:
    """A megabyte that trickles in is read once: what is kept is never copied as a whole again."""
    writer, reader = FrameWriter(), FrameReader()
    writer.put(Result("e", payload=bytes(300_000)))
    data = b""
    while writer:
        data += writer.take()
    found = [frame for index in range(len(data)) for frame in reader.feed(data[index : index + 1])]
    assert [same(frame) for frame in found] == [Result("e", payload=bytes(300_000))]
