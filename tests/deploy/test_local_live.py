"""The local target with real processes: a project's file in, answers out, nothing left behind."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flashmesh.deploy.local.environments import Environments
from flashmesh.deploy.local.target import LocalTarget
from flashmesh.deploy.local.volumes import Volumes
from flashmesh.executions.memory import MemoryStore
from flashmesh.kit.ids import new_execution_id
from flashmesh.project.closure import Closures
from flashmesh.project.model import Project
from flashmesh.project.scan import scan
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire.client import SessionClient
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import Error, Invoke, Log, Result
from flashmesh.worker.keeper.client import Keeper

SOURCE = """
import os
import signal
import time

from flashmesh import CpuLiveServerless, remote

config = CpuLiveServerless(name="m", workersMax=2, execution_timeout_ms={limit})


@remote(config)
def hello(name: str = "you"):
    print("greeting", name)
    return {{"hello": name, "pid": os.getpid(), "version": {version}}}


@remote(config)
def count(n: int):
    yield from range(n)


@remote(config)
def sleep(seconds: float):
    time.sleep(seconds)
    return "slept"


@remote(config)
def die():
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Home:
    """A session's inside: dispatcher, link, target, keeper, over a project of one file."""

    def __init__(self, folder: Path, pipe: int, source: str) -> None:
        self.root = folder / "project"
        self.root.mkdir()
        self.write(source)
        run = folder / "run"
        run.mkdir(mode=0o700)
        (run / "manifest.json").write_text("{}")
        self.lines: list[Log] = []
        self.events: list[tuple[str, Any]] = []
        self.dispatcher = Dispatcher(
            store=MemoryStore(),
            clock=LoopClock(asyncio.get_running_loop()),
            source=None,  # type: ignore[arg-type]
            log=self.log,
        )
        self.target = LocalTarget(
            runtime_dir=run,
            start_keeper=lambda on_event: self.start_keeper(pipe, run, on_event),
            dispatcher=self.dispatcher,
            link_path=run / "link.sock",
            manifest_path=run / "manifest.json",
            environments=Environments(folder / "home", on_progress=lambda *_: None, allow_install=False),
            volumes=Volumes(folder / "home"),
            gpus=tuple,
            notice=lambda *_: None,
            log=self.log,
        )
        self.dispatcher.source = self.target
        self.server = LinkServer(run / "link.sock", self.dispatcher, on_log=self.lines.append, log=self.log)
        self.path = run / "link.sock"
        self.client: SessionClient
        self.keepers: list[Keeper] = []

    def log(self, event: str, fields: Any) -> None:
        self.events.append((event, dict(fields)))

    async def start_keeper(self, pipe: int, run: Path, on_event: Any) -> Keeper:
        self.keepers.append(await Keeper.start(pipe, run, on_event))
        return self.keepers[-1]

    def write(self, source: str) -> None:
        (self.root / "m.py").write_text(source)

    async def load(self) -> None:
        """Declare, or update, what is on disk."""
        project: Project = scan(self.root)
        builds = Closures(project).builds()
        for resource in project.resources:
            await self.target.update(resource, project, builds[resource.name])

    async def call(self, function: str, **meta: Any) -> Result | Error:
        arguments = meta.pop("arguments", {})
        payload = json.dumps({"input": arguments}).encode()
        invocation = self.client.invoke(Invoke(new_execution_id(), f"m.{function}", meta=meta, payload=payload))
        return await invocation.result()

    async def value(self, function: str, **meta: Any) -> Any:
        answer = await self.call(function, **meta)
        assert isinstance(answer, Result), unpack(answer.payload)
        return json.loads(answer.payload)

    async def until(self, condition: Callable[[], Any]) -> None:
        while not condition():  # noqa: ASYNC110 - conditions of other objects, which have no event to wait for
            await asyncio.sleep(0.002)


def play(folder: Path, story: Callable[[Home], Awaitable[None]], *, limit: int = 0, source: str | None = None) -> None:
    pipe, held = os.pipe()

    async def run() -> None:
        home = Home(folder, pipe, source or SOURCE.format(limit=limit, version=1))
        await home.server.start()
        try:
            await home.load()
            home.client = await SessionClient.connect(home.path)
            async with asyncio.timeout(60):
                await story(home)
        finally:
            await home.client.close()
            await home.target.close(1)
            await home.server.close()
        assert not processes_of(folder), "something was left behind"

    try:
        asyncio.run(run())
    finally:
        os.close(pipe)
        os.close(held)


