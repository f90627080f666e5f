"""Files that a link uses again and again: lent with a payload, given back, never written while somebody looks."""

import asyncio
import mmap
import os
import socket
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import numpy as np
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from link_ends import End, becomes, brief, open_descriptors, over, refuses, two

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire import lending, memfd, msgpack_values
from flashmesh.wire.arguments import Binder, argument_parts
from flashmesh.wire.codec import Takes, encode
from flashmesh.wire.frames import MSGPACK, Invoke, Result
from flashmesh.wire.lending import Borrowed, Borrower, Lender
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.parts import Parts, sendable
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import Attached, FrameWriter, Passing

pytestmark = pytest.mark.skipif(not memfd.AVAILABLE, reason="only Linux has sealed files")

BIG = 3 * 1024 * 1024
RUN = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(autouse=True)
def nothing_stays_open():
    uvloop.run(asyncio.sleep(0))
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many files were made to be lent, and how many for one payload only."""
    counts = {"lent": 0, "single": 0}
    real, make = memfd.seal, Lender._make

    def seal(payload: Any) -> Descriptor:
        counts["single"] += 1
        return real(payload)

    def lend(lender: Lender, capacity: int) -> Any:
        counts["lent"] += 1
        return make(lender, capacity)

    monkeypatch.setattr(memfd, "seal", seal)
    monkeypatch.setattr(Lender, "_make", lend)
    return counts


def invoke(number: int, body: bytes) -> Invoke:
    return Invoke(f"x{number}", "m.f", content_type=MSGPACK, payload=body)


def borrowed_of(frame: Any) -> Borrowed:
    assert isinstance(frame.payload, Borrowed)
    return frame.payload


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def carried(lender: Lender, borrower: Borrower, payload: bytes) -> Borrowed:
    """What a payload is at the other end."""
    lent = lender.lend(payload)
    assert lent is not None
    if lent.descriptor is not None:
        borrower.meet(lent.number, lent.descriptor)
    return borrower.borrow(lent.number, lent.size)


@RUN
def test_calls_one_after_the_other_travel_in_one_file_each_way(run: Run, made: dict[str, int]) -> None:
    """Ten large calls and ten large results make two files."""

    async def main() -> None:
        a, b = End(), End(mapped=True)
        await two(a, b)
        for number in range(10):
            body = os.urandom(BIG)
            a.link.send(invoke(number, body))
            await b.until(lambda: b.frames)
            borrowed = borrowed_of(b.frames.pop())
            assert bytes(borrowed) == body
            borrowed.close()
            b.link.send(Result(f"x{number}", payload=body[::-1]))
            await a.until(lambda: a.frames)
            (answer,) = a.frames
            assert brief(answer)[3] == zlib.crc32(body[::-1])
            a.frames.clear()
        assert made == {"lent": 2, "single": 0}
        await over(a, b)

    run(main())


@RUN
def test_what_somebody_still_looks_at_is_never_written(run: Run, made: dict[str, int]) -> None:
    """Whoever keeps what came keeps it as it came; payloads beyond the files that may be out travel in their own."""

    async def main() -> None:
        a, b = End(), End(mapped=True)
        await two(a, b)
        a.link.send(invoke(0, bytes(BIG)))
        await b.until(lambda: b.frames)
        b.frames.clear()  # the first one is given back, and used again
        b.link.send(Result("x"))
        await a.until(lambda: a.frames)
        a.frames.clear()
        bodies = [os.urandom(BIG) for _ in range(lending.MOST_FILES + 3)]
        for number, body in enumerate(bodies):
            a.link.send(invoke(number, body))
            await b.until(lambda number=number: len(b.frames) == number + 1)
            b.link.send(Result("x", payload=b"with what is to be told"))
            await a.until(lambda number=number: len(a.frames) == number + 1)
        kept = [frame.payload for frame in b.frames]  # type: ignore[union-attr]
        assert [bytes(payload) for payload in kept] == bodies
        assert made == {"lent": lending.MOST_FILES, "single": 3}
        kept.clear()
        b.frames.clear()
        await over(a, b)

    run(main())


@RUN
def test_a_file_that_is_passed_on_comes_back_through_every_hand(run: Run, made: dict[str, int]) -> None:
    """Client, session, worker: the session maps nothing and copies nothing, and the client's file is free when the
    worker has read it."""

    async def main() -> None:
        splices = Splices(asyncio.get_running_loop())
        client, inner, outer, worker = End(), End(splices=splices), End(splices=splices), End(mapped=True)
        await two(client, inner)
        await two(outer, worker)
        for number in range(5):
            body = os.urandom(BIG)
            client.link.send(invoke(number, body))
            await inner.until(lambda: inner.frames)
            outer.link.send(inner.frames.pop())
            await worker.until(lambda: worker.frames)
            borrowed = borrowed_of(worker.frames.pop())
            assert bytes(borrowed) == body
            assert inner.link._reader.borrower._known[1]._mapping is None
            borrowed.close()
            worker.link.send(Result(f"x{number}", payload=b"1"))
            await outer.until(lambda: outer.frames)
            inner.link.send(outer.frames.pop())
            await client.until(lambda: client.frames)
            client.frames.clear()
        assert made == {"lent": 1, "single": 0}
        splices.close()
        await over(client, inner, outer, worker)

    run(main())


def test_a_result_that_is_passed_on_is_written_once(made: dict[str, int]) -> None:
    """The session keeps a copy for its record and gives the client the worker's file."""

    async def main() -> None:
        splices = Splices(asyncio.get_running_loop())
        client, inner, outer, worker = End(mapped=True), End(splices=splices), End(splices=splices), End()
        await two(client, inner)
        await two(outer, worker)
        body = os.urandom(BIG)
        worker.link.send(Result("x", content_type=MSGPACK, payload=body))
        await outer.until(lambda: outer.frames)
        (frame,) = outer.frames
        assert type(frame.payload) is bytes  # type: ignore[union-attr]
        inner.link.send(frame)
        await client.until(lambda: client.frames)
        assert bytes(borrowed_of(client.frames.pop())) == body
        assert made == {"lent": 1, "single": 0}
        splices.close()
        await over(client, inner, outer, worker)

    asyncio.run(main())


