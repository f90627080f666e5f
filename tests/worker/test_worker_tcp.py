"""An endpoint's TCP socket: opened and kept by its keeper, watched while nothing runs, handed down to workers."""

import asyncio
import os
import signal
import socket
import sys
from typing import Any

import pytest
from mini_session import DEADLINE_S, MiniSession, run

from flashmesh.worker.keeper.client import EndpointSockets, TemplateWanted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ANY = ("127.0.0.1", 0)


async def call(sockets: EndpointSockets, line: str) -> str:
    assert sockets.tcp is not None
    reader, writer = await asyncio.open_connection(*sockets.tcp)
    writer.write(line.encode() + b"\n")
    try:
        return (await asyncio.wait_for(reader.read(), DEADLINE_S)).decode().strip()
    finally:
        writer.close()


async def opened(session: MiniSession, tcp: tuple[str, int] = ANY) -> EndpointSockets:
    session.sockets = await session.keeper.open("e", session.folder, tcp=tcp)
    return session.sockets


def test_the_first_tcp_connection_makes_template_and_worker() -> None:
    async def scenario() -> None:
        async with MiniSession() as session:
            sockets = await opened(session)
            await session.keeper.remember(session.spec())
            assert (await call(sockets, "echo first")).startswith("first ")
            assert session.events == [TemplateWanted("e", started=True)]
            assert (await session.peer("echo second")).startswith("second ")

    run(scenario)


def test_an_endpoint_at_rest_is_woken_by_a_tcp_connection() -> None:
    """Its worker has left; the template sees who waits."""

    async def scenario() -> None:
        async with MiniSession() as session:
            sockets = await opened(session)
            await session.keeper.start_template(session.spec(idle_timeout_s=0))
            await session.scale(1)
            await session.until(lambda: session.gone)
            assert (await call(sockets, "echo again")).startswith("again ")

    run(scenario)


def test_a_port_stays_the_endpoints_and_is_chosen_outside_those_of_outgoing_connections() -> None:
    async def scenario() -> None:
        async with MiniSession() as session:
            first = await opened(session)
            assert first.tcp is not None and 20_000 <= first.tcp[1] < 32_768
            assert (await opened(session)).tcp == first.tcp
            assert (await session.keeper.open("e", session.folder)).tcp == first.tcp
            await session.keeper.close_endpoint("e")
            assert (await opened(session, first.tcp)).tcp == first.tcp

    run(scenario)


def test_a_taken_port_is_told_and_the_socket_serves() -> None:
    """Once it is free it can be had; the template that runs does not know it, the next one does."""

    async def scenario() -> None:
        async with MiniSession() as session:
            with socket.create_server(("127.0.0.1", 0)) as other:
                sockets = await opened(session, other.getsockname())
                assert (sockets.tcp, sockets.tcp_error) == (None, "Address already in use")
                await session.start(session.spec())
                assert (await session.peer("echo x")).startswith("x ")
                port = other.getsockname()
            sockets = await opened(session, port)
            assert (sockets.tcp, sockets.tcp_unknown) == (port, True)
            await session.keeper.stop_template("e", drain_s=1)
            assert (await call(sockets, "echo x")).startswith("x ")

    run(scenario)


def test_whoever_waits_at_either_socket_is_refused_when_the_import_failed() -> None:
    async def scenario() -> None:
        async with MiniSession() as session:
            sockets = await opened(session)
            await session.keeper.start_template(session.spec(env={"FAKE_IMPORT": "fail"}))
            await session.until(lambda: session.infos)
            assert (await call(sockets, "POST / HTTP/1.1\r\n\r")).startswith("HTTP/1.1 503")
            assert (await session.peer("POST / HTTP/1.1\r\n\r")).startswith("HTTP/1.1 503")

    run(scenario)


def states(session: MiniSession, build: str) -> list[tuple[str, Any]]:
    return [(info["state"], info.get("serving")) for info in session.infos if info["build"] == build]


