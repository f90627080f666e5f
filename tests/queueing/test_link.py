"""The session's end of the link, over a real socket: who may speak, what is asked, what followers get."""

import asyncio
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from queueing_fixtures import FakeSource, SlowStore, plan_of

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.store import StoreUnavailable
from flashmesh.functions.errors import (
    ExecutionNotFound,
    FlashmeshError,
    FunctionNotFound,
    IdempotencyConflict,
    LinkLost,
    ValidationError,
)
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing import link as link_module
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire.client import SessionClient
from flashmesh.wire.codec import encode
from flashmesh.wire.connection import Link, dial
from flashmesh.wire.frames import (
    PROTOCOL_VERSION,
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
    WorkerGone,
)


class EchoWorker:
    """A worker that answers with the payload, or does what `body` says."""

    def __init__(self, body: Callable[["EchoWorker", Invoke], None] | None = None) -> None:
        self.body = body or EchoWorker.echo
        self.seen: list[AnyFrame] = []
        self.link: Link

    async def start(self, path: Path, slots: int = 1) -> "EchoWorker":
        hello = Hello(PROTOCOL_VERSION, "worker", "m", "b1", "m/1.0-7", os.getpid())
        self.link = await dial(path, self.take, lambda link, error: None, hello, Ready(slots))
        return self

    def take(self, link: Link, frame: AnyFrame) -> None:
        self.seen.append(frame)
        if isinstance(frame, Invoke):
            self.body(self, frame)

    def echo(self, frame: Invoke) -> None:
        self.link.send(Started(frame.execution, frame.attempt))
        self.link.send(Result(frame.execution, frame.attempt, 1, run_us=10, payload=frame.payload))

    def count_to_three(self, frame: Invoke) -> None:
        self.link.send(Started(frame.execution, frame.attempt))
        for number in range(3):
            self.link.send(Chunk(frame.execution, frame.attempt, True, True, b"%d" % number))
        self.link.send(Result(frame.execution, frame.attempt, 1, run_us=10, items=3))

    def hold(self, frame: Invoke) -> None:
        self.link.send(Started(frame.execution, frame.attempt))


class Scene:
    """A served socket with a dispatcher behind it."""

    def __init__(self, folder: Path, store: MemoryStore | None = None) -> None:
        self.path = folder / "run" / "link.sock"
        self.source = FakeSource()
        self.lines: list[Log] = []
        self.infos: list[Any] = []
        self.problems: list[Any] = []
        self.dispatcher = Dispatcher(
            store=store or MemoryStore(),
            clock=LoopClock(asyncio.get_running_loop()),
            source=self.source,
            log=lambda event, fields: None,
        )
        self.dispatcher.declare(plan_of())
        self.server = LinkServer(
            self.path,
            self.dispatcher,
            queries={"fail": self.fail, "count": self.count},
            on_template=lambda endpoint, info: self.infos.append((endpoint, info)),
            on_log=self.lines.append,
            log=lambda event, fields: self.problems.append((event, fields)),
        )

    async def fail(self, arguments: dict[str, Any], answers: Any) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    async def count(self, arguments: dict[str, Any], answers: Any) -> None:
        for number in range(3):
            answers({"n": number})

    async def template(self) -> Link:
        hello = Hello(PROTOCOL_VERSION, "template", "m", "b1", pid=os.getpid())
        return await dial(self.path, lambda link, frame: None, lambda link, error: None, hello)


def run(folder: Path, story: Callable[[Scene], Awaitable[None]], store: MemoryStore | None = None) -> None:
    async def play() -> None:
        scene = Scene(folder, store)
        await scene.server.start()
        try:
            async with asyncio.timeout(20):
                await story(scene)
        finally:
            await scene.server.close()

    asyncio.run(play())


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of other objects, which have no event to wait for
            await asyncio.sleep(0.001)


def invoke(execution: str, payload: bytes = b"{}", **meta: Any) -> Invoke:
    return Invoke(execution, "m.f", meta=meta, payload=payload)


