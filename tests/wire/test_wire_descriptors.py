"""Large payloads between processes of one machine: a sealed file's descriptor travels, and nothing of it stays."""

import asyncio
import fcntl
import mmap
import os
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from link_ends import End, becomes, brief, open_descriptors, over, refuses, two

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire import memfd, passage
from flashmesh.wire.codec import Asks, Takes, encode
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import MSGPACK, Answer, AnyFrame, Cancel, Chunk, Error, Invoke, Result, Started
from flashmesh.wire.lending import Borrowed, Lender
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import Attached, FrameWriter, Passing

pytestmark = pytest.mark.skipif(not memfd.AVAILABLE, reason="only Linux has sealed files")

BIG = 3 * 1024 * 1024
RUN = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@pytest.fixture(autouse=True)
def nothing_stays_open():
    """Every test here leaves as many descriptors as it found, but for those a loop's first run opens for good."""
    uvloop.run(asyncio.sleep(0))
    before = open_descriptors()
    yield
    assert open_descriptors() == before


@pytest.fixture
def sealed_files(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the files that were made."""
    made: list[int] = []
    real, make = memfd.seal, Lender._make

    def seal(payload: bytes) -> Descriptor:
        made.append(len(payload))
        return real(payload)

    def lend(lender: Lender, capacity: int) -> Any:
        made.append(capacity)
        return make(lender, capacity)

    monkeypatch.setattr(memfd, "seal", seal)
    monkeypatch.setattr(Lender, "_make", lend)
    return made


@RUN
def test_a_large_payload_travels_as_a_descriptor_both_ways(
    run: Callable[[Coroutine[Any, Any, None]], None], sealed_files: list[int]
) -> None:
    """Call, result, failure, item and an oversize answer arrive byte for byte, in as many files at most."""

    async def main() -> None:
        a, b = End(), End()
        await two(a, b)
        body = os.urandom(BIG)
        there: list[AnyFrame] = [Invoke("i", "m.f", payload=body), Chunk("s", 0, True, True, body)]
        back: list[AnyFrame] = [Result("r", payload=body), Error("e", "X", payload=body), Answer(7, {"payload": body})]
        for frame in there:
            a.link.send(frame)
        for frame in back:
            b.link.send(frame)
        await b.until(lambda: len(b.frames) == len(there))
        await a.until(lambda: len(a.frames) == len(back))
        assert sorted(map(str, map(brief, b.frames))) == sorted(map(str, map(brief, there)))
        assert sorted(map(str, map(brief, a.frames))) == sorted(map(str, map(brief, back)))
        assert 2 <= len(sealed_files) <= 5  # what came back in time was used again
        await over(a, b)

    run(main())


@RUN
def test_below_a_mebibyte_no_file_is_made(
    run: Callable[[Coroutine[Any, Any, None]], None], sealed_files: list[int]
) -> None:
    """A small payload costs neither a file nor a question."""

    async def main() -> None:
        a, b = End(), End()
        await two(a, b)
        a.link.send(Result("r", payload=bytes(memfd.LARGE_BYTES - 1)))
        await b.until(lambda: b.frames)
        assert sealed_files == []
        await over(a, b)

    run(main())


@RUN
def test_frames_of_one_execution_keep_their_order_around_a_descriptor(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """STARTED, items large and small, and the RESULT arrive as they were sent; other executions may pass."""

    async def main() -> None:
        a, b = End(), End()
        await two(a, b)
        sent: list[AnyFrame] = [Started("x")]
        for number in range(6):
            size = BIG if number % 2 else 10
            sent.append(Chunk("x", 0, True, True, bytes([number]) * size))
        sent.append(Result("x", items=6, payload=bytes(BIG)))
        sent.append(Cancel("x"))
        for frame in sent:
            a.link.send(frame)
        for number in range(50):
            a.link.send(Started(f"other{number}"))
        await b.until(lambda: len(b.frames) == len(sent) + 50)
        of_x = [frame for frame in b.frames if getattr(frame, "execution", "") == "x"]
        assert list(map(brief, of_x)) == list(map(brief, sent))
        await over(a, b)

    run(main())


@RUN
def test_a_reader_that_stops_reading_holds_descriptors_back(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most a window of payload lies in the socket unread; the rest follows when the other end reads on."""
    monkeypatch.setattr(passage, "WINDOW_BYTES", 2 * BIG)

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        a = End()
        await asyncio.get_running_loop().create_unix_connection(lambda: a.link, sock=ours)
        theirs.send(encode(Takes(True)))
        for number in range(5):
            a.link.send(Result(f"r{number}", payload=bytes([number]) * BIG))
        reader, found = FrameReader(), []
        await becomes(lambda: a.link._passage is not None and a.link._passage._timer is not None)
        with pytest.raises(BlockingIOError):
            while True:
                found += reader.feed_with(*passage.receive(theirs))
        assert len(found) == 2
        async with asyncio.timeout(10):
            while len(found) < 5:
                try:
                    found += reader.feed_with(*passage.receive(theirs))
                except BlockingIOError:
                    await asyncio.sleep(0.001)
        assert [frame.payload[0] for frame in found if isinstance(frame, Result)] == [0, 1, 2, 3, 4]
        await over(a)
        theirs.close()

    run(main())


@RUN
def test_a_link_that_dies_half_way_keeps_no_descriptor(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """The other end vanishes with payloads unsent, on their way and half received; nothing stays open."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        a = End()
        await asyncio.get_running_loop().create_unix_connection(lambda: a.link, sock=ours)
        theirs.send(encode(Takes(True)))
        for number in range(40):
            a.link.send(Result(f"r{number}", payload=bytes(BIG)))
        await becomes(lambda: a.link._passage is not None)
        theirs.close()
        await a.until(lambda: a.lost)
        b, (mine, far) = End(), socket.socketpair()
        await asyncio.get_running_loop().create_unix_connection(lambda: b.link, sock=mine)
        payload = memfd.seal(bytes(BIG))
        far.send(encode(Asks()))
        await becomes(lambda: b.link._passage is not None)
        far.sendmsg([b"\x00\x00\x00\x50half"], memfd.ancillary(payload))
        payload.close()
        far.close()
        await b.until(lambda: b.lost)

    run(main())


@RUN
def test_an_end_that_never_answers_gets_nothing_it_cannot_read(
    run: Callable[[Coroutine[Any, Any, None]], None],
) -> None:
    """Who says that it takes no descriptors gets the payload in pieces."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        a = End()
        loop = asyncio.get_running_loop()
        await loop.create_unix_connection(lambda: a.link, sock=ours)
        a.link.send(Result("r", payload=bytes(BIG)))
        reader = FrameReader()
        found = reader.feed(await loop.sock_recv(theirs, 1000))
        theirs.send(encode(Takes(False)))
        async with asyncio.timeout(10):
            while not found:
                found += reader.feed(await loop.sock_recv(theirs, 1 << 20))
        assert len(found[0].payload) == BIG
        await over(a)
        theirs.close()

    run(main())


def test_without_memory_for_a_file_the_payload_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has no descriptor left sends as it would on another system."""

    def none_left(*payload: Any) -> Descriptor:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        a, b = End(), End()
        await two(a, b)
        monkeypatch.setattr(memfd, "seal", none_left)
        monkeypatch.setattr(Lender, "_make", none_left)
        a.link.send(Result("r", payload=bytes(BIG)))
        await b.until(lambda: b.frames)
        assert len(b.frames[0].payload) == BIG  # type: ignore[union-attr]
        await over(a, b)

    asyncio.run(main())


def test_a_mapped_payload_is_not_copied_and_cannot_be_written() -> None:
    """Who only decodes gets a view of the file; what is not MessagePack stays bytes, which user code may be given."""

    async def main() -> None:
        a, b = End(), End(mapped=True)
        await two(a, b)
        a.link.send(Invoke("m", "m.f", content_type=MSGPACK, payload=bytes(BIG)))
        a.link.send(Invoke("j", "m.f", payload=bytes(BIG)))
        await b.until(lambda: len(b.frames) == 2)
        mapped, plain = (frame.payload for frame in b.frames)  # type: ignore[union-attr]
        assert isinstance(mapped, Borrowed)
        assert isinstance(mapped.view().obj, mmap.mmap)
        assert mapped.view().readonly
        assert bytes(mapped) == bytes(BIG)
        assert len(plain) == BIG
        assert type(plain) is bytes
        b.frames.clear()
        del mapped
        await over(a, b)

    asyncio.run(main())


def test_a_payload_that_is_passed_on_is_written_once(sealed_files: list[int]) -> None:
    """Client → session → worker: the session gives the worker the file that the client made."""

    async def main() -> None:
        splices = Splices(asyncio.get_running_loop())
        client, inner, outer, worker = End(), End(splices=splices), End(splices=splices), End()
        await two(client, inner)
        await two(outer, worker)
        body = os.urandom(BIG)
        client.link.send(Invoke("x", "m.f", payload=body))
        await inner.until(lambda: inner.frames)
        assert len(splices) == 1
        (frame,) = inner.frames
        assert isinstance(frame, Invoke)
        outer.link.send(Invoke("x", "m.f", attempt=1, payload=frame.payload))
        await worker.until(lambda: worker.frames)
        assert brief(worker.frames[0])[3] == zlib.crc32(body)
        assert sealed_files == [BIG]
        assert len(splices) == 0
        splices.close()
        await over(client, inner, outer, worker)

    asyncio.run(main())


def test_payloads_that_nobody_passes_on_are_given_up() -> None:
    """By number, by bytes and by time; the payload itself is untouched."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        bodies = [bytes([number]) * 1000 for number in range(5)]
        for options in ({"limit": 2}, {"limit_bytes": 2500}):
            splices = Splices(loop, **options)
            for body in bodies:
                splices.keep(body, memfd.seal(body))
            assert len(splices) == 2
            assert splices.take(bodies[0]) is None
            kept = splices.take(bodies[4])
            assert kept is not None
            kept.close()
            splices.close()
        short = Splices(loop, seconds=0.01)
        short.keep(bodies[0], memfd.seal(bodies[0]))
        await becomes(lambda: not short)

    asyncio.run(main())


# The other end does not behave


def unsealed(size: int, seals: int = 0) -> Descriptor:
    file = Descriptor(os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(file.fd, size)
    fcntl.fcntl(file.fd, fcntl.F_ADD_SEALS, seals)
    return file


def pipe_end() -> Descriptor:
    ours, theirs = os.pipe()
    os.close(theirs)
    return Descriptor(ours)


ALL_BUT_WRITE = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if sys.platform == "linux" else 0
MISBEHAVING: dict[str, tuple[Callable[[], Descriptor], str]] = {
    "a file that may shrink": (lambda: unsealed(BIG), "can still change"),
    "a file that may be written": (lambda: unsealed(BIG, ALL_BUT_WRITE), "can still change"),
    "a file that is too short": (lambda: memfd.seal(bytes(BIG - 1)), "has 3145727"),
    "a file that is too long": (lambda: memfd.seal(bytes(BIG + 1)), "has 3145729"),
    "a pipe": (pipe_end, "no sealed file"),
    "an ordinary file": (lambda: Descriptor(os.open(__file__, os.O_RDONLY | os.O_CLOEXEC)), "no sealed file"),
}


def head_and_sealed() -> tuple[bytes, bytes]:
    """The two frames of a large result, without the descriptor."""
    writer = FrameWriter()
    writer.passing = Passing.YES
    writer.put(Result("r", content_type=MSGPACK, payload=bytes(BIG)))
    head = writer.take()
    attached = writer.take()
    assert isinstance(head, bytes)
    assert isinstance(attached, Attached)
    attached.sealed.close()
    return head, attached.data


@pytest.mark.parametrize("mapped", [True, False], ids=["mapped", "copied"])
@pytest.mark.parametrize("what", MISBEHAVING)
def test_what_could_change_under_the_reader_is_never_mapped(what: str, mapped: bool) -> None:
    """A file that its sender could truncate afterwards (SIGBUS), or that is not what was announced, ends the link."""
    make, message = MISBEHAVING[what]

    def send(far: socket.socket) -> None:
        head, body = head_and_sealed()
        file = make()
        far.send(head)
        far.sendmsg([body], memfd.ancillary(file))
        file.close()

    refuses(send, message, mapped=mapped)


def test_descriptors_nobody_announced_end_the_link_and_are_closed() -> None:
    """With an ordinary frame, two at once, or none where one was announced."""

    def link() -> tuple[BlockingLink, socket.socket]:
        ours, theirs = socket.socketpair()
        return BlockingLink(ours), theirs

    def file() -> Descriptor:
        return memfd.seal(bytes(BIG))

    near, far = link()
    with_frame = file()
    far.sendmsg([encode(Started("x"))], memfd.ancillary(with_frame))
    with_frame.close()
    with pytest.raises(LinkProtocolError, match="no payload that it is for"):
        near.receive(10)
    near.close()
    far.close()

    near, far = link()
    one, other = file(), file()
    head, body = head_and_sealed()
    (level, kind, first), (_, _, second) = *memfd.ancillary(one), *memfd.ancillary(other)
    far.sendmsg([head + body], [(level, kind, first + second)])
    one.close()
    other.close()
    with pytest.raises(LinkProtocolError, match="no payload that it is for"):
        near.receive(10)
    near.close()
    far.close()

    near, far = link()
    far.sendall(head + body)
    with pytest.raises(LinkProtocolError, match="did not come with it"):
        near.receive(10)
    near.close()
    far.close()


def test_blocking_links_pass_descriptors_both_ways(sealed_files: list[int]) -> None:
    """A thread at each end; the first large payload already travels as a file, because the ends asked at once, and
    the next ones travel in the same file."""
    ours, theirs = socket.socketpair()
    near, far = BlockingLink(ours), BlockingLink(theirs)
    body = os.urandom(2 * BIG)

    def echo() -> None:
        for _ in range(3):
            frame = far.receive(10)
            assert isinstance(frame, Invoke)
            far.send(Result(frame.execution, payload=frame.payload))

    thread = threading.Thread(target=echo)
    thread.start()
    for number in range(3):
        near.send(Invoke(f"x{number}", "m.f", payload=body))
        answer = near.receive(10)
        assert isinstance(answer, Result)
        assert zlib.crc32(answer.payload) == zlib.crc32(body)
    thread.join(10)
    assert sealed_files == [2 * BIG] * 2
    near.close()
    far.close()


def test_a_blocking_link_closed_in_the_middle_keeps_no_descriptor() -> None:
    """What waits unsent, and what came and was never asked for, is closed with the link."""
    ours, theirs = socket.socketpair()
    link = BlockingLink(ours, blocking=False)
    theirs.send(encode(Takes(True)))
    link.pump()
    for number in range(200):
        link.send(Result(f"r{number}", payload=bytes(memfd.LARGE_BYTES)))
    assert link.pending
    link.close()
    theirs.close()
    near, far = socket.socketpair()
    receiver = BlockingLink(near)
    file = memfd.seal(bytes(BIG))
    far.sendmsg([b"\x00\x00\x00\x50half"], memfd.ancillary(file))
    file.close()
    far.close()
    with pytest.raises(LinkLost):
        receiver.receive(10)
    receiver.close()


@settings(max_examples=30, deadline=None)
@given(
    frames=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from([0, 10, 60_000, memfd.LARGE_BYTES]), st.booleans()),
        max_size=8,
    )
)
def test_any_mixture_arrives_in_the_order_of_each_execution(frames: list[tuple[str, int, bool]]) -> None:
    """Writer to reader without a socket, whichever payloads are large."""
    writer = FrameWriter()
    writer.passing = Passing.YES
    sent: list[AnyFrame] = []
    for number, (execution, size, item) in enumerate(frames):
        data = bytes([number]) * size
        frame = Chunk(execution, number, True, True, data) if item else Result(execution, number, payload=data)
        writer.put(frame)
        sent.append(frame)
    reader, found = FrameReader(), []
    while writer:
        piece = writer.take()
        if isinstance(piece, Attached):
            found += reader.feed_with(piece.data, [piece.sealed])
        else:
            found += reader.feed(piece)
    for execution in "abc":
        got, want = ([brief(frame) for frame in all_ if frame.execution == execution] for all_ in (found, sent))  # type: ignore[union-attr]
        assert got == want
