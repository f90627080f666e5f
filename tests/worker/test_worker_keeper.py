"""The keeper: sockets that outlive templates, starts on demand, pauses when a template keeps dying."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from mini_session import MiniSession, run

from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.worker.keeper.client import KeeperLost, TemplateExited, TemplateWanted
from flashmesh.worker.keeper.keeper import backoff_s
from flashmesh.worker.spec import WorkerSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

CAPTURE = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parents[2]}


def test_sockets_are_there_before_any_template():
    """Opening an endpoint makes its two sockets and starts nothing; opening it again gives the same ones."""

    async def scenario() -> None:
        async with MiniSession() as session:
            for path in (session.sockets.socket_path, session.sockets.reentrant_path):
                assert stat.S_ISSOCK(path.stat().st_mode)
            assert await session.keeper.open("e", session.folder) == session.sockets
            assert session.left_over().keys() == {session.keeper.pid}

    run(scenario)


def test_the_first_connection_starts_the_template_and_is_answered():
    """With a spec known and nothing running, a peer waits in the backlog until its worker is there."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.remember(session.spec())
            assert (await session.peer("echo first")).startswith("first ")
            assert session.events == [TemplateWanted("e", started=True)]

    run(scenario)


def test_a_connection_before_any_spec_asks_the_session():
    """The keeper cannot start what it was never told of; it says so once, and the peer is answered after the start."""

    async def scenario() -> None:
        async with MiniSession() as session:
            waiting = asyncio.create_task(session.peer("echo patient"))
            await session.until(lambda: session.events)
            assert session.events == [TemplateWanted("e", started=False)]
            await session.keeper.start_template(session.spec())
            assert (await waiting).startswith("patient ")

    run(scenario)


def test_starting_twice_gives_the_same_template():
    """One template per endpoint, however often it is asked for."""

    async def scenario() -> None:
        async with MiniSession() as session:
            first = await session.keeper.start_template(session.spec())
            assert await session.keeper.start_template(session.spec()) == first

    run(scenario)


def test_a_stopped_template_is_gone_when_stop_returns_and_comes_back_for_a_peer():
    """Stop waits for the end; the sockets stay."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            await session.keeper.stop_template("e", drain_s=1)
            assert session.left_over().keys() == {session.keeper.pid}
            assert (await session.peer("echo back")).startswith("back ")

    run(scenario)


def test_a_template_that_does_not_stop_is_killed():
    """A stopped (SIGSTOP) template cannot drain; a second after the drain it is gone all the same."""

    async def scenario() -> None:
        async with MiniSession() as session:
            template = await session.start(session.spec())
            os.kill(template, signal.SIGSTOP)
            await session.keeper.stop_template("e", drain_s=0.1)
            await session.until(lambda: session.left_over().keys() == {session.keeper.pid})

    run(scenario)


def test_a_closed_endpoint_leaves_no_socket():
    """Its paths are free for another one, and peers are refused at once."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            await session.keeper.close_endpoint("e", drain_s=1)
            assert not session.sockets.socket_path.exists()
            assert not session.sockets.reentrant_path.exists()
            with pytest.raises(EndpointUnavailable):
                await session.keeper.start_template(session.spec())

    run(scenario)


def test_a_template_that_keeps_dying_is_started_ever_more_slowly_and_the_reason_is_told():
    """Each death is an event with count and reason; starts wait out the pause."""

    async def scenario() -> None:
        async with MiniSession(env={"FAKE_TEMPLATE": "crash"}) as session:
            for number in range(1, 4):
                await session.keeper.start_template(session.spec())
                await session.until(lambda number=number: len(session.events) == number)
            exits = [event for event in session.events if isinstance(event, TemplateExited)]
            assert [event.failures for event in exits] == [1, 2, 3]
            assert [event.status for event in exits] == [7, 7, 7]
            assert "exit status 7, 3 times in a row" in exits[2].reason

    run(scenario)


def test_pauses_grow_to_ten_seconds():
    """No failure, no pause."""
    assert [backoff_s(failures) for failures in (0, 1, 2, 3, 20)] == [0.0, 0.2, 0.4, 0.8, 10.0]


def test_the_session_hears_that_the_keeper_is_gone():
    """KeeperLost is an event, and what is asked of a lost keeper is a clear error."""

    async def scenario() -> None:
        async with MiniSession() as session:
            os.kill(session.keeper.pid, signal.SIGKILL)
            await session.until(lambda: session.events)
            assert session.events == [KeeperLost()]
            with pytest.raises(EndpointUnavailable, match="next call"):
                await session.keeper.start_template(session.spec())

    run(scenario)


def test_a_socket_left_by_a_dead_session_is_replaced():
    """A path nobody listens on any more is no obstacle."""

    async def scenario() -> None:
        async with MiniSession() as session:
            stale = socket.socket(socket.AF_UNIX)
            stale.bind(str(session.folder / "old.sock"))
            stale.close()
            sockets = await session.keeper.open("old", session.folder)
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(sockets.socket_path))

    run(scenario)


def test_a_full_backlog_refuses_the_next_peer():
    """queue_size bounds who may wait: one more is refused at once instead of waiting for ever."""

    async def scenario() -> None:
        async with MiniSession() as session:
            sockets = await session.keeper.open("small", session.folder, queue_size=3)
            peers = []
            try:
                with pytest.raises(BlockingIOError):
                    for _ in range(10):
                        peer = socket.socket(socket.AF_UNIX)
                        peers.append(peer)
                        peer.setblocking(False)
                        peer.connect(str(sockets.socket_path))
                assert 3 <= len(peers) <= 5
            finally:
                for peer in peers:
                    peer.close()

    run(scenario)


def test_a_path_that_unix_does_not_allow_is_a_clear_error():
    """107 bytes are all; the message says what to set."""

    async def scenario() -> None:
        async with MiniSession() as session:
            deep = session.folder / ("d" * 100)
            with pytest.raises(EndpointUnavailable, match="XDG_RUNTIME_DIR"):
                await session.keeper.open("e2", deep)

    run(scenario)


def test_long_and_foreign_names_get_short_socket_names():
    """Two endpoints never share a socket, whatever they are called."""

    async def scenario() -> None:
        async with MiniSession() as session:
            names = ["ünïcode", "ünicode", "x" * 200, "x" * 201]
            paths = [(await session.keeper.open(name, session.folder)).socket_path for name in names]
            assert len(set(paths)) == 4
            assert all(path.exists() and len(path.name) < 50 for path in paths)

    run(scenario)


def test_a_spec_survives_its_journey():
    """What keeper and template pass on is what the session wrote."""

    async def scenario() -> None:
        async with MiniSession() as session:
            spec = session.spec(workers_max=7, env={"A": "ü"}, cuda_devices="0")
            assert WorkerSpec.from_dict(spec.to_dict()) == spec
            assert spec.resource.workers_max == 7

    run(scenario)


def test_the_keeper_imports_little():
    """It is there for as long as the session: no asyncio, no typing, no user code, nothing from outside the library."""
    code = "import sys, flashmesh.worker.keeper.keeper; print('\\n'.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-S", "-c", code], env={"PYTHONPATH": "src"}, **CAPTURE).stdout.split()
    )
    assert not loaded & {"asyncio", "typing", "pathlib", "tempfile", "subprocess", "msgspec", "ctypes"}
    assert {name for name in loaded if name.startswith("flashmesh.functions")} == set()
