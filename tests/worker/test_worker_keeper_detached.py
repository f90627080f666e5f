"""A keeper that outlives its server: found again, taken over by one server at a time, ended as a whole."""

import asyncio
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from loader_fixtures import write
from mini_session import MiniSession, marked, run

from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.wire import values
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import MSGPACK
from flashmesh.worker.calls.exchange import exchange
from flashmesh.worker.keeper import pidfile
from flashmesh.worker.keeper.client import Keeper, KeeperLost, TemplateExited, TemplateWanted
from flashmesh.worker.keeper.detached import KeeperPlace
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

REAL = [sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.supervisor"]
SOURCE = """
    import os
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="e")

    @remote(resource)
    def who():
        return os.getpid()
    """


class Server(MiniSession):
    """A server whose keeper outlives it. With `place` and `mark` of one before: the server that returns."""

    def __init__(self, *, before: tuple[Path, str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        if before is not None:
            shutil.rmtree(self.folder)
            self.folder, self.mark = before
        self.returns = before is not None

    @property
    def place(self) -> KeeperPlace:
        return KeeperPlace(self.folder / "keeper")

    async def start_keeper(self) -> Keeper:
        if self.returns:
            (self.folder / "link.sock").touch()  # left by the one before
            found = await Keeper.adopt(self.place.directory, self._on_event)
            assert found is not None
            return found
        return await Keeper.start_detached(self.place.directory, self._on_event, template_command=self.template_command)

    def real_spec(self, **more: Any) -> WorkerSpec:
        """A real worker of the user's module m.py."""
        write(self.folder, {"m.py": SOURCE})
        return dataclasses.replace(
            self.spec(**more),
            modules=[ModuleSpec(module="m", file=str(self.folder / "m.py"))],
            functions=["m.who"],
            manifest=str(self.folder / "manifest.json"),
            config=ResourceConfig(resource_type="LiveServerless", idle_timeout_s=60).to_dict(),
        )

    async def who(self) -> int:
        """A peer's call: the pid of the worker that answered."""
        body = encode_arguments((), {})
        head = f"POST /m.who/run_sync HTTP/1.1\r\nContent-Type: {MSGPACK}\r\nAccept: {MSGPACK}\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        response, answer = await exchange(str(self.sockets.socket_path), request, seconds=15)
        assert response.status == 200, answer
        return int(values.decode(answer, MSGPACK))


def open_files(pid: int) -> list[str]:
    return [str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir()]


def plain(spec: WorkerSpec | None) -> str:
    """A spec as it travels."""
    assert spec is not None
    return json.dumps(spec.to_dict())


SERVER = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_worker_keeper_detached import REAL, Server
async def main():
    async with Server(template=REAL) as server:
        template = await server.start(server.real_spec())
        print(server.mark, server.folder, server.keeper.pid, template, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def killed_server() -> AsyncIterator[tuple[Path, str, int, int]]:
    """A real server process, killed with 9: its folder, mark, and the pids of keeper and template."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    mark, folder, keeper, template = (await process.stdout.readline()).decode().split()
    process.kill()
    await process.wait()
    try:
        yield Path(folder), mark, int(keeper), int(template)
    finally:
        KeeperPlace(Path(folder) / "keeper").kill()
        for _ in range(1000):
            if not marked(mark):
                break
            await asyncio.sleep(0.01)
        shutil.rmtree(folder, ignore_errors=True)


def test_endpoints_answer_while_their_server_is_gone_and_the_next_one_takes_them_over() -> None:
    """Server killed with 9: peers get answers all the while; the returning server finds keeper, endpoint and template
    as they were, and its worker dials the new link by itself."""

    async def scenario() -> None:
        async with killed_server() as (folder, mark, keeper, template):
            away = Server.__new__(Server)
            away.folder = folder
            away.sockets = type("Sockets", (), {"socket_path": folder / "e.sock"})()  # type: ignore[assignment]
            worker = await away.who()
            assert await away.who() == worker
            async with Server(before=(folder, mark)) as server:
                (kept,) = server.keeper.kept
                assert (server.keeper.pid, kept.endpoint, kept.template_pid) == (keeper, "e", template)
                assert kept.sockets == server.sockets
                assert plain(kept.spec) == plain(server.real_spec())
                assert await server.until(server.ready, "the worker did not come back")
                assert set(server.pids.values()) == {worker}
                await server.until(lambda: server.template, "the template did not come back")
                assert await server.keeper.start_template(server.real_spec()) == template
                assert await server.who() == worker
                assert server.events == []
            assert marked(mark) == {}

    run(scenario)


def test_a_killed_keeper_takes_everything_along_and_another_one_starts() -> None:
    """Keeper killed with 9, server or no server: nothing is left, and the place is free again."""

    async def scenario() -> None:
        async with killed_server() as (folder, mark, keeper, _):
            assert len(marked(mark)) >= 4, "keeper, template, zygote, worker"
            os.kill(keeper, signal.SIGKILL)
            for _ in range(300):
                if not marked(mark):
                    break
                await asyncio.sleep(0.01)
            assert marked(mark) == {}
            place = KeeperPlace(folder / "keeper")
            assert place.running() is None
            assert await Keeper.adopt(place.directory, lambda event: None) is None
            again = await Keeper.start_detached(place.directory, lambda event: None, template_command=REAL)
            assert again.kept == []
            await again.close(drain_s=0)

    run(scenario)


def test_a_server_hears_that_its_keeper_was_killed() -> None:
    """KeeperLost, as in a session; templates, zygotes and workers are gone; the next keeper serves the same sockets."""

    async def scenario() -> None:
        async with Server() as server:
            await server.start(server.spec())
            os.kill(server.keeper.pid, signal.SIGKILL)
            await server.until(lambda: server.events)
            assert server.events == [KeeperLost()]
            await server.until(lambda: not server.left_over(), "something outlived the keeper")
            server.keeper = await server.start_keeper()
            server.sockets = await server.keeper.open("e", server.folder)
            await server.keeper.remember(server.spec())
            assert (await server.peer("echo again")).startswith("again ")

    run(scenario)


def test_a_keeper_that_is_let_go_serves_on() -> None:
    """`close(keep=True)` ends nothing: the socket answers, and whoever adopts finds the template and its spec."""

    async def scenario() -> None:
        async with Server() as server:
            template = await server.start(server.spec())
            await server.keeper.close(keep=True)
            assert server.keeper.lost
            assert (await server.peer("echo alone")).startswith("alone ")
            adopted = await Keeper.adopt(server.place.directory, server._on_event)
            assert adopted is not None
            server.keeper = adopted
            (kept,) = adopted.kept
            assert (kept.template_pid, plain(kept.spec), kept.failures) == (template, plain(server.spec()), 0)
            assert server.events == []
            assert await adopted.open("e", server.folder / "elsewhere") == server.sockets

    run(scenario)


def test_without_a_server_the_keeper_starts_templates_for_peers() -> None:
    """Scale to zero and back while nobody is connected; the next server learns of the new template."""

    async def scenario() -> None:
        async with Server(template=REAL) as server:
            first = await server.start(server.real_spec())
            await server.keeper.stop_template("e", drain_s=1)
            await server.keeper.close(keep=True)
            assert await server.who() > 0
            adopted = await Keeper.adopt(server.place.directory, server._on_event)
            assert adopted is not None
            server.keeper = adopted
            assert adopted.kept[0].template_pid not in (0, first)

    run(scenario)


def test_only_one_server_at_a_time() -> None:
    """A second server is refused with the reason, and the first one's connection is not disturbed."""

    async def scenario() -> None:
        async with Server() as server:
            with pytest.raises(EndpointUnavailable, match="another server is connected"):
                await Keeper.adopt(server.place.directory, server._on_event)
            with pytest.raises(EndpointUnavailable, match="another server's keeper"):
                await Keeper.start_detached(server.place.directory, server._on_event)
            assert await server.keeper.open("e", server.folder) == server.sockets
            assert server.events == []

    run(scenario)


def test_a_server_that_died_a_moment_ago_is_no_obstacle() -> None:
    """The next one may connect before the keeper has noticed the end of the first."""

    async def scenario() -> None:
        async with Server() as server:
            os.kill(server.keeper.pid, signal.SIGSTOP)
            closing = asyncio.create_task(server.keeper.close(keep=True))
            adopting = asyncio.create_task(Keeper.adopt(server.place.directory, server._on_event))
            await closing
            os.kill(server.keeper.pid, signal.SIGCONT)
            adopted = await adopting
            assert adopted is not None
            server.keeper = adopted

    run(scenario)


def test_a_peer_that_waits_for_an_unknown_spec_is_told_to_the_next_server() -> None:
    """What nobody heard is said again: the endpoint is wanted, and there is nothing to start yet."""

    async def scenario() -> None:
        async with Server() as server:
            await server.keeper.close(keep=True)
            waiting = asyncio.create_task(server.peer("echo patient"))
            adopted = None
            while adopted is None or not server.events:
                if adopted is not None:
                    await adopted.close(keep=True)
                adopted = await Keeper.adopt(server.place.directory, server._on_event)
            assert adopted is not None
            server.keeper = adopted
            assert set(server.events) == {TemplateWanted("e", started=False)}
            await adopted.start_template(server.spec())
            assert (await waiting).startswith("patient ")

    run(scenario)


def test_answers_to_a_server_that_went_do_not_reach_the_next() -> None:
    """A stop that the first one asked for ends during the second one's time; its number means nothing there."""

    async def scenario() -> None:
        async with Server() as server:
            await server.start(server.spec(drain_limit_s=10))
            execution = server.send("hold", "0.5")
            await server.until(lambda: "holding" in server.text())
            stopping = asyncio.create_task(server.keeper.stop_template("e", drain_s=10))
            await asyncio.sleep(0)
            await server.keeper.close(keep=True)
            with pytest.raises(EndpointUnavailable):
                await stopping
            adopted = await Keeper.adopt(server.place.directory, server._on_event)
            assert adopted is not None
            server.keeper = adopted
            assert await server.answer(execution) == "held"
            await server.until(lambda: server.events)
            assert [type(event) for event in server.events] == [TemplateExited]
            assert await adopted.open("e", server.folder) == server.sockets

    run(scenario)


def test_a_pidfile_whose_number_belongs_to_another_process_names_nobody(tmp_path: Path) -> None:
    """A reused pid is recognised by when its process began, and never signalled."""
    place = KeeperPlace(tmp_path)
    pidfile.write(str(place.pidfile))
    assert place.running() == os.getpid()
    number, _, began = place.pidfile.read_text().strip().partition(" ")
    boot, ticks = began.split()
    for text in (f"{number} {boot} {int(ticks) + 1}", f"{number} {'0' * 36} {ticks}", number, "", "x y z", "-1 a b"):
        place.pidfile.write_text(text)
        assert place.running() is None
        assert place.kill() is False
    ended = subprocess.Popen(["true"])
    place.pidfile.write_text(f"{ended.pid} {pidfile.identity(ended.pid)}\n")
    ended.wait()
    assert place.running() is None


def test_what_a_dead_keeper_left_is_no_keeper() -> None:
    """Socket, pidfile and lock of one that was killed: nothing is adopted, and a new one starts in their place."""

    async def scenario() -> None:
        async with Server() as server:
            os.kill(server.keeper.pid, signal.SIGKILL)
            await server.until(lambda: server.keeper.lost)
            assert server.place.control.exists()
            assert server.place.pidfile.exists()
            assert await Keeper.adopt(server.place.directory, server._on_event) is None
            server.keeper = await server.start_keeper()
            assert server.place.running() == server.keeper.pid

    run(scenario)


def test_a_keeper_is_nobodys_child_and_in_a_session_of_its_own() -> None:
    """Signals to the server's terminal, group or session do not reach it; its directory is private."""

    async def scenario() -> None:
        async with Server() as server:
            pid = server.keeper.pid
            assert os.getsid(pid) == pid
            parent = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
            assert parent != os.getpid()
            assert stat.S_IMODE(server.place.directory.stat().st_mode) == 0o700
            assert stat.S_IMODE(server.place.control.stat().st_mode) == 0o600
            os.kill(pid, signal.SIGINT)
            assert await server.keeper.open("e", server.folder) == server.sockets

    run(scenario)


def test_a_closed_keeper_leaves_no_file_but_its_lock_and_log() -> None:
    """`close` ends everything as in a session; nobody is found afterwards."""

    async def scenario() -> None:
        async with Server() as server:
            await server.start(server.spec())
            await server.keeper.close(drain_s=0.2)
            await server.until(lambda: not server.left_over())
            assert sorted(path.name for path in server.place.directory.iterdir()) == ["keeper.lock", "keeper.log"]
            assert await Keeper.adopt(server.place.directory, server._on_event) is None

    run(scenario)


def test_a_folder_too_deep_for_a_socket_is_a_clear_error(tmp_path: Path) -> None:
    """107 bytes are all."""

    async def scenario() -> None:
        with pytest.raises(EndpointUnavailable, match="short, writable folder"):
            await Keeper.start_detached(tmp_path / ("d" * 120), lambda event: None)

    run(scenario)


def test_a_keeper_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it can be neither adopted nor replaced; the error says which process to end."""
    monkeypatch.setattr("flashmesh.worker.keeper.detached.ANSWER_S", 0.1)

    async def scenario() -> None:
        async with Server() as server:
            await server.keeper.close(keep=True)
            os.kill(server.keeper.pid, signal.SIGSTOP)
            try:
                with pytest.raises(EndpointUnavailable, match=f"process {server.keeper.pid}"):
                    await Keeper.adopt(server.place.directory, server._on_event)
            finally:
                os.kill(server.keeper.pid, signal.SIGCONT)
            monkeypatch.undo()
            adopted = await Keeper.adopt(server.place.directory, server._on_event)
            assert adopted is not None
            server.keeper = adopted

    run(scenario)


def test_descriptors_of_the_keeper_stay_its_own() -> None:
    """A template that held the control socket or the lock would keep the next keeper from starting."""

    async def scenario() -> None:
        async with Server() as server:
            template = await server.start(server.spec())
            assert not [name for name in open_files(template) if name.endswith("keeper.lock")]
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(server.place.control))
            assert await server.keeper.open("e", server.folder) == server.sockets

    run(scenario)