def processes_of(folder: Path) -> list[str]:
    """Processes that hold a socket of this test's session, by their working directory or open files."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if str(folder) in str(entry.readlink()):
                found.append(entry.parent.name)
        except OSError:
            continue
    return [pid for pid in found if int(pid) != os.getpid()]


pytestmark = pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks for processes in /proc")


def test_the_first_call_starts_what_it_needs_and_its_output_is_seen(tmp_path: Path) -> None:
    """Keeper, template and worker come up, the answer returns, the print arrives with the function's name."""

    async def story(home: Home) -> None:
        assert (await home.value("hello", arguments={"name": "ada"}))["hello"] == "ada"
        await home.until(lambda: home.lines)
        assert [(line.text, line.function) for line in home.lines] == [("greeting ada", "m.hello")]
        assert await home.value("count", arguments={"n": 3}) == [0, 1, 2]
        assert await home.value("count", arguments={"n": 200}, mode="async") == list(range(200))

    play(tmp_path, story)


def test_hundreds_of_calls_at_once_all_answer_with_no_more_workers_than_allowed(tmp_path: Path) -> None:
    """Two workers share them."""

    async def story(home: Home) -> None:
        answers = await asyncio.gather(*(home.value("hello") for _ in range(300)))
        assert 1 <= len({answer["pid"] for answer in answers}) <= 2

    play(tmp_path, story)


def test_a_worker_killed_mid_call_fails_that_call_only(tmp_path: Path) -> None:
    """The next call is answered by a fresh one."""

    async def story(home: Home) -> None:
        answer = await home.call("die")
        assert isinstance(answer, Error) and answer.code == "WORKER_LOST"
        assert "signal 9" in unpack(answer.payload).message
        assert (await home.value("hello"))["hello"] == "you"

    play(tmp_path, story)


def test_a_call_past_its_limit_is_stopped_and_its_worker_serves_on(tmp_path: Path) -> None:
    """TIMEOUT, then business as usual; cancelling works the same way."""

    async def story(home: Home) -> None:
        answer = await home.call("sleep", arguments={"seconds": 60})
        assert isinstance(answer, Error) and answer.code == "TIMEOUT"
        assert (await home.value("hello"))["hello"] == "you"
        invocation = home.client.invoke(Invoke("c1", "m.sleep", payload=b'{"input":{"seconds":60}}'))
        await invocation.started.wait()
        invocation.cancel()
        cancelled = await invocation.result()
        assert isinstance(cancelled, Error) and cancelled.code == "CANCELLED"

    play(tmp_path, story, limit=700)


def test_an_edit_is_served_without_a_failed_call(tmp_path: Path) -> None:
    """Calls go on while the new build comes up; then they get it."""

    async def story(home: Home) -> None:
        await home.value("hello")
        home.write(SOURCE.format(limit=0, version=2))
        await home.load()
        versions = []
        while not versions or versions[-1] == 1:
            versions.append((await home.value("hello"))["version"])
        assert set(versions) == {1, 2} or versions == [2]

    play(tmp_path, story)


def test_a_file_that_does_not_import_fails_its_calls_until_it_is_corrected(tmp_path: Path) -> None:
    """File, line and reason; saving it right serves it."""

    async def story(home: Home) -> None:
        answer = await home.call("hello")
        assert isinstance(answer, Error) and answer.code == "IMPORT_FAILED"
        message = unpack(answer.payload).message
        assert "m.py" in message and "broken" in message
        home.write(SOURCE.format(limit=0, version=1))
        await home.load()
        assert (await home.value("hello"))["hello"] == "you"

    play(tmp_path, story, source=SOURCE.format(limit=0, version=1) + "\nraise RuntimeError('broken on purpose')\n")


@pytest.mark.parametrize("victim", ["keeper", "template"])
def test_killing_keeper_or_template_leaves_an_endpoint_that_answers(tmp_path: Path, victim: str) -> None:
    """Within the next call."""

    async def story(home: Home) -> None:
        await home.value("hello")
        if victim == "keeper":
            os.kill(home.keepers[0].pid, signal.SIGKILL)
            await home.until(lambda: len(home.keepers) == 2)
        else:
            (template,) = [link.peer_pid for link in home.server._links if link.state.role == "template"]
            os.kill(template, signal.SIGKILL)
            await home.until(lambda: any(event == "template_exited" for event, _ in home.events))
        answer = await home.call("hello")
        if isinstance(answer, Error):  # it reached a worker that was just dying
            assert answer.code == "WORKER_LOST"
        assert (await home.value("hello"))["hello"] == "you"

    play(tmp_path, story)
