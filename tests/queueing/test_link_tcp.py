"""The link over TCP: who is admitted, and what a worker may say about calls that are not its own."""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from queueing_fixtures import FakeSource, plan_of

from flashmesh.executions.memory import MemoryStore
from flashmesh.gateway.access.certificates import own_certificate
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire import tls
from flashmesh.wire.client import SessionClient
from flashmesh.wire.connection import Link, dial, dial_tcp
from flashmesh.wire.frames import PROTOCOL_VERSION, AnyFrame, Error, Hello, Invoke, Ready, Result, Started

HOST = "127.0.0.1"


class Scene:
    """A session that listens at a Unix socket and at a TCP port with TLS."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "run" / "link.sock"
        self.asked: list[Hello] = []
        self.problems: list[tuple[str, dict[str, Any]]] = []
        self.dispatcher = Dispatcher(
            store=MemoryStore(),
            clock=LoopClock(asyncio.get_running_loop()),
            source=FakeSource(),
            log=lambda event, fields: None,
        )
        self.dispatcher.declare(plan_of())
        self.server = LinkServer(
            self.path,
            self.dispatcher,
            log=lambda event, fields: self.problems.append((event, dict(fields))),
            check_token=self.check,
        )
        certificate = own_certificate(folder, [HOST])
        self.context = tls.server_context(certificate.cert, certificate.key)
        text = certificate.cert.read_text()
        self.client_context = tls.client_context(ca_data=text[text.rindex("-----BEGIN CERTIFICATE-----") :])
        self.port = 0

    def check(self, hello: Hello) -> str | None:
        self.asked.append(hello)
        return None if hello.token == f"for {hello.endpoint} {hello.build}" else "its token is for another endpoint."

    async def start(self) -> None:
        await self.server.start()
        self.port = await self.server.listen(HOST, 0, self.context)

    async def worker(self, name: str, *, token: str = "for m b1", slots: int = 1) -> "TcpWorker":
        worker = TcpWorker()
        hello = Hello(PROTOCOL_VERSION, "worker", "m", "b1", name, os.getpid(), token=token)
        worker.link = await dial_tcp(
            HOST, self.port, self.client_context, worker.take, worker.gone, hello, Ready(slots)
        )
        return worker


class TcpWorker:
    """A worker elsewhere: keeps its calls until told."""

    def __init__(self) -> None:
        self.calls: list[Invoke] = []
        self.called = asyncio.Event()
        self.lost = asyncio.Event()
        self.link: Link

    def take(self, link: Link, frame: AnyFrame) -> None:
        if isinstance(frame, Invoke):
            self.calls.append(frame)
            link.send(Started(frame.execution, frame.attempt))
            self.called.set()

    def gone(self, link: Link, error: Exception | None) -> None:
        self.lost.set()

    async def call(self) -> Invoke:
        await asyncio.wait_for(self.called.wait(), 10)
        return self.calls[0]


def run(folder: Path, story: Callable[[Scene], Awaitable[None]]) -> None:
    async def play() -> None:
        scene = Scene(folder)
        await scene.start()
        try:
            async with asyncio.timeout(20):
                await story(scene)
        finally:
            await scene.server.close()

    asyncio.run(play())


def test_a_worker_elsewhere_serves_calls_with_its_token(tmp_path: Path) -> None:
    """HELLO carries the token, the check sees endpoint and build, and the call is answered over TLS."""

    async def story(scene: Scene) -> None:
        worker = await scene.worker("away")
        client = await SessionClient.connect(scene.path)
        call = client.invoke(Invoke("x1", "m.f", payload=b"1"))
        frame = await worker.call()
        worker.link.send(Result(frame.execution, frame.attempt, 1, payload=b"2"))
        answer = await call.result()
        assert isinstance(answer, Result)
        assert answer.payload == b"2"
        assert [(hello.endpoint, hello.build, hello.token) for hello in scene.asked] == [("m", "b1", "for m b1")]
        worker.link.close()
        await client.close()

    run(tmp_path, story)


def test_without_the_right_token_nobody_gets_calls(tmp_path: Path) -> None:
    """A worker, template or client with another endpoint's token, or none, is dropped before it says anything else."""

    async def story(scene: Scene) -> None:
        for role in ("worker", "template", "client"):
            other = TcpWorker()
            hello = Hello(PROTOCOL_VERSION, role, "m", "b1", "w", token="for n b1")  # type: ignore[arg-type]
            link = await dial_tcp(HOST, scene.port, scene.client_context, other.take, other.gone, hello, Ready(1))
            await asyncio.wait_for(other.lost.wait(), 10)
            assert not link.is_open
        assert [event for event, _ in scene.problems] == ["link_protocol_error"] * 3
        assert "its token is for another endpoint" in scene.problems[0][1]["reason"]
        assert "for n b1" not in str(scene.problems), "a token is never logged"

    run(tmp_path, story)


