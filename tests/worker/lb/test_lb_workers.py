"""Workers of load-balanced endpoints: declared routes on the endpoint's socket, under a real keeper and template."""

import asyncio
import os
import signal
import subprocess
import sys

import httpx
import pytest
from lb_endpoint import TEMPLATE, client, spec_for
from mini_session import MiniSession, run
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed

from flashmesh.wire.frames import PeerCall, Summary
from flashmesh.worker.template.output import by_writer, marked


class Session(MiniSession):
    """Keeps what workers tell of calls that did not come over the link."""

    def __init__(self) -> None:
        super().__init__(template=TEMPLATE)
        self.summaries: list[PeerCall] = []

    def _on_frame(self, link: object, frame: object) -> None:
        if isinstance(frame, Summary):
            self.summaries += frame.calls
        super()._on_frame(link, frame)  # type: ignore[arg-type]

    async def summary(self, function: str) -> PeerCall:
        """Of the last call of a function."""

        def found() -> PeerCall | None:
            return next((call for call in reversed(self.summaries) if call.function == function), None)

        told: PeerCall = await self.until(found, f"no summary of {function}")
        return told


def test_declared_routes_are_served_at_their_declared_paths() -> None:
    """`@remote(lb, …)` and `@api.get(…)`, path parameters, models, uploads, raw and streamed bodies; no `/execute`."""

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                assert (await http.post("/compute", json={"numbers": [1, 2, 3]})).json()["sum"] == 6
                assert (await http.get("/items/7?q=x")).json() == {"n": 7, "q": "x"}
                assert (await http.head("/items/7")).status_code == 200
                assert (await http.post("/items", json={"name": "tea"})).json() == {"name": "tea", "price": 1.0}
                sent = await http.post("/upload", files={"file": ("a.bin", b"x" * 300_000)})
                assert sent.json() == {"size": 300_000, "name": "a.bin"}

                async def pieces() -> object:
                    for _ in range(40):
                        yield b"y" * 50_000

                assert (await http.post("/raw", content=pieces())).json() == {"size": 2_000_000}
                assert (await http.get("/count/3")).text.splitlines()[2] == '{"number":2}'
                assert (await http.get("/teapot")).status_code == 418
                missing = await http.get("/items/many")
                assert missing.status_code == 422 and missing.json()["field"] == "n"
                for path in ("/execute", "/run_sync", "/m/items/7"):
                    refused = await http.post(path, json={})
                    assert refused.status_code == 404 and "GET /items/{n}" in refused.json()["error"]
                failed = await http.get("/fails")
                assert failed.status_code == 500 and failed.json()["error_type"] == "ValueError"
                assert "site-packages" not in failed.json()["traceback"]

    run(scenario)


def test_a_worker_says_who_it_is_and_ran_its_hooks() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                who = (await http.get("/who")).json()
                assert who["starts"] == [who["pid"]]
                assert (await http.get("/ping")).json() == {"status": "healthy"}
                health = (await http.get("/health")).json()
                assert health["endpoint"] == "e" and "GET /items/{n}" in health["routes"]
                assert 'flash_worker_calls_total{endpoint="e"' in (await http.get("/metrics")).text

    run(scenario)


def test_each_request_is_told_to_the_session_with_its_outcome() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
                await http.get("/items/7", headers={"traceparent": trace, "x-flash-parent": "p1"})
                await http.get("/fails")
            done, broken = await session.summary("m.item"), await session.summary("m.fails")
            assert (done.outcome, done.trace, done.parent) == ("success", trace, "p1")
            assert (broken.outcome, broken.code) == ("error", "USER_ERROR")

    run(scenario)


def test_what_bodies_that_run_at_once_print_is_each_ones_own() -> None:
    """Lines of two functions that take turns, an unfinished one, and what was written through logging."""

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                await asyncio.gather(http.get("/both/a"), http.get("/other/b"))
            await session.until(lambda: sum("second of" in text for text in session.text()) == 2)
            writers = {log.text: (log.function, bool(log.execution)) for log in session.logs}
            assert writers["first of a"] == writers["second of a"] == writers["logged by a"] == ("m.both", True)
            assert writers["first of b"] == writers["second of b"] == ("m.other", True)

    run(scenario)


