"""`python handlers/handler_<resource>.py` in an unpacked archive starts an endpoint, and nothing else is needed."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flashmesh.deploy.build import build
from flashmesh.gateway.access.keys import TokenKeys
from flashmesh.project.unpack import remove, unpack

FILES = {
    "my-worker.py": """
from flashmesh import CpuLiveServerless, remote
from lib.text import shout
config = CpuLiveServerless(name="worker", workersMax=2)

@remote(config)
async def hello(name: str = "you") -> str:
    return shout(f"hello {name}")

@remote(config)
class Counter:
    def __init__(self) -> None:
        self.count = 0
    def add(self, by: int) -> int:
        self.count += by
        return self.count
""",
    "lib/text.py": "def shout(text):\n    return text.upper()\n",
    "api.py": """
from flashmesh import Endpoint
api = Endpoint(name="api", cpu="cpu3c-1-2")

@api.post("/double/{n}")
async def double(n: int, plus: int = 0) -> dict:
    return {"value": n * 2 + plus}
""",
    "broken.py": """
from flashmesh import Endpoint
import os

@Endpoint(name="broken", cpu="cpu3c-1-2")
def f(): ...

if os.environ.get("BREAK"):
    raise RuntimeError("it cannot work here")
""",
}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    folder = tmp_path_factory.mktemp("builds") / "build"
    unpack(asyncio.run(build(root)).artifact.path, folder)
    yield folder
    remove(folder)


@contextlib.contextmanager
def handler(unpacked: Path, name: str, **environ: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running handler, from another directory than its own, and the address that it tells."""
    process = subprocess.Popen(
        [sys.executable, str(unpacked / "handlers" / f"handler_{name}.py")],
        cwd="/",
        env={**os.environ, "PORT": "0", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert " answers at " in line, line + process.stderr.read()
        yield process, line.split(" answers at ")[1].strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def ask(url: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        text = None if body is None else json.dumps(body)
        method = "GET" if body is None else "POST"
        connection.request(method, path, text, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_queue_based_endpoint_answers_by_itself(unpacked: Path) -> None:
    with handler(unpacked, "my_worker") as (process, url):
        assert ask(url, "/ping") == (200, {"status": "healthy"})
        status, answer = ask(url, "/hello/run_sync", {"input": {"name": "Ada"}})
        assert (status, answer["status"], answer["output"]) == (200, "COMPLETED", "HELLO ADA")
        counted = ask(url, f"/{'my-worker.Counter.add'}/run_sync", {"input": {"by": 3}})
        assert counted[1]["output"] == 3
        status, answer = ask(url, "/run_sync", {"input": {}})  # which of the two?
        assert (status, "my-worker.hello" in json.dumps(answer)) == (409, True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize("path", ["/execute", "/invoke_code", "/run_sync/code"])
def test_no_route_runs_code_that_is_sent(unpacked: Path, path: str) -> None:
    code = {"function_name": "evil", "function_code": "def evil(): return 1", "args": [], "kwargs": {}}
    with handler(unpacked, "my_worker") as (_, url):
        assert ask(url, path, {"input": code})[0] == 404
        status, answer = ask(url, "/run_sync", {"input": code})
        assert (status, answer["status"]) != (200, "COMPLETED")
    with handler(unpacked, "api") as (_, url):
        assert ask(url, path, {"input": code})[0] == 404


def test_an_endpoint_with_routes_answers_them_by_itself(unpacked: Path) -> None:
    with handler(unpacked, "api") as (_, url):
        assert ask(url, "/double/21") == (405, ask(url, "/double/21")[1])
        assert ask(url, "/double/21", {"plus": 1}) == (200, {"value": 43})
        assert ask(url, "/ping")[0] == 200


def test_pages_of_other_sites_and_foreign_host_names_are_refused(unpacked: Path) -> None:
    with handler(unpacked, "my_worker") as (_, url):
        assert ask(url, "/hello/run_sync", {"input": {}}, Origin="https://evil.example")[0] == 403
        assert ask(url, "/hello/run_sync", {"input": {}}, Host="evil.example")[0] == 403


def test_tokens_of_the_key_count_for_their_app_and_environment_and_no_others_do(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    keys, others = TokenKeys.open(tmp_path), TokenKeys.open(tmp_path / "other")
    environ = {"FLASH_PUBLIC_KEY": b64encode(keys.public).decode(), "FLASH_APP": "shop", "FLASH_ENV": "staging"}
    tokens = {
        keys.issue("good", "call", app="shop", environment="staging")[0]: 200,
        keys.issue("peer", "peer", app="shop", environment="staging")[0]: 200,
        keys.issue("elsewhere", "call", app="shop", environment="production")[0]: 403,
        keys.issue("looks", "metrics")[0]: 403,
        others.issue("stranger", "call")[0]: 401,
    }
    with handler(unpacked, "my_worker", **environ) as (_, url):
        for token, status in tokens.items():
            assert ask(url, "/hello/run_sync", {"input": {}}, Authorization=f"Bearer {token}")[0] == status


def test_ctrl_c_ends_it_too(unpacked: Path) -> None:
    with handler(unpacked, "my_worker") as (process, url):
        ask(url, "/ping")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def ended(unpacked: Path, name: str, **environ: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, str(unpacked / "handlers" / f"handler_{name}.py")],
        env={**os.environ, "PORT": "0", **environ},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_port_that_is_taken_is_said(unpacked: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = ended(unpacked, "my_worker", PORT=str(port))
    assert status == 1
    assert f"127.0.0.1:{port} cannot be listened at" in said
    assert "Set PORT" in said


@pytest.mark.parametrize(
    ("environ", "says"), [({"PORT": "http"}, "PORT must be"), ({"FLASH_PUBLIC_KEY": "ab"}, "FLASH_PUBLIC_KEY must be")]
)
def test_a_variable_that_cannot_be_used_is_named(unpacked: Path, environ: dict[str, str], says: str) -> None:
    status, said = ended(unpacked, "my_worker", **environ)
    assert (status, says in said) == (1, True)


def test_a_manifest_that_is_missing_is_said(unpacked: Path, tmp_path: Path) -> None:
    (tmp_path / "handlers").mkdir()
    name = "handler_my_worker.py"
    (tmp_path / "handlers" / name).write_bytes((unpacked / "handlers" / name).read_bytes())
    status, said = ended(tmp_path, "my_worker")
    assert status == 1
    assert "flash_manifest.json cannot be read" in said


def test_a_module_that_cannot_be_imported_is_told_to_who_calls(unpacked: Path) -> None:
    with handler(unpacked, "broken", BREAK="1") as (_, url):
        status, answer = ask(url, "/run_sync", {"input": {}})
    assert status >= 500
    assert "it cannot work here" in json.dumps(answer)