def test_a_build_on_trial_that_fails_leaves_the_endpoint_to_what_was_remembered() -> None:
    """No template ran: the one on trial leaves, and whoever waits meanwhile is answered by the build before."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.keeper.remember(session.spec())
            trial = session.spec(build="b2", generation=2, env={"FAKE_IMPORT": "fail"}, on_trial=True)
            await session.keeper.start_template(trial, trial=True)
            answers = [asyncio.create_task(session.peer("build")) for _ in range(3)]
            await session.until(lambda: states(session, "b2") == [("import_failed", None)])
            assert {(await answer).split()[0] for answer in answers} == {"b1"}

    run(scenario)


def test_a_build_on_trial_with_workers_that_must_stay_serves_once_the_first_is_ready() -> None:
    async def scenario() -> None:
        async with MiniSession() as session:
            start = session.folder / "start"
            env = {"FAKE_START_WAIT": str(start)}
            await session.keeper.start_template(session.spec(env=env, on_trial=True, workers_min=1), trial=True)
            await session.until(lambda: "b1 starts" in session.text())
            assert states(session, "b1") == [("ready", False)]
            start.touch()
            await session.until(lambda: states(session, "b1")[1:] == [("ready", True)])

    run(scenario)


def test_a_build_is_said_to_serve_once_workers_of_the_one_before_take_no_more_calls() -> None:
    """One of them has yet to hear that it shall leave: the next connection could still be its."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec(drain_limit_s=10))
            (old,) = session.pids.values()
            os.kill(old, signal.SIGSTOP)
            await session.update(session.spec(build="b2", generation=2, drain_limit_s=10))
            await session.until(lambda: "b2" in {session.builds[name] for name in session.ready()})
            before = states(session, "b2")
            os.kill(old, signal.SIGCONT)
            await session.until(lambda: states(session, "b2")[1:] == [("ready", True)])
            assert before == [("ready", False)]

    run(scenario)


def test_a_failed_build_on_trial_is_not_made_when_the_zygote_of_the_one_that_serves_is_lost() -> None:
    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            failing = session.spec(build="b2", generation=2, env={"FAKE_IMPORT": "fail"}, on_trial=True)
            await session.update(failing)
            await session.until(lambda: states(session, "b2") == [("import_failed", None)])
            (worker,) = session.pids.values()
            with open(f"/proc/{worker}/stat") as stat:  # noqa: ASYNC230, PTH123 - /proc does not block
                zygote = int(stat.read().rpartition(")")[2].split()[1])
            os.kill(zygote, signal.SIGKILL)
            await session.until(lambda: len(states(session, "b1")) == 2)
            await session.scale(1)
            assert (await session.call("build")).startswith("b1")

    run(scenario)


def test_a_build_that_serves_already_is_said_to_serve_when_it_is_offered_again() -> None:
    """Whoever offers it may not know: a server that was killed offered it before."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            offered = session.spec(build="b2", generation=2, on_trial=True)
            await session.update(offered)
            await session.until(lambda: any(info["build"] == "b2" and info["serving"] for info in session.infos))
            session.infos.clear()
            await session.update(session.spec(env={"FAKE_IMPORT": "hang"}, generation=3))
            await session.update(offered)
            (said,) = await session.until(lambda: session.infos)
            assert (said["build"], said["generation"], said["serving"]) == ("b2", 2, True)

    run(scenario)


def test_limits_change_in_place() -> None:
    """The same workers go on; more come, surplus ones leave, and an edit under way is given up."""

    async def scenario() -> None:
        async with MiniSession() as session:
            await session.start(session.spec())
            (first,) = session.workers
            await session.update(session.spec(workers_min=3, workers_max=3))
            await session.until(lambda: len(session.ready()) == 3)
            assert first in session.workers
            await session.update(session.spec(build="b2", generation=2, env={"FAKE_IMPORT": "hang"}))
            await session.update(session.spec(workers_min=1, workers_max=2))
            await session.until(lambda: len(session.workers) == 1)
            assert {info["build"] for info in session.infos} == {"b1"}
            await session.until(lambda: [gone.status for gone in session.gone] == [0, 0])

    run(scenario)
