"""Endpoint(id=…) and Endpoint(image=…): jobs and requests against a real HTTP server in a thread."""

import asyncio
import contextlib
import http.server
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashmesh.functions import endpoint_client
from flashmesh.functions.endpoint import Endpoint
from flashmesh.functions.endpoint_client import EndpointClient, EndpointJob
from flashmesh.functions.errors import EndpointUnreachable, EndpointUnresolved, InsecureAddress, RequestFailed
from flashmesh.functions.http import request_json

Answer = tuple[int, Any]


class Server(http.server.ThreadingHTTPServer):
    """Answers (status, JSON value) from `answer(method, path, body)` and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, str, Any], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.seen: list[tuple[str, str, Any, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def _respond(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.seen.append((self.command, self.path, body, self.headers.get("Authorization")))
        status, value = self.server.answer(self.command, self.path, body)
        if status == 0:  # hang up without an answer
            self.connection.close()
            return
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(value, bytes) else "application/json")
        if 300 <= status < 400:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _respond  # noqa: N815 - the names http.server looks for

    def log_message(self, *_: Any) -> None:
        return None


@contextlib.contextmanager
def served(answer: Callable[[str, str, Any], Answer], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server(answer)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", f"{server.url}/v2")
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key of this machine's user, and polls without pauses."""
    for name in (
        "RUNPOD_API_KEY",
        "FLASH_SERVER",
        "FLASH_TOKEN",
        "RUNPOD_ENDPOINT_BASE_URL",
        "http_proxy",
        "HTTP_PROXY",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(endpoint_client, "POLL_FIRST_S", 0.001)
    monkeypatch.setattr(endpoint_client, "POLL_LONGEST_S", 0.01)


def test_a_job_is_submitted_and_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(["IN_QUEUE", "IN_PROGRESS", "COMPLETED"])

    def answer(method: str, path: str, body: Any) -> Answer:
        if path.endswith("/run"):
            return 200, {"id": "j1", "status": "IN_QUEUE"}
        return 200, {"id": "j1", "status": next(states), "output": {"x": 1}}

    async def program() -> EndpointJob:
        job = await Endpoint(id="abc").run({"prompt": "hi"}, webhook="https://example.com")
        assert (job.id, job.done, job.output) == ("j1", False, None)
        assert await job.wait() is job
        return job

    monkeypatch.setenv("RUNPOD_API_KEY", "k")
    with served(answer, monkeypatch) as server:
        job = asyncio.run(program())
    assert (job.done, job.output, job.error) == (True, {"x": 1}, None)
    assert repr(job) == "EndpointJob(id='j1', status='COMPLETED')"
    assert server.seen[0] == (
        "POST",
        "/v2/abc/run",
        {"input": {"prompt": "hi"}, "webhook": "https://example.com"},
        "Bearer k",
    )
    assert server.seen[-1][:2] == ("GET", "/v2/abc/status/j1")


def test_runsync_and_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, body: Any) -> Answer:
        if "/cancel/" in path:
            return 200, {"id": "j1", "status": "CANCELLED"}
        return 200, {"id": "j1", "status": "FAILED", "error": "boom"}

    async def program() -> None:
        endpoint = Endpoint(id="abc")
        job = await endpoint.runsync({"a": 1}, timeout=5)
        assert (job.done, job.error) == (True, "boom")
        assert (await endpoint.cancel("j1")).done
        assert await (await job.cancel()).wait() is job

    with served(answer, monkeypatch) as server:
        asyncio.run(program())
    assert [seen[1] for seen in server.seen] == ["/v2/abc/runsync", "/v2/abc/cancel/j1", "/v2/abc/cancel/j1"]


