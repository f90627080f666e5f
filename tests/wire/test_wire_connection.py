"""Links over real sockets: joined writes, slow readers, garbage, ends."""

import asyncio
import os
import socket
import threading
from pathlib import Path

import pytest
import uvloop
from link_ends import End

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire.codec import encode
from flashmesh.wire.connection import BlockingLink, Link, dial
from flashmesh.wire.frames import AnyFrame, Cancel, Credit, Hello, Invoke, Result, Started
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import FrameWriter


async def connected(end: End, sock: socket.socket) -> None:
    await asyncio.get_running_loop().create_unix_connection(lambda: end.link, sock=sock)


def test_frames_of_one_turn_leave_in_one_write() -> None:
    """Ten sends without an await arrive in a single read of the other end."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        end = End()
        await connected(end, ours)
        for number in range(10):
            end.link.send(Credit(f"e{number}", items=1))
        theirs.setblocking(False)
        data = await asyncio.get_running_loop().sock_recv(theirs, 65536)
        assert len(FrameReader().feed(data)) == 10
        end.link.abort()
        theirs.close()

    asyncio.run(main())


def test_what_is_sent_before_the_connection_is_made_leaves_first(tmp_path: Path) -> None:
    """`dial` sends its hello frames, and the accepting end knows the dialler's process."""

    async def main() -> None:
        ends: list[End] = []
        accepted = asyncio.Event()

        def accept() -> Link:
            ends.append(End())
            accepted.set()
            return ends[-1].link

        server = await asyncio.get_running_loop().create_unix_server(accept, str(tmp_path / "s"))
        dialler = End()
        link = await dial(tmp_path / "s", dialler._on_frame, dialler._on_lost, Hello(1, "worker"), Credit(free=1))
        await asyncio.wait_for(accepted.wait(), 10)
        await ends[0].until(lambda: len(ends[0].frames) == 2)
        assert ends[0].frames == [Hello(1, "worker"), Credit(free=1)]
        assert (ends[0].link.peer_pid, ends[0].link.peer_uid) == (os.getpid(), os.getuid())
        assert link.is_open
        link.close()
        await ends[0].until(lambda: ends[0].lost)
        assert ends[0].lost == [None]
        await dialler.until(lambda: dialler.lost)
        assert not link.is_open
        server.close()

    asyncio.run(main())


def test_links_run_on_uvloop_as_well() -> None:
    """The same frames, sizes and peer under the loop that workers and the session use."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        a, b = End(), End()
        await connected(a, ours)
        await connected(b, theirs)
        a.link.send(Result("e", payload=bytes(3_000_000)))
        a.link.close()
        await b.until(lambda: b.lost)
        assert [len(frame.payload) for frame in b.frames if isinstance(frame, Result)] == [3_000_000]
        assert b.link.peer_pid == os.getpid()

    uvloop.run(main())


def test_a_reader_that_stops_reading_holds_frames_not_the_loop() -> None:
    """Megabytes wait in order while the other end sleeps, control frames pass them, and all arrive when it reads."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        a, b = End(), End()
        await connected(a, ours)
        a.link.send(Result("big", payload=bytes(6_000_000)))
        for _ in range(20):
            await asyncio.sleep(0)
        assert a.link.transport is not None
        assert a.link.transport.get_write_buffer_size() < 1_000_000
        a.link.send(Cancel("x"))
        await connected(b, theirs)
        await b.until(lambda: len(b.frames) == 2)
        assert b.frames[0] == Cancel("x")
        assert isinstance(b.frames[1], Result)
        assert len(b.frames[1].payload) == 6_000_000
        a.link.abort()
        await b.until(lambda: b.lost)

    asyncio.run(main())


def test_close_sends_what_waits_first() -> None:
    """A result put right before `close` arrives whole, then the end."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        a, b = End(), End()
        await connected(a, ours)
        await connected(b, theirs)
        a.link.send(Result("e", payload=bytes(3_000_000)))
        a.link.close()
        a.link.send(Cancel("too late"))
        await b.until(lambda: b.lost)
        assert [len(frame.payload) for frame in b.frames if isinstance(frame, Result)] == [3_000_000]
        assert len(b.frames) == 1
        await a.until(lambda: a.lost)
        assert (a.lost, b.lost) == ([None], [None])

    asyncio.run(main())


def test_garbage_ends_the_connection_and_says_so() -> None:
    """`on_lost` gets the LinkProtocolError, frames before it were delivered, the other end sees the close."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        end = End()
        await connected(end, ours)
        theirs.sendall(encode(Started("e")))
        await end.until(lambda: end.frames)
        theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
        await end.until(lambda: end.lost)
        assert end.frames == [Started("e")]
        assert isinstance(end.lost[0], LinkProtocolError)
        theirs.settimeout(10)
        assert theirs.recv(10) == b""
        theirs.close()

    asyncio.run(main())


