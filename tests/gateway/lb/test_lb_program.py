"""A real `flash server` on a project with HTTP routes: through its port, to workers of its own, with real clients."""

import asyncio
import os
import signal
from pathlib import Path

import httpx
import pytest
from server_fixtures import ServerProcess, serving, until
from websockets.sync.client import connect

PROJECT = """
import asyncio
import os
from pathlib import Path

from fastapi import Request, UploadFile, WebSocket

from flashmesh import CpuLiveLoadBalancer, CpuLiveServerless, Endpoint, remote

web = Endpoint(name="shop", cpu="cpu3g-2-8")
lb = CpuLiveLoadBalancer(name="api", public=True)
cpu = CpuLiveServerless(name="cpu")


@remote(cpu)
def double(n: int) -> int:
    return 2 * n


@web.get("/items/{n}")
async def item(n: int, request: Request) -> dict:
    print("asked for", n)
    return {"n": n, "doubled": await double(n), "pid": os.getpid(), "prefix": request.headers.get("x-forwarded-prefix")}


@web.post("/upload")
async def upload(file: UploadFile) -> dict:
    return {"size": len(await file.read())}


@web.get("/ticks")
async def ticks():
    for number in range(3):
        yield f"tick {number}\\n"
        await asyncio.sleep(0.05)


@web.get("/half")
async def half():
    yield b"h" * 1000
    Path(os.environ["FOLDER"], "half").write_text(str(os.getpid()))
    await asyncio.sleep(60)


@web.get("/chat")
async def chat(websocket: WebSocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())


@web.get("/waits")
async def waits():
    Path(os.environ["FOLDER"], "begun").touch()
    while not Path(os.environ["FOLDER"], "go").exists():
        await asyncio.sleep(0.01)
    return "went on"


@remote(lb, method="POST", path="/sum")
async def total(numbers: list[int]) -> int:
    return sum(numbers)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "web.py").write_text(PROJECT)
    return folder


def client(server: ServerProcess) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60)


def test_http_routes_of_a_project_are_served_below_its_name_and_at_its_host(tmp_path: Path, project: Path) -> None:
    """From zero workers on; with uploads, streams, calls of other endpoints, websockets; logged under their names."""
    with serving(tmp_path, project=project, FOLDER=str(tmp_path)) as server, client(server) as http:
        first = http.get("/lb/shop/items/7").json()
        assert (first["n"], first["doubled"], first["prefix"]) == (7, 14, "/lb/shop")
        by_host = http.get("/items/8", headers={"host": f"shop.localhost:{server.port}"}).json()
        assert (by_host["n"], by_host["prefix"], by_host["pid"]) == (8, None, first["pid"])
        assert http.post("/lb/api/sum", json={"numbers": [1, 2, 3]}).json() == 6
        assert http.post("/lb/shop/upload", files={"file": b"x" * 3_000_000}).json() == {"size": 3_000_000}
        with http.stream("GET", "/lb/shop/ticks") as ticks:
            assert list(ticks.iter_lines()) == ["tick 0", "tick 1", "tick 2"]
        with connect(f"ws://127.0.0.1:{server.port}/lb/shop/chat") as chat:
            chat.send("hello")
            assert chat.recv(timeout=30) == "HELLO"
        assert http.post("/v1/functions/double:invoke", json={"input": {"n": 4}}).json()["output"] == 8
        missing = http.get("/lb/shop/nothing")
        assert missing.status_code == 404 and "GET /items/{n}" in missing.json()["error"]
        assert http.post("/lb/shop/execute", json={"input": {"function_code": "1"}}).status_code == 404
        until(lambda: "[item] asked for 7" in server.log.read_text(), "the body's output")
        assert 'flash_lb_requests_total{status="200"}' in http.get("/metrics").text


def test_a_killed_worker_is_an_error_at_once_and_the_next_request_is_served(tmp_path: Path, project: Path) -> None:
    with serving(tmp_path, project=project, FOLDER=str(tmp_path)) as server, client(server) as http:
        with http.stream("GET", "/lb/shop/half") as answer:
            until(lambda: (tmp_path / "half").exists() and (tmp_path / "half").read_text(), "the answer's first half")
            pid = int((tmp_path / "half").read_text())
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()
        assert http.get("/lb/shop/items/1").json()["pid"] != pid


def test_a_server_that_stops_lets_requests_finish(tmp_path: Path, project: Path) -> None:
    async def story(server: ServerProcess) -> None:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as http:
            running = asyncio.ensure_future(http.get("/lb/shop/waits"))
            await asyncio.to_thread(until, lambda: (tmp_path / "begun").exists(), "the request")
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(until, lambda: "Stopping" in stopping(server), "the end's beginning")
            (tmp_path / "go").touch()
            assert (await running).json() == "went on"

    def stopping(server: ServerProcess) -> str:
        answer = server.request("GET", "/readyz")[1]
        return "Stopping" if "STOPPING" in str(answer) else ""

    with serving(tmp_path, project=project, FOLDER=str(tmp_path)) as server:
        asyncio.run(story(server))
        assert server.process.wait(30) == 0


def test_an_edit_that_cannot_be_imported_is_told_to_whoever_asks(tmp_path: Path, project: Path) -> None:
    (project / "web.py").write_text(PROJECT + "\nraise RuntimeError('not today')\n")
    with serving(tmp_path, project=project, FOLDER=str(tmp_path)) as server, client(server) as http:
        told = http.get("/lb/shop/items/1")
        assert told.status_code == 503 and "not today" in told.text