def test_waiting_survives_a_network_that_blinks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four answers are missed, then it is over."""
    asked = []

    def answer(method: str, path: str, body: Any) -> Answer:
        asked.append(path)
        return (0, None) if len(asked) < 5 else (200, {"id": "j1", "status": "COMPLETED"})

    with served(answer, monkeypatch):
        job = EndpointJob({"id": "j1", "status": "IN_QUEUE"}, EndpointClient(id="abc", name=None))
        asyncio.run(job.wait())
    assert job.done
    assert len(asked) == 5


def test_waiting_ends_after_five_missed_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(method: str, path: str, body: Any) -> Answer:
        asked.append(path)
        return 0, None

    with served(answer, monkeypatch):
        job = EndpointJob({"id": "j1", "status": "IN_QUEUE"}, EndpointClient(id="abc", name=None))
        with pytest.raises(EndpointUnreachable):
            asyncio.run(job.wait())
    assert len(asked) == 5


def test_waiting_too_long_is_a_timeout_and_the_job_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda *_: (200, {"id": "j1", "status": "IN_PROGRESS"}), monkeypatch):
        job = EndpointJob({"id": "j1", "status": "IN_QUEUE"}, EndpointClient(id="abc", name=None))
        with pytest.raises(TimeoutError, match="IN_PROGRESS"):
            asyncio.run(job.wait(timeout=0.3))
        assert not job.done


def test_a_refusal_is_not_retried_and_shows_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda *_: (401, {"error": "bad key"}), monkeypatch) as server:
        with pytest.raises(RequestFailed, match=r"401.*bad key.*RUNPOD_API_KEY") as refused:
            asyncio.run(Endpoint(id="abc").run({}))
        assert len(server.seen) == 1
    assert refused.value.status_code == 401
    assert "bad key" in refused.value.body


def test_redirects_are_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key must not travel to where somebody else points."""
    monkeypatch.setenv("RUNPOD_API_KEY", "k")
    with served(lambda *_: (307, {}), monkeypatch) as server:
        with pytest.raises(RequestFailed, match="redirect"):
            asyncio.run(Endpoint(id="abc").run({}))
        assert len(server.seen) == 1


def test_routes_of_a_client_are_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, body: Any) -> Answer:
        return 200, {"method": method, "path": path, "body": body}

    async def program() -> list[Any]:
        endpoint = Endpoint(id="abc")
        return [
            await endpoint.get("/v1/models"),
            await endpoint.post("/v1/x", {"a": 1}, timeout=5),
            await endpoint.put("/p", [1]),
            await endpoint.delete("/d"),
            await endpoint.patch("/q", 0),
        ]

    with served(answer, monkeypatch):
        answers = asyncio.run(program())
    assert [a["method"] for a in answers] == ["GET", "POST", "PUT", "DELETE", "PATCH"]
    assert answers[1] == {"method": "POST", "path": "/lb/abc/v1/x", "body": {"a": 1}}


def test_a_client_s_route_used_as_a_decorator_says_what_it_is() -> None:
    with pytest.raises(TypeError, match="no decorator"):

        @Endpoint(id="abc").get("/x")
        def route() -> None: ...


def test_a_client_s_path_starts_with_a_slash() -> None:
    with pytest.raises(ValueError, match="start with '/'"):
        Endpoint(id="abc").get("x")


def test_an_answer_that_is_not_json_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(lambda *_: (200, b"plain"), monkeypatch) as server:
        assert request_json("GET", f"{server.url}/x") == "plain"
        with pytest.raises(EndpointUnreachable, match="not an object"):
            asyncio.run(Endpoint(id="abc").run({}))
    with served(lambda *_: (200, b""), monkeypatch) as server:
        assert request_json("GET", f"{server.url}/x") is None


def test_nobody_there_is_said_with_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(EndpointUnreachable, match=r"127\.0\.0\.1"):
        request_json("GET", f"http://127.0.0.1:{port}/x", timeout=2)


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with served(lambda *_: (200, {"ok": True}), monkeypatch) as server:
        assert request_json("GET", f"{server.url}/x") == {"ok": True}


def test_plain_http_to_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_ENDPOINT_BASE_URL", "http://example.com/v2")
    with pytest.raises(InsecureAddress, match="https"):
        asyncio.run(Endpoint(id="abc").run({}))


def test_an_image_is_called_on_the_server_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(name="vllm", image="vllm:1")
    with served(lambda *_: (200, {"id": "j1", "status": "COMPLETED"}), monkeypatch) as server:
        asyncio.run(endpoint.runsync({}))
    assert server.seen[0][1] == "/v2/vllm/runsync"


def test_an_image_that_runs_nowhere_says_what_to_do() -> None:
    with pytest.raises(EndpointUnresolved, match="Endpoint\\(id=…\\)"):
        asyncio.run(Endpoint(name="vllm", image="vllm:1").runsync({}))


def test_routes_at_runpod_have_a_host_of_their_own() -> None:
    assert EndpointClient(id="abc", name=None)._routes_url() == "https://abc.api.runpod.ai"
    assert EndpointClient(id="abc", name=None)._queue_url() == "https://api.runpod.ai/v2/abc"
