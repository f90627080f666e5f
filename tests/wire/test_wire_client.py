"""Both clients of a session, against a session that speaks real frames over a real socket."""

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from wire_session import WINDOW, FakeSession, fake_session

from flashmesh.functions.errors import LinkLost, PayloadTooLarge, QueueFull
from flashmesh.wire.client import BlockingClient, SessionClient
from flashmesh.wire.frames import Cancel, Credit, Error, Hello, Invoke, Query, Result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "link.sock"


@pytest.fixture
def session(path: Path) -> Iterator[FakeSession]:
    with fake_session(path) as session:
        yield session


def with_client(path: Path, body: Callable[[SessionClient], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with await SessionClient.connect(path) as client:
            await asyncio.wait_for(body(client), 20)

    asyncio.run(main())


def test_a_client_says_who_it_is_first(path: Path, session: FakeSession) -> None:
    """The first frame is HELLO with role and process id, and the session reads the same pid from the kernel."""

    async def body(client: SessionClient) -> None:
        await client.query("status")

    with_client(path, body)
    assert isinstance(session.seen[0], Hello)
    assert (session.seen[0].role, session.seen[0].pid) == ("client", os.getpid())
    assert (session.links[0].peer_pid, session.links[0].peer_uid) == (os.getpid(), os.getuid())


def test_calls_in_flight_get_each_their_own_answer(path: Path, session: FakeSession) -> None:
    """Five hundred at once, small and large mixed, come back with their own payloads."""

    async def body(client: SessionClient) -> None:
        payloads = {f"e{n}": str(n).encode() * (1 if n % 50 else 70_000) for n in range(500)}
        calls = [client.invoke(Invoke(name, "m.echo", payload=data)) for name, data in payloads.items()]
        for call in calls:
            answer = await call.result()
            assert isinstance(answer, Result)
            assert answer.payload == payloads[call.execution]
            assert call.started.is_set()
            assert (call.worker, call.cold) == ("w", True)

    with_client(path, body)


def test_a_failed_call_is_an_answer_not_an_exception(path: Path, session: FakeSession) -> None:
    """`result()` hands out the ERROR frame."""

    async def body(client: SessionClient) -> None:
        assert isinstance(await client.invoke(Invoke("a", "m.fail")).result(), Error)

    with_client(path, body)
    with BlockingClient.connect(path) as client:
        assert isinstance(client.invoke(Invoke("b", "m.fail")).result(), Error)


def test_cancelling_the_awaiting_task_cancels_the_call(path: Path, session: FakeSession) -> None:
    """The session receives CANCEL for that execution."""

    async def body(client: SessionClient) -> None:
        task = asyncio.ensure_future(client.invoke(Invoke("a", "m.hang")).result())
        await client.query("status")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.query("status")

    with_client(path, body)
    assert session.saw(Cancel) == [Cancel("a")]


def test_a_wait_that_ends_leaves_the_call_running(path: Path, session: FakeSession) -> None:
    """`wait` gives None, no CANCEL is sent, and the result still arrives later."""

    async def body(client: SessionClient) -> None:
        call = client.invoke(Invoke("a", "m.hang"))
        assert await call.wait(0.01) is None
        await client.query("status")
        assert not session.saw(Cancel)
        call.cancel()
        assert isinstance(await call.wait(10), Error)

    with_client(path, body)


def test_a_lost_session_ends_every_wait(path: Path, session: FakeSession) -> None:
    """Calls, items and questions that wait all raise LinkLost, and so do new ones."""

    async def body(client: SessionClient) -> None:
        hanging = asyncio.ensure_future(client.invoke(Invoke("a", "m.hang")).result())

        async def read() -> list[bytes]:
            return [item async for item in client.invoke(Invoke("b", "m.hang")).items()]

        reading = asyncio.ensure_future(read())
        question = asyncio.ensure_future(client.query("never"))
        await client.query("status")
        client.invoke(Invoke("c", "m.vanish"))
        for waiting in (hanging, reading, question):
            with pytest.raises(LinkLost):
                await waiting
        await client.closed
        assert not client.alive
        with pytest.raises(LinkLost):
            client.invoke(Invoke("d", "m.echo"))
        with pytest.raises(LinkLost):
            await client.query("status")

    with_client(path, body)


def test_no_session_says_how_to_start_one(tmp_path: Path) -> None:
    """Dialling a socket nobody listens at raises LinkLost naming `flash run`."""
    with pytest.raises(LinkLost, match="flash run"):
        asyncio.run(SessionClient.connect(tmp_path / "none.sock"))
    with pytest.raises(LinkLost, match="flash run"):
        BlockingClient.connect(tmp_path / "none.sock")


def test_items_come_in_order_under_credits(path: Path, session: FakeSession) -> None:
    """All items arrive; the session was never allowed more than the window ahead of the reader."""

    async def body(client: SessionClient) -> None:
        call = client.invoke(Invoke("a", "m.count", payload=b"1000"))
        assert [int(item) async for item in call.items()] == list(range(1000))
        answer = await call.result()
        assert isinstance(answer, Result)
        assert answer.items == 1000

    with_client(path, body)
    assert sum(credit.items for credit in session.saw(Credit)) >= 1000 - WINDOW


def test_a_reader_that_leaves_cancels_the_generator(path: Path, session: FakeSession) -> None:
    """Breaking out of the loop sends CANCEL."""

    async def take_two(items: AsyncIterator[bytes]) -> list[bytes]:
        return [await anext(items), await anext(items)]

    async def body(client: SessionClient) -> None:
        items = client.invoke(Invoke("a", "m.count", payload=b"1000")).items()
        assert await take_two(items) == [b"0", b"1"]
        await items.aclose()
        await client.query("status")

    with_client(path, body)
    assert session.saw(Cancel) == [Cancel("a")]


def test_questions_are_answered_or_refused(path: Path, session: FakeSession) -> None:
    """A body, an error as its own class, and a followed question until its last answer."""

    async def body(client: SessionClient) -> None:
        assert await client.query("status", what_else=1) == {"ok": True, "what_else": 1}
        with pytest.raises(QueueFull, match="full") as caught:
            await client.query("refuse")
        assert caught.value.retry_after == 2.5
        assert [answer["n"] async for answer in client.follow("follow")] == [0, 1, 2]

    with_client(path, body)
    with BlockingClient.connect(path) as client:
        assert client.query("status", what_else=1) == {"ok": True, "what_else": 1}
        with pytest.raises(QueueFull):
            client.query("refuse")
        assert [answer["n"] for answer in client.follow("follow")] == [0, 1, 2]


def test_a_follower_that_leaves_says_so(path: Path, session: FakeSession) -> None:
    """The session receives a closing question with the same id, so it can stop answering."""

    async def body(client: SessionClient) -> None:
        answers = client.follow("follow", forever=True)
        await anext(answers)
        await answers.aclose()
        await client.query("status")

    with_client(path, body)
    with BlockingClient.connect(path) as client:
        followed = client.follow("follow", forever=True)
        next(followed)
        followed.close()
        client.query("status")
    assert [query.what for query in session.saw(Query)] == ["follow", "close", "status"] * 2


def test_a_payload_over_the_limit_is_refused_before_it_is_sent(
    path: Path, session: FakeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PayloadTooLarge names the limit's variable and the link goes on."""
    monkeypatch.setenv("FLASH_MAX_BODY_BYTES", "100000")

    async def body(client: SessionClient) -> None:
        with pytest.raises(PayloadTooLarge, match="FLASH_MAX_BODY_BYTES"):
            client.invoke(Invoke("a", "m.echo", payload=bytes(100_001)))
        assert isinstance(await client.invoke(Invoke("a", "m.echo", payload=bytes(100_000))).result(), Result)

    with_client(path, body)
    with BlockingClient.connect(path) as client:
        with pytest.raises(PayloadTooLarge):
            client.invoke(Invoke("a", "m.echo", payload=bytes(100_001)))
        assert isinstance(client.invoke(Invoke("a", "m.echo", payload=bytes(100_000))).result(), Result)


def test_many_threads_share_one_blocking_client(path: Path, session: FakeSession) -> None:
    """Each thread gets its own payloads back, whoever of them reads the link."""
    wrong: list[str] = []

    def work(client: BlockingClient, name: str) -> None:
        for number in range(100):
            payload = f"{name}.{number}".encode() * (1 if number % 20 else 30_000)
            answer = client.invoke(Invoke(f"{name}.{number}", "m.echo", payload=payload)).result()
            if not isinstance(answer, Result) or answer.payload != payload:
                wrong.append(f"{name}.{number}")

    with BlockingClient.connect(path) as client:
        threads = [threading.Thread(target=work, args=(client, f"t{n}")) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not wrong


def test_blocking_items_and_waits(path: Path, session: FakeSession) -> None:
    """Items stream under credits; a wait that ends leaves the call; leaving the loop cancels."""
    with BlockingClient.connect(path) as client:
        call = client.invoke(Invoke("a", "m.count", payload=b"500"))
        assert call.wait_started(10)
        assert [int(item) for item in call.items()] == list(range(500))
        assert call.result().execution == "a"
        assert client.invoke(Invoke("b", "m.hang")).wait(0.01) is None
        items = client.invoke(Invoke("c", "m.count", payload=b"500")).items()
        next(items)
        items.close()
        client.query("status")
    assert session.saw(Cancel) == [Cancel("c")]


def test_a_lost_session_ends_every_blocking_wait(path: Path, session: FakeSession) -> None:
    """Threads that wait for answers raise LinkLost when the session goes away."""
    outcomes: list[type[BaseException]] = []

    def hang(client: BlockingClient, execution: str) -> None:
        try:
            client.invoke(Invoke(execution, "m.hang")).result()
        except LinkLost as error:
            outcomes.append(type(error))

    with BlockingClient.connect(path) as client:
        threads = [threading.Thread(target=hang, args=(client, f"e{n}")) for n in range(3)]
        for thread in threads:
            thread.start()
        session.until(lambda: len(session.saw(Invoke)) == 3)
        with pytest.raises(LinkLost):
            client.invoke(Invoke("v", "m.vanish")).result()
        for thread in threads:
            thread.join(10)
        assert not client.alive
    assert outcomes == [LinkLost] * 3


def test_closing_wakes_the_threads_that_wait(path: Path, session: FakeSession) -> None:
    """`close` from another thread ends a blocked call with LinkLost."""
    client = BlockingClient.connect(path)
    outcomes: list[str] = []

    def hang() -> None:
        try:
            client.invoke(Invoke("a", "m.hang")).result()
        except LinkLost as error:
            outcomes.append(str(error))

    thread = threading.Thread(target=hang)
    thread.start()
    session.until(lambda: len(session.saw(Invoke)) == 1)
    client.close()
    thread.join(10)
    assert len(outcomes) == 1


def test_ctrl_c_cancels_the_blocking_call(path: Path, session: FakeSession) -> None:
    """KeyboardInterrupt leaves `result()` after CANCEL was sent, and the client stays usable."""

    def interrupt() -> None:
        session.until(lambda: len(session.saw(Invoke)) == 1 and client._reading.locked())
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with BlockingClient.connect(path) as client:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.invoke(Invoke("a", "m.hang")).result()
        thread.join(10)
        assert client.query("status") == {"ok": True}
    assert session.saw(Cancel) == [Cancel("a")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_use_its_parents_connection(path: Path, session: FakeSession) -> None:
    """In the child calls raise LinkLost and closing does not disturb the parent."""
    with BlockingClient.connect(path) as client:
        client.query("status")
        reader, writer = os.pipe()
        session.until(lambda: True)
        pid = os.fork()
        if pid == 0:
            try:
                client.invoke(Invoke("a", "m.echo"))
            except LinkLost:
                os.write(writer, b"lost")
            client.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert os.read(reader, 10) == b"lost"
        os.close(reader)
        os.close(writer)
        assert client.query("status") == {"ok": True}