def test_frames_after_a_close_are_not_delivered() -> None:
    """An owner that closes while handling a frame does not get the next one of the same read."""

    async def main() -> None:
        ours, theirs = socket.socketpair()
        seen: list[AnyFrame] = []
        lost = asyncio.Event()

        def on_frame(link: Link, frame: AnyFrame) -> None:
            seen.append(frame)
            link.close()

        link = Link(on_frame, lambda link, error: lost.set())
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        theirs.sendall(encode(Started("a")) + encode(Started("b")))
        await asyncio.wait_for(lost.wait(), 10)
        assert seen == [Started("a")]
        theirs.close()

    asyncio.run(main())


def pair(*, blocking: bool = True) -> tuple[BlockingLink, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    return BlockingLink(ours, blocking=blocking), theirs


def test_a_blocking_link_sends_and_receives_any_size() -> None:
    """A payload larger than any socket buffer goes through while the other end reads, and comes back."""
    link, theirs = pair()
    far = BlockingLink(theirs)

    def echo() -> None:
        frame = far.receive(10)
        assert isinstance(frame, Invoke)
        far.send(Result(frame.execution, payload=frame.payload))

    thread = threading.Thread(target=echo)
    thread.start()
    link.send(Invoke("e", "m.f", payload=bytes(5_000_000)))
    answer = link.receive(10)
    thread.join(10)
    assert isinstance(answer, Result)
    assert len(answer.payload) == 5_000_000
    assert link.peer.pid == os.getpid()
    link.close()
    far.close()
    assert link.fileno() == -1


def test_receive_gives_up_after_its_timeout() -> None:
    """TimeoutError, and the link stays usable."""
    link, theirs = pair()
    with pytest.raises(TimeoutError):
        link.receive(0.01)
    theirs.sendall(encode(Started("e")))
    assert link.receive(10) == Started("e")
    link.close()
    theirs.close()


def test_frames_before_the_end_are_handed_out_then_the_loss() -> None:
    """Both `receive` and `pump` give what came and raise LinkLost afterwards, every time."""
    link, theirs = pair()
    theirs.sendall(encode(Started("a")) + encode(Started("b")))
    theirs.close()
    assert link.receive(10) == Started("a")
    assert link.pump() == [Started("b")]
    for _ in range(2):
        with pytest.raises(LinkLost):
            link.receive(10)
        with pytest.raises(LinkLost):
            link.pump()
    with pytest.raises(LinkLost):
        for _ in range(100):
            link.send(Started("c"))
    link.close()
    with pytest.raises(LinkLost):
        link.receive(0)


def test_a_selectors_loop_is_never_blocked() -> None:
    """`send` returns although nobody reads, `pending` says so, `flush` goes on when there is room."""
    link, theirs = pair(blocking=False)
    assert link.pump() == []
    link.send(Result("e", payload=bytes(2_000_000)))
    assert link.pending
    assert not link.flush()
    reader, found = FrameReader(), []
    while not found:
        found += reader.feed(theirs.recv(1 << 20))
        link.flush()
    assert not link.pending
    assert isinstance(found[0], Result)
    link.close()
    theirs.close()


def test_garbage_on_a_blocking_link_is_named() -> None:
    """LinkProtocolError, not LinkLost: the other end is there and speaks something else."""
    link, theirs = pair()
    theirs.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(LinkProtocolError):
        link.receive(10)
    link.close()
    theirs.close()


def test_shutdown_wakes_a_thread_that_receives() -> None:
    """The waiting thread raises LinkLost."""
    link, theirs = pair()
    ended: list[bool] = []

    def wait() -> None:
        try:
            link.receive(10)
        except LinkLost:
            ended.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    link.shutdown()
    thread.join(10)
    assert ended == [True]
    link.close()
    theirs.close()


def test_a_writer_can_be_driven_without_a_socket() -> None:
    """`take` until empty gives exactly the encoded frames."""
    writer = FrameWriter()
    writer.put(Started("a"))
    writer.put(Cancel("b"))
    assert writer.take() == encode(Started("a")) + encode(Cancel("b"))
    assert not writer
