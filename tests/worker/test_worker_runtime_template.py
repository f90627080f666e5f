"""The user's functions under a real keeper and template: forks, cold peers, limits, extra workers for cycles."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from loader_fixtures import write
from mini_session import MiniSession, run

from flashmesh.functions.config import ResourceConfig
from flashmesh.wire import failures, values
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import MSGPACK, Error, Invoke, Result
from flashmesh.worker.calls.exchange import exchange
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

TEMPLATE = [sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.supervisor"]

SOURCE = """
    import asyncio, os, pathlib, time
    import numpy
    from flashmesh import LiveServerless, remote, worker_start
    resource = LiveServerless(name="e")
    starts = []
    folder = pathlib.Path(__file__).parent

    @worker_start
    def begin():
        starts.append(os.getpid())

    @remote(resource)
    def echo(x: int = 0):
        return x

    @remote(resource)
    def who():
        return [os.getpid(), starts, float(numpy.ones(3).sum())]

    @remote(resource)
    def draw():
        return numpy.random.random()

    @remote(resource)
    def spins():
        print("I spin", flush=True)
        while True:
            pass

    @remote(resource)
    def calls_back_later():
        (folder / "begun").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
        return "went on"
    """


def spec_for(session: MiniSession, **config: Any) -> WorkerSpec:
    """The endpoint `e` of the session, serving m.py."""
    write(session.folder, {"m.py": SOURCE})
    names = ("echo", "who", "draw", "spins", "calls_back_later")
    return dataclasses.replace(
        session.spec(),
        modules=[ModuleSpec(module="m", file=str(session.folder / "m.py"))],
        functions=[f"m.{name}" for name in names],
        manifest=str(session.folder / "manifest.json"),
        config=ResourceConfig(resource_type="LiveServerless", **config).to_dict(),
    )


async def call(session: MiniSession, function: str, *args: Any, deadline_ms: int = 0) -> Any:
    """Call over the link of a ready worker."""
    await session.until(session.ready, "nobody is ready")
    worker = session.ready()[0]
    session.calls += 1
    execution = f"x{session.calls}"
    session.free[worker] -= 1
    frame = Invoke(
        execution,
        f"m.{function}",
        content_type=MSGPACK,
        accept=MSGPACK,
        deadline_ms=deadline_ms,
        payload=encode_arguments(args, {}),
    )
    session.workers[worker].send(frame)
    found = await session.until(lambda: session.answers.get(execution), f"{execution} was not answered")
    assert isinstance(found, Result | Error)
    return values.decode(found.payload, MSGPACK) if isinstance(found, Result) else failures.of_frame(found).code


async def peer_call(path: Path | str, function: str, *args: Any, chain: str = "") -> Any:
    """Call over the endpoint's socket, as a peer does."""
    body = encode_arguments(args, {})
    head = (
        f"POST /m.{function}/run_sync HTTP/1.1\r\nContent-Type: {MSGPACK}\r\nAccept: {MSGPACK}\r\n"
        f"X-Flash-Chain: {chain}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    response, answer = await exchange(str(path), head.encode() + body, seconds=20)
    assert response.status == 200, answer
    return values.decode(answer, MSGPACK)


def test_forked_workers_import_once_and_start_each() -> None:
    """The import is the zygote's, the hooks are each worker's, random numbers differ."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            await session.start(spec_for(session, workers_max=2), workers=2)
            (info,) = session.infos
            assert info["state"] == "ready"
            assert [one["id"] for one in info["functions"]][:2] == ["m.echo", "m.who"]
            pid, starts, total = await call(session, "who")
            assert (starts, total) == ([pid], 3.0)
            assert pid in session.pids.values()
            assert len({await call(session, "draw") for _ in range(6)}) == 6
            assert await call(session, "echo", 5) == 5

    run(scenario)


def test_a_call_past_its_deadline_is_stopped_and_the_worker_goes_on() -> None:
    """The template enforces it by signal; the output of the call is shown with its function."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            await session.start(spec_for(session))
            pid = (await call(session, "who"))[0]
            assert await call(session, "spins", deadline_ms=200) == "TIMEOUT"
            assert (await call(session, "who"))[0] == pid
            log = await session.until(lambda: next((log for log in session.logs if "I spin" in log.text), None))
            assert log.function == "m.spins"

    run(scenario)


def test_a_peer_reaches_an_endpoint_that_has_no_worker_yet() -> None:
    """The connection waits in the backlog until there is one."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            await session.keeper.start_template(spec_for(session))
            assert await peer_call(session.sockets.socket_path, "echo", 7) == 7

    run(scenario)


def test_a_call_that_comes_back_to_a_busy_synchronous_worker_gets_a_worker_of_its_own() -> None:
    """It waits for nobody: the template forks one more for the second socket."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            await session.start(spec_for(session, workers_max=1))
            worker = session.ready()[0]
            payload = encode_arguments((), {})
            frame = Invoke("held", "m.calls_back_later", content_type=MSGPACK, accept=MSGPACK, payload=payload)
            session.workers[worker].send(frame)
            await session.until((session.folder / "begun").exists)
            assert await peer_call(session.sockets.reentrant_path, "echo", 8, chain="e,other") == 8
            (session.folder / "go").touch()
            found = await session.until(lambda: session.answers.get("held"))
            assert isinstance(found, Result)

    run(scenario)


def test_a_file_that_does_not_import_is_told_with_its_line() -> None:
    """READY says import_failed, file, line and reason; a waiting peer is told as well."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            spec = spec_for(session)
            (session.folder / "m.py").write_text("x = 1\ny = x / 0\n")
            await session.keeper.start_template(spec)
            info = (await session.until(lambda: session.infos, "no READY"))[0]
            assert info["state"] == "import_failed"
            assert (info["error"]["file"], info["error"]["line"]) == ("m.py", 2)
            assert info["error"]["reason"] == "ZeroDivisionError: division by zero"

    run(scenario)


@pytest.mark.parametrize("line", ["    pass", "    try: time.sleep(600)\n    except Exception: pass"])
def test_an_import_that_never_ends_is_told_with_the_line_it_is_at(line: str) -> None:
    """Busy or asleep, and whatever it catches."""

    async def scenario() -> None:
        async with MiniSession(template=TEMPLATE) as session:
            spec = dataclasses.replace(spec_for(session), import_limit_s=0.5)
            (session.folder / "m.py").write_text(f"import time\nwhile True:\n{line}\n")
            await session.keeper.start_template(spec)
            info = (await session.until(lambda: session.infos, "no READY"))[0]
            assert info["state"] == "import_failed"
            assert info["error"]["file"] == "m.py" and info["error"]["line"] in (2, 3, 4)
            assert info["error"]["reason"] == "import took longer than 0.5 s"
            assert "m.py" in info["error"]["traceback"]

    run(scenario)