def test_a_payload_on_its_way_outlives_the_client_that_lent_it() -> None:
    """A session can still pass on, and read, what came from a client that is gone."""

    async def main() -> None:
        splices = Splices(asyncio.get_running_loop())
        client, inner, outer, worker = End(), End(splices=splices), End(splices=splices), End(mapped=True)
        await two(client, inner)
        await two(outer, worker)
        body = os.urandom(BIG)
        client.link.send(invoke(0, body))
        await inner.until(lambda: inner.frames)
        await over(client, inner)
        outer.link.send(inner.frames.pop())
        await worker.until(lambda: worker.frames)
        assert bytes(borrowed_of(worker.frames.pop())) == body
        splices.close()
        await over(outer, worker)

    asyncio.run(main())


@RUN
def test_a_link_that_dies_with_files_out_keeps_none_open(run: Run) -> None:
    """On both sides, with payloads still being looked at; those stay readable."""

    async def main() -> None:
        a, b = End(), End(mapped=True)
        await two(a, b)
        a.link.send(invoke(0, b"\7" * BIG))
        await b.until(lambda: b.frames)
        await over(a, b)
        assert bytes(borrowed_of(b.frames.pop())) == b"\7" * BIG

    run(main())


@RUN
def test_an_end_that_does_not_know_of_lending_gets_sealed_files(run: Run, made: dict[str, int]) -> None:
    """TAKES without the second field; and a TAKES with it is understood where that field is not known."""

    class Before(msgspec.Struct, array_like=True, tag=26):
        descriptors: bool = False

    async def main() -> None:
        ours, theirs = socket.socketpair()
        a = End()
        await asyncio.get_running_loop().create_unix_connection(lambda: a.link, sock=ours)
        old = msgspec.msgpack.encode(Before(True))
        theirs.send(len(old).to_bytes(4, "big") + old)
        a.link.send(Result("r", payload=bytes(BIG)))
        await becomes(lambda: made["single"] == 1)
        await over(a)
        theirs.close()
        assert made == {"lent": 0, "single": 1}
        assert msgspec.msgpack.decode(encode(Takes(True, True))[4:], type=Before).descriptors

    run(main())


def test_files_that_nobody_used_for_a_while_are_given_up_at_both_ends() -> None:
    clock = Clock()
    lender, borrower = Lender(clock=clock), Borrower(2 * BIG)
    before = open_descriptors()
    carried(lender, borrower, bytes(BIG)).close()
    held = carried(lender, borrower, bytes(BIG))
    lender.returned(borrower.take_returns())
    lender.sort()
    clock.now += lending.IDLE_S
    lender.give_up(clock.now - lending.IDLE_S)
    given_up = lender.take_given_up()
    assert len(given_up) == 1
    borrower.forget(given_up)
    assert open_descriptors() == before + 2  # of the file that is still out: the lender's mapping, the descriptor
    held.close()
    lender.returned(borrower.take_returns())
    lender.sort()
    clock.now += lending.IDLE_S
    lender.give_up(clock.now - lending.IDLE_S + 1)
    borrower.forget(lender.take_given_up())
    del held
    assert open_descriptors() == before
    assert not lender.idle