def test_the_kernels_word_is_enough_on_this_machine(tmp_path: Path) -> None:
    """Over the Unix socket no token is asked for."""

    async def story(scene: Scene) -> None:
        worker = TcpWorker()
        hello = Hello(PROTOCOL_VERSION, "worker", "m", "b1", "here", os.getpid())
        worker.link = await dial(scene.path, worker.take, worker.gone, hello, Ready(1))
        client = await SessionClient.connect(scene.path)
        client.invoke(Invoke("x1", "m.f", payload=b"1"))
        await worker.call()
        assert scene.asked == []
        worker.link.close()
        await client.close()

    run(tmp_path, story)


def test_a_port_without_a_check_admits_nobody(tmp_path: Path) -> None:
    """Forgetting the check does not open the door."""

    async def story(scene: Scene) -> None:
        scene.server._check_token = None
        worker = await scene.worker("away")
        await asyncio.wait_for(worker.lost.wait(), 10)

    run(tmp_path, story)


def test_a_link_cannot_answer_for_calls_it_was_not_given(tmp_path: Path) -> None:
    """Results and failures of another worker's call, of another attempt or of none change nothing."""

    async def story(scene: Scene) -> None:
        owner = await scene.worker("owner")
        client = await SessionClient.connect(scene.path)
        call = client.invoke(Invoke("mine", "m.f", payload=b"1"))
        frame = await owner.call()
        intruder = await scene.worker("intruder")
        intruder.link.send(Result("mine", frame.attempt, 1, payload=b"forged"))
        intruder.link.send(Error("mine", "USER_ERROR", frame.attempt, 1))
        intruder.link.send(Result("never heard of", 1, 1, payload=b"forged"))
        owner.link.send(Result("mine", frame.attempt + 1, 1, payload=b"another attempt"))
        second = client.invoke(Invoke("second", "m.f", payload=b"1"))
        await intruder.call()  # what it said before has been read
        assert not call.done.done()
        assert not scene.dispatcher.execution(ExecutionId("mine")).ended
        owner.link.send(Result("mine", frame.attempt, 1, payload=b"true"))
        answer = await call.result()
        assert isinstance(answer, Result)
        assert answer.payload == b"true"
        intruder.link.send(Result("second", intruder.calls[0].attempt, 1))
        await second.result()
        for worker in (owner, intruder):
            worker.link.close()
        await client.close()

    run(tmp_path, story)


def test_a_large_call_is_passed_on_as_it_came(tmp_path: Path) -> None:
    """From a client of this machine to a worker of this machine, and its result back: megabytes arrive unchanged."""

    async def story(scene: Scene) -> None:
        worker = TcpWorker()
        hello = Hello(PROTOCOL_VERSION, "worker", "m", "b1", "here", os.getpid())
        worker.link = await dial(scene.path, worker.take, worker.gone, hello, Ready(1))
        client = await SessionClient.connect(scene.path)
        body = os.urandom(3_000_000)
        call = client.invoke(Invoke("x1", "m.f", payload=body))
        frame = await worker.call()
        same = bytes(frame.payload) == body
        assert same
        worker.link.send(Result(frame.execution, frame.attempt, 1, payload=frame.payload))
        answer = await call.result()
        assert isinstance(answer, Result)
        same = answer.payload == body
        assert same
        worker.link.close()
        await client.close()

    run(tmp_path, story)


def test_closing_the_session_ends_its_port(tmp_path: Path) -> None:
    """Nobody answers there afterwards."""

    async def story(scene: Scene) -> None:
        worker = await scene.worker("away")
        await scene.server.close()
        await asyncio.wait_for(worker.lost.wait(), 10)
        with socket.socket() as probe:
            assert probe.connect_ex((HOST, scene.port)) != 0

    run(tmp_path, story)