def test_one_worker_serves_many_requests_and_websockets_at_once() -> None:
    """Nothing is declared about concurrency: a websocket and a slow request keep nobody waiting."""

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session, workers_max=1))
            path = str(session.sockets.socket_path)
            async with client(session) as http, unix_connect(path, uri="ws://endpoint/chat/tea") as chat:
                waiting = [asyncio.ensure_future(http.get("/waits")) for _ in range(20)]
                await chat.send("hello")
                assert await chat.recv() == "tea: hello"
                assert (await http.get("/items/1")).json()["n"] == 1
                (session.folder / "go").touch()
                assert {answer.text for answer in await asyncio.gather(*waiting)} == {'"went on"'}
            assert (await session.summary("m.chat")).outcome == "success"

    run(scenario)


def test_a_worker_takes_no_more_than_its_slots_and_another_one_is_made() -> None:
    """`max_concurrency=1`: the second request is served by a second worker while the first one waits."""

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session, max_concurrency=1, workers_max=2))
            async with client(session) as http:
                first = asyncio.ensure_future(http.get("/waits"))
                await session.until(lambda: (session.folder / "begun").exists())
                pid = (await http.get("/who")).json()["pid"]
                await session.until(lambda: len(session.pids) == 2)
                assert pid in session.pids.values()
                (session.folder / "go").touch()
                assert (await first).text == '"went on"'

    run(scenario)


def test_a_connection_wakes_an_endpoint_without_workers() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.keeper.start_template(spec_for(session))
            async with client(session) as http:
                assert (await http.get("/items/1")).json()["n"] == 1

    run(scenario)


def test_requests_past_their_limit_are_answered_and_the_worker_goes_on() -> None:
    """A body in a thread cannot be stopped, and one that holds the loop is: both are 504, others are not disturbed."""

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session, execution_timeout_ms=300, workers_max=1))
            async with client(session) as http:
                pid = (await http.get("/who")).json()["pid"]
                for path in ("/sleeps", "/waits", "/spins"):
                    late = await http.get(path)
                    assert (late.status_code, late.json()["code"]) == (504, "TIMEOUT"), path
                assert (await http.get("/who")).json()["pid"] == pid
            assert (await session.summary("m.spins")).outcome == "timeout"

    run(scenario)


def test_an_update_finishes_what_runs_and_tells_websockets() -> None:
    """The new build answers new requests while the old one finishes; a websocket is closed as restarting."""

    async def scenario() -> None:
        async with Session() as session:
            first = spec_for(session, drain_limit_s=15)
            await session.start(first)
            path = str(session.sockets.socket_path)
            async with client(session) as http, unix_connect(path, uri="ws://endpoint/chat/tea") as chat:
                await chat.send("hello")
                await chat.recv()
                old = (await http.get("/who")).json()["pid"]
                running = asyncio.ensure_future(http.get("/waits"))
                await session.until(lambda: (session.folder / "begun").exists())
                await session.update(spec_for(session, build="b2", generation=2, drain_limit_s=15))
                with pytest.raises(ConnectionClosed) as closed:
                    await chat.recv()
                assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
                async with client(session) as other:
                    assert (await other.get("/who")).json()["pid"] != old
                (session.folder / "go").touch()
                assert (await running).text == '"went on"'
            await session.until(lambda: [gone for gone in session.gone if gone.pid == old])

    run(scenario)


def test_no_request_is_lost_while_builds_change() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            statuses: list[int] = []
            stop = asyncio.Event()

            async def call_on() -> None:
                while not stop.is_set():
                    async with client(session) as http:
                        statuses.append((await http.get("/items/1", headers={"connection": "close"})).status_code)

            callers = [asyncio.ensure_future(call_on()) for _ in range(4)]
            for generation in (2, 3, 4):
                before = set(session.pids)
                await session.update(spec_for(session, build=f"b{generation}", generation=generation))
                await session.until(lambda before=before: set(session.pids) - before)
            stop.set()
            await asyncio.gather(*callers)
            assert len(statuses) > 10 and set(statuses) == {200}

    run(scenario)