@RUN
def test_a_link_that_falls_silent_gives_its_files_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashmesh.wire.connection.IDLE_S", 0.01)

    async def main() -> None:
        a, b = End(), End(mapped=True)
        await two(a, b)
        a.link.send(invoke(0, bytes(BIG)))
        await b.until(lambda: b.frames)
        b.frames.clear()
        assert b.link._reader.borrower._known
        b.link.send(Result("x0"))
        await becomes(lambda: not b.link._reader.borrower._known)
        await over(a, b)

    run(main())


def test_lent_bytes_are_bounded() -> None:
    """Free files make room for one that is larger; what does not fit at all is not lent."""
    lender, borrower = Lender(most_bytes=2 * BIG), Borrower(3 * BIG)
    carried(lender, borrower, bytes(BIG)).close()
    lender.returned(borrower.take_returns())
    large = carried(lender, borrower, bytes(2 * BIG))
    assert lender.take_given_up() == [1]
    assert lender.lend(bytes(BIG)) is None
    assert Lender(most_bytes=2 * BIG).lend(bytes(2 * BIG + 1)) is None
    large.close()


def test_one_file_is_not_passed_on_twice_at_once() -> None:
    """The other end would give it back twice; a second time it travels in another file."""
    owner, between, last = Lender(), Lender(), Borrower(BIG)
    middle = Borrower(BIG)
    payload = carried(owner, middle, b"\5" * BIG)
    first = between.pass_on(payload)
    assert first is not None
    assert first.descriptor is not None
    assert between.pass_on(payload) is None
    last.meet(first.number, first.descriptor)
    seen = last.borrow(first.number, first.size)
    assert bytes(seen) == b"\5" * BIG
    del payload
    assert middle.take_returns() == []
    seen.close()
    between.returned(last.take_returns())
    between.sort()
    assert middle.take_returns() == [1]


def test_who_gives_back_what_was_not_lent_changes_nothing() -> None:
    lender, borrower = Lender(), Borrower(BIG)
    held = carried(lender, borrower, b"\1" * BIG)
    lender.returned([7, -1])
    again = carried(lender, borrower, b"\2" * BIG)
    assert bytes(held) == b"\1" * BIG
    assert bytes(again) == b"\2" * BIG


# The other end does not behave


def lent_file(capacity: int = BIG) -> Descriptor:
    lent = Lender().lend(bytes(capacity))
    assert lent is not None
    assert lent.descriptor is not None
    return lent.descriptor


def unsealed() -> Descriptor:
    file = Descriptor(os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(file.fd, BIG)
    return file


def frames_of_lent(size: int, number: int, new: bool) -> tuple[bytes, bytes]:
    """The two frames of a large result in a lent file."""
    writer = FrameWriter()
    writer.answered(Takes(True, True))
    writer.put(Result("r", content_type=MSGPACK, payload=bytes(BIG)))
    head, attached = writer.take(), writer.take()
    assert isinstance(head, bytes)
    assert isinstance(attached, Attached)
    body = msgspec.msgpack.encode([27, "r", 0, False, size, number, new])
    writer.close()
    return head, len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "copied"])
@pytest.mark.parametrize(
    ("file", "size", "number", "message"),
    [
        (unsealed, BIG, 1, "can still change"),
        (lambda: memfd.seal(bytes(BIG)), BIG, 1, "can still change"),
        (lambda: lent_file(BIG), BIG + 1, 1, "in a file of"),
        (lambda: lent_file(BIG), 0, 1, "in a file of"),
        (lambda: lent_file(2 * BIG), 2 * BIG, 1, "of 3145728 bytes"),
        (lambda: Descriptor(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)), BIG, 1, "no sealed file"),
        (None, BIG, 4, "not known here"),
    ],
    ids=["unsealed", "unsealed for others", "too short", "nothing in it", "another size", "no memory", "unknown"],
)
def test_a_file_that_could_hurt_the_reader_ends_the_link(
    file: Callable[[], Descriptor] | None, size: int, number: int, message: str, mapped: bool
) -> None:
    def send(far: socket.socket) -> None:
        head, body = frames_of_lent(size, number, new=file is not None)
        far.send(head)
        if file is None:
            far.send(body)
        else:
            descriptor = file()
            far.sendmsg([body], memfd.ancillary(descriptor))
            descriptor.close()

    refuses(send, message, mapped=mapped)


