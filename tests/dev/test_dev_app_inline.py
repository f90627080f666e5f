import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dev_server_client import Answer, run, serving
from dev_template_process import free_port, http_get, http_post, wait_until
from lb_isolation import forget_project_modules

from flashmesh.dev.server.app import DevServer
from flashmesh.functions import caller

SOURCE = """
import asyncio
from flashmesh import LiveServerless, remote
gpu = LiveServerless(name="gpu")
made = []

@remote(gpu)
def double(n: int) -> dict:
    return {"twice": n * 2}

@remote(gpu)
async def nested(n: int):
    return await double(n)

@remote(gpu)
def own_loop(n: int):
    return asyncio.run(nested(n))

@remote(gpu)
def count(n: int):
    yield from range(n)

@remote(gpu)
async def forever():
    await asyncio.sleep(600)

@remote(gpu)
def broken():
    return {}["key"]

@remote(gpu)
class Counter:
    def __init__(self):
        made.append(self)
        self.total = 0

    def inc(self, by: int = 1):
        self.total += by
        return [self.total, len(made)]
"""
NAMES = ["double", "nested", "own_loop", "count", "forever", "broken"]


@pytest.fixture(autouse=True)
def _clean_interpreter() -> Iterator[None]:
    with forget_project_modules():
        yield
    caller.install(None)


def declare(server: DevServer) -> None:
    for name in NAMES:
        server.queue(f"/work/{name}", f"work.{name}", resource="work", file="work.py")
    server.queue("/work/inc", "work.Counter.inc", resource="work", file="work.py")


def ask(root: Path, *calls: tuple[str, Any, dict[str, str]]) -> list[Answer]:
    (root / "work.py").write_text(SOURCE)

    async def asking() -> list[Answer]:
        async with serving(declare, root=root, inline=True, short_wait_s=0.05) as client:
            answers = [await client.post(url, body, headers=headers) for url, body, headers in calls]
            assert client.session.seen == []  # nothing went to a worker
            return answers

    found: list[Answer] = run(asking())
    return found


@pytest.mark.parametrize("name", ["double", "nested", "own_loop"])
def test_inline_bodies_run_in_the_server(tmp_path: Path, name: str) -> None:
    (answer,) = ask(tmp_path, (f"/work/{name}/run_sync", {"input": {"n": 4}}, {}))
    assert answer.json["output"] == {"twice": 8}, answer.body


def test_inline_failures_look_as_they_do_from_a_worker(tmp_path: Path) -> None:
    missing, broken = ask(tmp_path, ("/work/double/run_sync", {"input": {}}, {}), ("/work/broken/run_sync", {}, {}))
    assert (missing.status, missing.json["field"]) == (422, "n")
    assert (broken.status, broken.json["error_type"]) == (500, "KeyError")
    assert 'return {}["key"]' in broken.json["traceback"]


def test_inline_generators_answer_a_list_or_stream(tmp_path: Path) -> None:
    listed, streamed = ask(
        tmp_path,
        ("/work/count/run_sync", {"input": {"n": 3}}, {}),
        ("/work/count/run_sync", {"input": {"n": 2}}, {"accept": "text/event-stream"}),
    )
    assert listed.json["output"] == [0, 1, 2]
    assert streamed.body.startswith(b"data: 0\n\ndata: 1\n\nevent: end\n")


def test_an_inline_class_has_one_instance(tmp_path: Path) -> None:
    first, second = ask(tmp_path, *[("/work/inc/run_sync", {"input": {"by": 2}}, {})] * 2)
    assert (first.json["output"], second.json["output"]) == ([2, 1], [4, 1])


def test_an_inline_call_has_a_status_and_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(SOURCE)

    async def asking() -> Any:
        async with serving(declare, root=tmp_path, inline=True, short_wait_s=0.05) as client:
            made = (await client.post("/work/forever/run", {})).json
            cancelled = (await client.post(f"/work/forever/cancel/{made['id']}")).json
            return made["status"], cancelled["status"]

    assert run(asking()) == ("IN_PROGRESS", "CANCELLED")


def test_an_inline_file_that_cannot_be_imported_is_503(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text("import absent_module\n")

    async def asking() -> Any:
        async with serving(declare, root=tmp_path, inline=True) as client:
            return await client.post("/work/double/run_sync", {"input": {"n": 1}})

    answer = run(asking())
    assert answer.status == 503
    assert "absent_module" in answer.json["error"]


SERVER = """
from pathlib import Path
from flashmesh.dev.server.app import DevServer
server = DevServer(Path(__file__).resolve().parent.parent)
server.queue("/work", "work.double", resource="work", file="work.py", line=7)
app = server.app
"""


@contextmanager
def uvicorn(root: Path, *, stdin: int = subprocess.DEVNULL, stdout: Any = None, **environment: str) -> Iterator[int]:
    """Flash's own command: `uvicorn server:app --app-dir .flash/`."""
    (root / ".flash").mkdir()
    (root / ".flash" / "server.py").write_text(SERVER)
    port = free_port()
    command = [sys.executable, "-P", "-m", "uvicorn", "server:app", "--app-dir", ".flash/", "--port", str(port)]
    process = subprocess.Popen(
        command, cwd=root, stdin=stdin, stdout=stdout, stderr=stdout, env={**os.environ, **environment}
    )
    try:
        wait_until(lambda: http_get(port, "/ping")[0] == 200, 20)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def test_breakpoint_has_the_terminal(tmp_path: Path) -> None:
    """`breakpoint()` in a body stops the server at a prompt; what is typed there goes to the debugger."""
    (tmp_path / "work.py").write_text(SOURCE.replace('    return {"twice"', '    breakpoint()\n    return {"twice"', 1))
    ours, theirs = os.openpty()
    options = '{"inline": true}'
    with uvicorn(tmp_path, stdin=theirs, stdout=theirs, FLASH_DEV_OPTIONS=options) as port:
        os.write(ours, b"!n = 21\nc\n")
        status, body = http_post(port, "/work/run_sync", b'{"input": {"n": 1}}')
        shown = read_until(ours, b"(Pdb)")
    os.close(ours)
    os.close(theirs)
    assert status == 200
    assert b'"output":{"twice":42}' in body
    assert b"(Pdb)" in shown


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What a terminal shows, up to `wanted`: one read need not give all that was written."""
    shown = b""
    while wanted not in shown and select.select([terminal], [], [], 20)[0]:
        shown += os.read(terminal, 65536)
    return shown


def test_the_file_also_runs_under_plain_uvicorn(tmp_path: Path) -> None:
    """It finds the session that serves this directory."""
    (tmp_path / "work.py").write_text(SOURCE)
    link = tmp_path / "l.sock"
    session = subprocess.Popen([sys.executable, str(Path(__file__).with_name("dev_session_fake.py")), str(link)])
    try:
        wait_until(link.exists)
        with uvicorn(tmp_path, FLASH_SESSION_LINK=str(link)) as port:
            status, body = http_post(port, "/work/run_sync", b'{"input": {"n": 1}}')
            assert (status, body.endswith(b'"output":{"n":1}}')) == (200, True)
    finally:
        session.kill()
        session.wait()