def test_a_connection_that_is_kept_is_told_of_its_end_by_an_answer() -> None:
    """A client that calls over and over never has a request cut by a worker that leaves."""

    async def last_answer(path: str) -> bytes:
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            while True:
                writer.write(b"GET /items/1 HTTP/1.1\r\nHost: endpoint\r\n\r\n")
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                if b"connection: close" in head:
                    return head
        finally:
            writer.close()

    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            callers = [asyncio.ensure_future(last_answer(str(session.sockets.socket_path))) for _ in range(8)]
            async with client(session) as http:
                assert (await http.get("/items/1")).status_code == 200
            await session.update(spec_for(session, build="b2", generation=2))
            heads = await asyncio.gather(*callers)
            assert {head.partition(b"\r\n")[0] for head in heads} == {b"http/1.1 200 ok"}

    run(scenario)


def test_a_route_that_fastapi_cannot_read_is_a_failed_import() -> None:
    source = """
        from fastapi import Depends
        from flashmesh import Endpoint
        api = Endpoint(name="e")

        @api.get("/bad")
        def bad(x: int = Depends(lambda y: object)): ...

        @api.get("/worse/{n}")
        def worse(n: object()): ...
        """

    async def scenario() -> None:
        async with Session() as session:
            await session.keeper.start_template(spec_for(session, source, ("bad", "worse")))
            (info,) = await session.until(lambda: session.infos)
            assert info["state"] == "import_failed" and info["error"]["file"] == "m.py"
            async with client(session) as http:
                refused = await http.get("/bad")
                assert refused.status_code == 503 and refused.json()["error"]["code"] == "IMPORT_FAILED"

    run(scenario)


def test_limits_of_heads_and_bodies_hold_at_the_socket() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                many = {f"x-{number}": "y" for number in range(70)}
                assert (await http.get("/items/1", headers=many)).status_code == 431
            large = b"POST /raw HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
            for sent, status in ((b"nonsense\r\n\r\n", b" 400 "), (large, b" 413 ")):
                reader, writer = await asyncio.open_unix_connection(str(session.sockets.socket_path))
                writer.write(sent)
                assert status in await asyncio.wait_for(reader.readline(), 20)
                writer.close()

    run(scenario)


def test_a_killed_worker_ends_its_connections_and_the_next_request_is_served() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session))
            async with client(session) as http:
                pid = (await http.get("/who")).json()["pid"]
                waiting = asyncio.ensure_future(http.get("/waits"))
                await session.until(lambda: (session.folder / "begun").exists())
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(httpx.RemoteProtocolError):
                    await waiting
            async with client(session) as http:
                assert (await http.get("/who")).json()["pid"] != pid

    run(scenario)


def test_workers_of_queues_import_no_web_framework() -> None:
    code = (
        "import sys, flashmesh.worker.assemble, flashmesh.worker.runtime, flashmesh.worker.loader\n"
        "print([name for name in ('fastapi', 'starlette', 'uvicorn') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_marked_lines_are_told_apart_and_others_stay_as_they_are() -> None:
    lines = [marked("m.f", "x1", "one"), marked("m.f", "x1", "two"), "\x1ehalf", "plain", marked("m.g", "x2", "")]
    assert by_writer(lines, ("m.h", "x3")) == [
        (("m.f", "x1"), ["one", "two"]),
        (("m.h", "x3"), ["\x1ehalf", "plain"]),
        (("m.g", "x2"), [""]),
    ]


def test_a_connection_that_says_nothing_does_not_keep_a_worker_that_leaves() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session, drain_limit_s=60))
            (pid,) = session.pids.values()
            _, silent = await asyncio.open_unix_connection(str(session.sockets.socket_path))
            async with client(session) as http:
                await http.get("/items/1")  # so that the connection before it is accepted, too
            os.kill(pid, signal.SIGTERM)
            await session.until(lambda: [gone for gone in session.gone if gone.pid == pid])
            assert session.gone[0].status == 0
            silent.close()

    run(scenario)


def test_in_job_mode_each_connection_has_a_fresh_process() -> None:
    async def scenario() -> None:
        async with Session() as session:
            await session.start(spec_for(session, mode="JOB", workers_max=3))
            pids = []
            for _ in range(3):
                async with client(session) as http:
                    pids.append((await http.get("/who")).json()["pid"])
            assert len(set(pids)) == 3
            async with unix_connect(str(session.sockets.socket_path), uri="ws://endpoint/chat/tea") as chat:
                await chat.send("hello")
                assert await chat.recv() == "tea: hello"

    run(scenario)
