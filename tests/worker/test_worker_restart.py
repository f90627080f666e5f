"""A real worker and the real dispatcher behind a real socket, over the death and return of the server."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from worker_fixtures import Session, Worker, session

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.record import Execution
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId, FunctionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire.frames import Hello, Invoke, Result

SOURCE = """
    import os, time
    from flashmesh import LiveServerless, remote

    @remote(LiveServerless(name="own"))
    def echo(x):
        return x

    @remote(LiveServerless(name="own"))
    def until_file(path, log):
        with open(log, "a") as file:
            file.write("ran\\n")
        while not os.path.exists(path):
            time.sleep(0.002)
        return "finished"
    """
FUNCTIONS = frozenset({FunctionId("own.echo"), FunctionId("own.until_file")})


class NoSource:
    """Workers are there already."""

    def ensure(self, endpoint: EndpointName) -> None: ...
    def scale(self, endpoint: EndpointName, workers: int) -> None: ...
    def template_linked(self, endpoint: EndpointName, hello: Hello, port: Any) -> None: ...
    def template_unlinked(self, endpoint: EndpointName, port: Any) -> None: ...
    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None: ...


class Server:
    """What is left of `flash server` without its HTTP faces. `crash`: nothing is drained or written any more."""

    def __init__(self, folder: Path, build: str, unfinished: list[Execution]) -> None:
        self.store = MemoryStore()
        for execution in unfinished:
            self.store.create(execution)
        self.dispatcher = Dispatcher(
            store=self.store,
            clock=LoopClock(asyncio.get_running_loop()),
            source=NoSource(),
            log=lambda event, fields: None,
        )
        self.dispatcher.declare(
            EndpointPlan(name=EndpointName("own"), build=BuildId(build), functions=FUNCTIONS, workers_max=1)
        )
        self.dispatcher.restore(self.store.unfinished())
        self.link = LinkServer(folder / "link.sock", self.dispatcher)

    async def crash(self) -> list[Execution]:
        left = [msgspec.structs.replace(execution) for execution in self.store.unfinished()]
        await self.link.close()
        return left

    async def ended(self, execution: str) -> Execution:
        async with asyncio.timeout(20):
            while not self.store.get(ExecutionId(execution)).ended:  # noqa: ASYNC110 - it has no event to wait for
                await asyncio.sleep(0.002)
        return self.store.get(ExecutionId(execution))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - conditions of other processes
            await asyncio.sleep(0.002)


def play(story: Callable[[Session, Worker, Server], Awaitable[None]]) -> None:
    async def scene() -> None:
        with session() as here:
            here.stop_listening()
            worker = here.worker(SOURCE, dial=False)
            server = Server(here.folder, worker.spec.build, [])
            await server.link.start()
            await story(here, worker, server)

    asyncio.run(scene())


def later(execution: str, function: str, payload: bytes) -> Invoke:
    return Invoke(execution, f"own.{function}", meta={"mode": "async"}, payload=payload)


def test_a_call_that_runs_while_the_server_dies_and_returns_runs_once() -> None:
    """Its worker goes on, the restarted server takes it over, and its result is stored under its attempt."""

    async def story(here: Session, worker: Worker, server: Server) -> None:
        log, go = here.folder / "log", here.folder / "go"
        payload = f'{{"path": "{go}", "log": "{log}"}}'.encode()
        server.dispatcher.submit(later("e1", "until_file", payload), None, kind="async")
        server.dispatcher.submit(later("e2", "echo", b'{"x": 1}'), None, kind="async")
        await until(lambda: server.store.get(ExecutionId("e1")).status == "RUNNING" and log.exists())
        left = await server.crash()
        assert [(execution.id, str(execution.status)) for execution in left] == [("e1", "RUNNING"), ("e2", "QUEUED")]
        after = Server(here.folder, worker.spec.build, left)
        await after.link.start()
        go.touch()
        one, two = await after.ended("e1"), await after.ended("e2")
        assert (one.result, one.attempt, two.result) == (b'"finished"', 1, b"1")
        assert log.read_text() == "ran\n"
        await after.link.close()

    play(story)


def test_a_result_that_came_while_the_server_was_away_is_stored_by_the_next() -> None:
    """The worker holds it until it is acknowledged."""

    async def story(here: Session, worker: Worker, server: Server) -> None:
        log, go = here.folder / "log", here.folder / "go"
        payload = f'{{"path": "{go}", "log": "{log}"}}'.encode()
        server.dispatcher.submit(later("e1", "until_file", payload), None, kind="async")
        await until(lambda: server.store.get(ExecutionId("e1")).status == "RUNNING" and log.exists())
        left = await server.crash()
        await asyncio.sleep(0)
        assert server.store.get(ExecutionId("e1")).status == "RUNNING", "a server that goes judges nobody lost"
        go.touch()
        await until(lambda: worker.record.head().free == 1)
        after = Server(here.folder, worker.spec.build, left)
        await after.link.start()
        assert (await after.ended("e1")).result == b'"finished"'
        assert log.read_text() == "ran\n"
        await after.link.close()

    play(story)


def test_many_calls_in_flight_are_all_answered_once() -> None:
    """Fast ones, sent ahead, in a process of their own; each caller gets its own payload back."""

    async def story(here: Session, worker: Worker, server: Server) -> None:
        answers: dict[str, bytes] = {}
        most = 0

        class Caller:
            def send(self, frame: Any) -> None:
                if isinstance(frame, Result):
                    assert frame.execution not in answers
                    answers[frame.execution] = frame.payload

        for number in range(600):
            frame = Invoke(f"e{number}", "own.echo", payload=b'{"x": %d}' % number)
            server.dispatcher.submit(frame, Caller())
        held = server.dispatcher._lanes[EndpointName("own")].slots.workers
        while len(answers) < 600:
            most = max(most, *(len(one.calls) for one in held.values()), 0) if held else most
            await asyncio.sleep(0)
        assert answers == {f"e{number}": b"%d" % number for number in range(600)}
        assert most > 1, "nothing was sent ahead"
        await server.link.close()

    play(story)