def test_only_who_lends_a_file_can_write_it_and_nobody_can_resize_it() -> None:
    """What a receiver could do to its sender, and the sender to it, with the descriptor in hand."""
    descriptor = lent_file()
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor.fd, BIG)
    with pytest.raises(PermissionError):
        os.pwrite(descriptor.fd, b"x", 0)
    for size in (0, 2 * BIG):
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor.fd, size)
    descriptor.close()


def test_a_reader_knows_a_bounded_number_of_files() -> None:
    borrower = Borrower(BIG)
    for number in range(lending.MOST_KNOWN):
        borrower.meet(number, lent_file())
    with pytest.raises(LinkProtocolError, match="with"):
        borrower.meet(1000, lent_file())
    borrower.close()
    borrower.meet(1, lent_file())
    with pytest.raises(LinkProtocolError, match="twice"):
        borrower.meet(1, lent_file())
    borrower.close()


# Arrays


def test_an_array_arrives_as_the_functions_own_and_its_file_is_free_at_once() -> None:
    """Writable, aligned, and not touched by what the file holds next."""
    lender, borrower = Lender(), Borrower(64 * BIG)
    array = np.arange(BIG // 8, dtype=np.int64)
    binder = Binder(lambda array: None)

    def received(value: Any) -> Any:
        lent = lender.lend(argument_parts((value,), {}))
        assert lent is not None
        if lent.descriptor is not None:
            borrower.meet(lent.number, lent.descriptor)
        borrowed = borrower.borrow(lent.number, lent.size)
        (found,) = binder.bind(borrowed, MSGPACK).args  # type: ignore[arg-type]
        borrowed.close()
        lender.returned(borrower.take_returns())
        return found

    first = received(array)
    second = received(-array)
    assert lender._last == 1
    assert np.array_equal(first, array)
    assert np.array_equal(second, -array)
    assert first.flags.writeable
    assert first.flags.aligned
    assert first.flags.owndata
    first += 1


@pytest.mark.parametrize("answered", [True, False], ids=["lent", "before the answer"])
def test_an_array_that_is_changed_after_the_call_was_sent_arrives_as_it_was(answered: bool) -> None:
    """`send` returned: the caller may use its memory again, wherever the payload is by then."""
    writer, reader = FrameWriter(), FrameReader()
    if answered:
        writer.answered(Takes(True, True))
    else:
        writer.passing = Passing.UNASKED
    array = np.zeros(BIG, dtype=np.uint8)
    writer.put(Invoke("x", "m.f", content_type=MSGPACK, payload=sendable(argument_parts((array,), {}))))
    array[:] = 1
    writer.answered(Takes(True, True))
    found: list[Any] = []
    while writer:
        piece = writer.take()
        if isinstance(piece, Attached):
            found += reader.feed_with(piece.data, [piece.sealed])
        else:
            found += reader.feed(piece)
    ((received,), _, _) = msgpack_values.decode(found[0].payload)
    assert not received.any()
    writer.close()
    reader.close()


ARRAYS = st.builds(
    lambda count, dtype, fortran: np.asarray(
        np.arange(count * 4).reshape(count, 4).astype(dtype), order="F" if fortran else "C"
    ),
    st.sampled_from([1, 40_000, 70_000]),
    st.sampled_from(["u1", "<f8", ">i4", "c16"]),
    st.booleans(),
)
VALUES = st.recursive(
    st.one_of(ARRAYS, st.integers(), st.text(max_size=5), st.binary(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(st.tuples(st.integers(0, 9)), inner, max_size=2),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_parts_are_the_bytes_that_the_whole_value_has(value: Any) -> None:
    """Large arrays, wherever they stand, are written as small ones are."""
    parts = msgpack_values.encode_parts(value)
    whole = bytes(parts)
    assert len(parts) == len(whole)
    place = bytearray(len(whole))
    if isinstance(parts, Parts):
        parts.write_into(memoryview(place))
        assert place == whole

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, np.ndarray):
            return one.dtype == other.dtype and np.array_equal(one, other)
        if isinstance(one, dict):
            return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(same, one, other))
        return bool(one == other)

    assert same(value, msgpack_values.decode(whole))