def test_the_socket_is_private_and_gone_after_close(tmp_path: Path) -> None:
    """Directory 0700, socket 0600; nothing stays."""

    async def story(scene: Scene) -> None:
        assert stat.S_IMODE(scene.path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(scene.path.stat().st_mode) == 0o600

    run(tmp_path, story)
    assert not (tmp_path / "run" / "link.sock").exists()


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_call_goes_through_client_session_and_worker_and_back(tmp_path: Path, size: int) -> None:
    """The payload arrives and returns byte for byte, whatever its size."""

    async def story(scene: Scene) -> None:
        await EchoWorker().start(scene.path)
        async with await SessionClient.connect(scene.path) as client:
            outcome = await client.invoke(invoke("e1", b"x" * size)).result()
        assert isinstance(outcome, Result) and outcome.payload == b"x" * size

    run(tmp_path, story)


def test_a_refused_call_is_answered_with_its_error(tmp_path: Path) -> None:
    """An unknown function is FUNCTION_NOT_FOUND, certainly not run."""

    async def story(scene: Scene) -> None:
        async with await SessionClient.connect(scene.path) as client:
            outcome = await client.invoke(Invoke("e1", "m.nope")).result()
        assert isinstance(outcome, Error) and (outcome.code, outcome.ran) == ("FUNCTION_NOT_FOUND", False)

    run(tmp_path, story)


def test_accepted_says_as_which_execution_a_call_was_taken_also_while_its_payload_is_on_its_way(tmp_path: Path) -> None:
    """A large payload is overtaken by the question, which waits for it; a repeated key names the first call."""

    async def story(scene: Scene) -> None:
        async with await SessionClient.connect(scene.path) as client:
            client.invoke(invoke("e1", b"x" * 5_000_000, mode="async", idempotency_key="k"))
            assert await client.query("accepted", id="e1") == {"id": "e1", "status": "QUEUED"}
            client.invoke(invoke("e2", b"x" * 5_000_000, mode="async", idempotency_key="k"))
            assert (await client.query("accepted", id="e2"))["id"] == "e1"
            client.invoke(invoke("e3", b"y", mode="async", idempotency_key="k"))
            with pytest.raises(IdempotencyConflict):
                await client.query("accepted", id="e3")
            client.invoke(Invoke("e4", "m.nope"))
            with pytest.raises(FunctionNotFound):
                await client.query("accepted", id="e4")

    run(tmp_path, story)


def test_accepted_is_answered_when_the_call_is_stored_and_not_before(tmp_path: Path) -> None:
    """A commit that fails refuses the call, and nothing of it is left."""
    store = SlowStore(now=time.time)

    async def story(scene: Scene) -> None:
        answers: list[AnyFrame] = []
        hello = Hello(PROTOCOL_VERSION, "client")
        link = await dial(scene.path, lambda _, frame: answers.append(frame), lambda *_: None, hello)
        for number, (name, error) in enumerate((("good", None), ("bad", StoreUnavailable("disk full")))):
            link.send(invoke(name, mode="async"))
            link.send(Query(number, "accepted", {"id": name}))
            await until(lambda name=name: name in {execution.id for execution in store.unfinished()})
            await asyncio.sleep(0)
            assert not [frame for frame in answers if isinstance(frame, Answer) and frame.id == number]
            store.commit(error)
            await until(lambda number=number: [f for f in answers if isinstance(f, Answer) and f.id == number])
        good, bad = [frame for frame in answers if isinstance(frame, Answer)]
        assert (good.body["id"], good.error) == ("good", None)
        assert bad.error is not None and bad.error["code"] == "STORE_UNAVAILABLE"
        with pytest.raises(ExecutionNotFound):
            store.get(ExecutionId("bad"))

    run(tmp_path, story, store)


def test_a_client_that_goes_away_does_not_end_its_execution(tmp_path: Path) -> None:
    """Another client finds the result."""

    async def story(scene: Scene) -> None:
        async with await SessionClient.connect(scene.path) as client:
            client.invoke(invoke("e1", b"7"))
            await client.query("accepted", id="e1")
        await EchoWorker().start(scene.path)
        async with await SessionClient.connect(scene.path) as other:
            record = await other.query("await", id="e1")
        assert (record["status"], record["payload"]) == ("SUCCESS", b"7")

    run(tmp_path, story)


def test_a_stream_whose_only_reader_goes_away_is_cancelled(tmp_path: Path) -> None:
    """The worker is told to stop."""

    async def story(scene: Scene) -> None:
        worker = await EchoWorker(EchoWorker.hold).start(scene.path)
        client = await SessionClient.connect(scene.path)
        invocation = client.invoke(invoke("e1", stream=True))
        await invocation.started.wait()
        await client.close()
        await until(lambda: Cancel("e1") in worker.seen)
        assert scene.source.cancelled == ["e1"]

    run(tmp_path, story)


def test_items_of_a_stream_arrive_as_they_come_and_their_credits_go_back(tmp_path: Path) -> None:
    """What the reader consumes, the worker may send again."""

    async def story(scene: Scene) -> None:
        worker = await EchoWorker(EchoWorker.count_to_three).start(scene.path)
        async with await SessionClient.connect(scene.path) as client:
            invocation = client.invoke(invoke("e1", stream=True))
            assert [item async for item in invocation.items()] == [b"0", b"1", b"2"]
        del worker

    run(tmp_path, story)


def test_stream_hands_out_each_item_of_an_async_generator_once(tmp_path: Path) -> None:
    """It waits for something new, then gives what no reader has had; at the end it says so."""

    async def story(scene: Scene) -> None:
        worker = await EchoWorker(EchoWorker.hold).start(scene.path)
        async with await SessionClient.connect(scene.path) as client:
            client.invoke(invoke("e1", mode="async"))
            await client.query("accepted", id="e1")
            waiting = asyncio.ensure_future(client.query("stream", id="e1", wait=10))
            await until(lambda: scene.dispatcher._calls["e1"].watchers)  # type: ignore[index]
            frame = next(frame for frame in worker.seen if isinstance(frame, Invoke))
            worker.link.send(Chunk("e1", frame.attempt, True, True, b"1"))
            first = await waiting
            assert (first["items"], first["next"], first["status"], first["done"]) == ([b"1"], 1, "RUNNING", False)
            worker.link.send(Chunk("e1", frame.attempt, True, True, b"2"))
            worker.link.send(Result("e1", frame.attempt, 1, items=2))
            await client.query("await", id="e1")
            second = await client.query("stream", id="e1")
            assert (second["items"], second["status"], second["done"]) == ([b"2"], "SUCCESS", True)
            assert (await client.query("stream", id="e1"))["items"] == []
            assert (await client.query("execution", id="e1", payload=True))["payload"] == b"[1,2]"

    run(tmp_path, story)


def test_questions_about_executions_show_state_times_and_errors(tmp_path: Path) -> None:
    """`execution`, `executions`, `cancel` and `status` in one life."""

    async def story(scene: Scene) -> None:
        async with await SessionClient.connect(scene.path) as client:
            client.invoke(invoke("e1"))
            assert (await client.query("execution", id="e1"))["status"] == "QUEUED"
            assert (await client.query("status"))["endpoints"]["m"]["queued"] == 1
            record = await client.query("cancel", id="e1")
            assert (record["status"], record["error"]["code"]) == ("CANCELLED", "CANCELLED")
            listed = (await client.query("executions", status="cancelled"))["executions"]
            assert [one["id"] for one in listed] == ["e1"]
            with pytest.raises(ExecutionNotFound):
                await client.query("execution", id="nobody")
            with pytest.raises(ValidationError):
                await client.query("execution")

    run(tmp_path, story)


def test_a_question_that_fails_or_is_unknown_answers_so_and_the_link_goes_on(tmp_path: Path) -> None:
    """A bug in a handler costs its question only."""

    async def story(scene: Scene) -> None:
        async with await SessionClient.connect(scene.path) as client:
            with pytest.raises(FlashmeshError, match="a bug"):
                await client.query("fail")
            with pytest.raises(ValidationError, match="no question"):
                await client.query("nonsense")
            assert [body["n"] async for body in client.follow("count")] == [0, 1, 2]

    run(tmp_path, story)


def line(text: str, function: str = "m.f", execution: str = "e1") -> Log:
    return Log("m", "m/1.0-7", "stdout", text, function, execution)


def test_followers_get_the_last_lines_and_then_every_new_one_that_passes_their_filter(tmp_path: Path) -> None:
    """History first, live after, other functions never."""

    async def story(scene: Scene) -> None:
        template = await scene.template()
        for frame in (line("one"), line("other", "m.g"), line("two")):
            template.send(frame)
        await until(lambda: len(scene.lines) == 3)
        async with await SessionClient.connect(scene.path) as client:
            follower = client.follow("follow_logs", function="f", tail=1)
            first = await anext(follower)
            assert [entry["text"] for entry in first["lines"]] == ["two"]
            await until(lambda: scene.server.logbook._followers)
            template.send(line("no", "m.g"))
            template.send(line("three"))
            assert [entry["text"] for entry in (await anext(follower))["lines"]] == ["three"]
            await follower.aclose()  # type: ignore[attr-defined]
            await until(lambda: not scene.server.logbook._followers)

    run(tmp_path, story)


def test_a_follower_that_does_not_read_loses_lines_and_is_told_how_many(tmp_path: Path) -> None:
    """The session's memory does not grow with a reader's sleep."""

    async def story(scene: Scene) -> None:
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(str(scene.path))
            raw.setblocking(False)
            raw.send(encode(Hello(PROTOCOL_VERSION, "client")))
            from flashmesh.wire.frames import Query

            raw.send(encode(Query(1, "follow_logs")))
            await until(lambda: scene.server.logbook._followers)
            for number in range(3000):
                scene.server.logbook.add(line(f"{number} " + "x" * 500))
                if number % 10 == 0:
                    await asyncio.sleep(0)
            (link,) = scene.server._links
            assert link.transport is not None and link.transport.get_write_buffer_size() < 1_000_000

    run(tmp_path, story)


def test_templates_are_heard_by_dispatcher_and_session(tmp_path: Path) -> None:
    """HELLO gives the source its line, READY and WORKER_GONE reach those concerned."""

    async def story(scene: Scene) -> None:
        template = await scene.template()
        template.send(Ready(0, {"state": "ready", "build": "b1"}))
        template.send(WorkerGone("m/1.0-7", 7, 0))
        await until(lambda: scene.infos)
        assert scene.infos == [("m", {"state": "ready", "build": "b1"})]
        assert list(scene.source.templates) == ["m"]
        template.close()
        await until(lambda: not scene.source.templates)

    run(tmp_path, story)


@pytest.mark.parametrize(
    "first", [encode(Hello(PROTOCOL_VERSION + 1, "client")), encode(Credit(free=1)), b"GET / HTTP/1.1\r\n\r\n"]
)
def test_a_connection_that_does_not_say_hello_properly_is_closed(tmp_path: Path, first: bytes) -> None:
    """Wrong version, wrong first frame, no frame at all: closed, and noted."""

    async def story(scene: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(str(scene.path))
        writer.write(first)
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass
        writer.close()
        await until(lambda: scene.problems)

    run(tmp_path, story)


def test_a_connection_that_stays_silent_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HELLO has a time limit."""
    monkeypatch.setattr(link_module, "HELLO_S", 0.05)

    async def story(scene: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(str(scene.path))
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass
        writer.close()

    run(tmp_path, story)


def test_a_connection_of_another_user_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who connects; only the session's own user may."""
    monkeypatch.setattr(link_module.os, "getuid", lambda: 424242)

    async def story(scene: Scene) -> None:
        client = await SessionClient.connect(scene.path)
        await until(lambda: client.closed.done())
        with pytest.raises(LinkLost):
            client.invoke(invoke("e1"))
        await client.close()

    run(tmp_path, story)


def test_a_worker_of_an_endpoint_that_is_not_served_is_sent_away(tmp_path: Path) -> None:
    """Its link is closed, so it leaves."""

    async def story(scene: Scene) -> None:
        lost = asyncio.Event()
        hello = Hello(PROTOCOL_VERSION, "worker", "gone", "b1", "gone/1.0-7", 7)
        await dial(scene.path, lambda link, frame: None, lambda link, error: lost.set(), hello, Ready(1))
        await asyncio.wait_for(lost.wait(), 5)

    run(tmp_path, story)


def test_a_workers_broken_connection_fails_the_call_it_ran(tmp_path: Path) -> None:
    """The client hears within a second."""

    async def story(scene: Scene) -> None:
        worker = await EchoWorker(EchoWorker.hold).start(scene.path)
        async with await SessionClient.connect(scene.path) as client:
            invocation = client.invoke(invoke("e1"))
            await invocation.started.wait()
            worker.link.abort()
            outcome = await invocation.result()
        assert isinstance(outcome, Error) and outcome.code == "WORKER_LOST"

    run(tmp_path, story)
