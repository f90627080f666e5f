"""A session in a few lines: a link server, a keeper, and what tests ask of them."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flashmesh.functions.config import ResourceConfig
from flashmesh.wire.connection import Link
from flashmesh.wire.frames import (
    AnyFrame,
    Credit,
    Drain,
    Error,
    Hello,
    Invoke,
    Log,
    Ready,
    Result,
    Scale,
    Update,
    WorkerGone,
)
from flashmesh.worker.keeper.client import EndpointSockets, Keeper, KeeperEvent
from flashmesh.worker.spec import WorkerSpec

TEMPLATE = [sys.executable, "-P", "-u", str(Path(__file__).with_name("fake_program.py")), "template"]
DEADLINE_S = 15.0


class MiniSession:
    """Use as `async with MiniSession() as session:`. Everything it started is gone when the block ends."""

    def __init__(self, *, template: list[str] = TEMPLATE, env: dict[str, str] | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.folder = Path(tempfile.mkdtemp(prefix="flash-"))
        self.template_command = template
        self.env = env or {}
        self.events: list[KeeperEvent] = []
        self.infos: list[dict[str, Any]] = []
        self.logs: list[Log] = []
        self.gone: list[WorkerGone] = []
        self.template: Link | None = None
        self.workers: dict[str, Link] = {}
        self.free: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self.builds: dict[str, str] = {}
        self.answers: dict[str, Result | Error] = {}
        self.changed = asyncio.Event()
        self.calls = 0
        self.in_flight: dict[str, str] = {}
        self.leaving: set[str] = set()
        self.closing = False
        self.sockets: EndpointSockets

    async def __aenter__(self) -> "MiniSession":
        loop = asyncio.get_running_loop()
        self.link_path = str(self.folder / "link.sock")
        self.server = await loop.create_unix_server(lambda: Link(self._on_frame, self._on_lost), self.link_path)
        self.pipe_read, self.pipe_write = os.pipe()
        before = dict(os.environ)
        os.environ.update(self.env, FLASH_TEST_MARK=self.mark)
        try:
            self.keeper = await self.start_keeper()
        finally:
            os.environ.clear()
            os.environ.update(before)
        self.sockets = await self.keeper.open("e", self.folder, queue_size=100)
        return self

    async def start_keeper(self) -> Keeper:
        return await Keeper.start(self.pipe_read, self.folder, self._on_event, template_command=self.template_command)

    async def __aexit__(self, *exc: object) -> None:
        self.closing = True
        if not self.keeper.lost:
            await self.keeper.close(drain_s=0.2)
        if self.pipe_write >= 0:
            os.close(self.pipe_write)
        os.close(self.pipe_read)
        self.server.close()
        for link in [*self.workers.values(), *([self.template] if self.template else [])]:
            link.close()
        await self.server.wait_closed()
        await self.until(lambda: not self.left_over(), "processes were left over")
        shutil.rmtree(self.folder)

    def _on_event(self, event: KeeperEvent) -> None:
        self.events.append(event)
        self.changed.set()

    def _on_lost(self, link: Link, error: Exception | None) -> None:
        if link is self.template:
            self.template = None
        for worker in [worker for worker, other in self.workers.items() if other is link]:
            del self.workers[worker]
        self.changed.set()

    def _on_frame(self, link: Link, frame: AnyFrame) -> None:
        match frame:
            case Hello(role="template"):
                self.template = link
            case Hello():
                link.state = frame.worker
                self.workers[frame.worker] = link
                self.pids[frame.worker] = frame.pid
                self.builds[frame.worker] = frame.build
                self.free[frame.worker] = 0
            case Ready():
                if link.state is None:
                    self.infos.append(frame.info)
                else:
                    self.free[link.state] = frame.free
            case Credit():
                self.free[link.state] = frame.free
            case Log():
                self.logs.append(frame)
            case WorkerGone():
                self.gone.append(frame)
            case Result() | Error():
                self.free[link.state] = 0 if link.state in self.leaving else frame.free
                self.answers[frame.execution] = frame
                self.in_flight.pop(frame.execution, None)
                self._close_if_done(link)
            case Drain():
                self.free[link.state] = 0
                self.leaving.add(link.state)
                self._close_if_done(link)
            case _:
                pass
        self.changed.set()

    def _close_if_done(self, link: Link) -> None:
        """A worker that wants to leave may, once nothing is in flight on its link."""
        if link.state in self.leaving and link.state not in self.in_flight.values():
            link.close()

    # --- what tests do ---

    def spec(self, *, build: str = "b1", env: dict[str, str] | None = None, **more: Any) -> WorkerSpec:
        own = ("generation", "import_limit_s", "drain_limit_s", "template_idle_s", "cuda_devices", "on_trial")
        fields = {name: more.pop(name) for name in own if name in more}
        return WorkerSpec(
            endpoint="e",
            build=build,
            generation=fields.pop("generation", 1),
            project_root=str(self.folder),
            sys_path=[str(self.folder)],
            modules=[],
            functions=["m.echo"],
            config=ResourceConfig(resource_type="Endpoint", **{"idle_timeout_s": 60, **more}).to_dict(),
            env=env or {},
            link=self.link_path,
            manifest="",
            socket_path=str(self.sockets.socket_path),
            **{"drain_limit_s": 1.0, **fields},
        )

    async def until(self, condition: Callable[[], Any], why: str = "") -> Any:
        """The condition's value once it is true. Looked at on every frame and every few milliseconds (processes)."""
        end = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"{why or 'it did not become true'}: {self.state()}")
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), 0.005)
            except TimeoutError:
                continue
        return value

    def state(self) -> str:
        logs = "\n".join(f"  {log.worker} {log.stream}: {log.text}" for log in self.logs[-30:])
        return f"infos={self.infos} gone={self.gone} events={self.events} left={self.left_over()}\n{logs}"

    async def start(self, spec: WorkerSpec, *, workers: int = 1) -> int:
        """Start the template and wait for that many workers; returns the template's pid."""
        pid = await self.keeper.start_template(spec)
        await self.scale(workers)
        await self.until(lambda: len(self.ready()) >= workers, "no worker became ready")
        return pid

    async def scale(self, workers: int) -> None:
        link = await self.until(lambda: self.template, "the template did not dial")
        link.send(Scale(workers))

    async def update(self, spec: WorkerSpec) -> None:
        link = await self.until(lambda: self.template)
        link.send(Update(spec.to_dict()))

    def ready(self) -> list[str]:
        return [worker for worker in self.workers if self.free[worker] > 0]

    def send(self, function: str, argument: str = "", *, worker: str | None = None, deadline_ms: int = 0) -> str:
        worker = worker or self.ready()[0]
        self.calls += 1
        execution = f"x{self.calls}"
        self.free[worker] -= 1
        self.in_flight[execution] = worker
        self.workers[worker].send(
            Invoke(execution, f"m.{function}", payload=argument.encode(), deadline_ms=deadline_ms)
        )
        return execution

    async def answer(self, execution: str) -> str:
        found = await self.until(lambda: self.answers.get(execution), f"{execution} was not answered")
        return found.payload.decode() if isinstance(found, Result) else found.code

    async def call(self, function: str, argument: str = "", *, worker: str | None = None) -> str:
        await self.until(self.ready, "nobody is ready")
        return await self.answer(self.send(function, argument, worker=worker))

    async def peer(self, line: str, *, again: bool = False) -> str:
        """One call as a peer on this host makes it: the function's answer and who gave it."""
        path = self.sockets.reentrant_path if again else self.sockets.socket_path
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(line.encode() + b"\n")
        try:
            return (await asyncio.wait_for(reader.read(), DEADLINE_S)).decode().strip()
        finally:
            writer.close()

    def text(self) -> list[str]:
        return [log.text for log in self.logs]

    def left_over(self) -> dict[int, str]:
        """Processes that carry our mark in their environment, whatever became of their parents."""
        return marked(self.mark)


def marked(mark: str) -> dict[int, str]:
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if mark.encode() in (folder / "environ").read_bytes() and _state(folder) != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:
            continue
    return found


def _state(folder: Path) -> str:
    return (folder / "stat").read_text().rpartition(")")[2].split()[0]


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def run(scenario: Callable[..., Awaitable[None]], *arguments: Any) -> None:
    asyncio.run(scenario(*arguments))  # type: ignore[arg-type]


__all__ = ["DEADLINE_S", "TEMPLATE", "MiniSession", "children", "marked", "run", "socket", "subprocess"]
