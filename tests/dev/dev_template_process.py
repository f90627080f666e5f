"""A dev template as the session starts it, for tests: its port, its lines, its pipe, and clients that hammer it."""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flashmesh.dev.session.ports import listen
from flashmesh.dev.session.server_process import ServerProcess
from flashmesh.gateway.listening import Listener

PLAIN_SERVER = """
import asyncio, os, sys
GENERATION = {generation!r}

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
        return
    message = await receive()
    path = scope["path"]
    if path == "/slow":
        await asyncio.sleep(0.3)
    if path == "/block":
        import time
        while not os.path.exists("go"):
            time.sleep(0.005)
    if path == "/crash":
        os._exit(7)
    if path == "/child":
        import subprocess
        subprocess.Popen(["sleep", "600"])
    body = (GENERATION + " " + str(os.getpid())).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({{"type": "http.response.start", "status": 200, "headers": headers}})
    await send({{"type": "http.response.body", "body": body}})
"""


class RunningTemplate:
    """One template process and what it has said."""

    def __init__(self, root: Path, *, link: str = "", options: dict[str, Any] | None = None) -> None:
        (root / ".flash").mkdir(exist_ok=True)
        self.root = root
        self.listener: Listener = listen("127.0.0.1", free_port())
        self.pipe_read, self.pipe_write = os.pipe()
        self.process = ServerProcess.start(
            self.listener, root=root, link=link, pipe_fd=self.pipe_read, options=options or {}
        )
        self.events: list[dict[str, Any]] = []

    @property
    def port(self) -> int:
        return self.listener.port

    @property
    def pid(self) -> int:
        return self.process.process.pid

    def write_server(self, text: str) -> None:
        (self.root / ".flash" / "server.py").write_text(text)

    def serve(self, text: str | None = None) -> dict[str, Any]:
        """Serve this file; returns the `ready` (or `failed`) event."""
        if text is not None:
            self.write_server(text)
        generation = self.process.serve()
        return self.wait(lambda event: event["generation"] == generation and event["event"] in ("ready", "failed"))

    def wait(self, wanted: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """The first event that fits, whether it came before or comes yet."""
        until = time.monotonic() + seconds
        while True:
            for event in self.events:
                if wanted(event):
                    return event
            assert time.monotonic() < until, f"no such event among {self.events}"
            self.process.read(self.events.append)
            time.sleep(0.002)

    def get(self, path: str = "/", method: str = "GET") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def end_session(self) -> None:
        """What happens when the session's process dies."""
        os.close(self.pipe_write)
        self.pipe_write = -1

    def stop(self) -> None:
        self.process.close(1)
        try:
            self.process.process.wait(10)
        finally:
            self.process.kill()
            for descriptor in (self.pipe_read, self.pipe_write):
                if descriptor >= 0:
                    os.close(descriptor)
            self.listener.socket.close()


@contextmanager
def running_template(root: Path, **more: Any) -> Iterator[RunningTemplate]:
    template = RunningTemplate(root, **more)
    try:
        yield template
    finally:
        template.stop()


class Hammer(threading.Thread):
    """Sends requests until told to stop; keeps every answer with the time it was asked and got."""

    def __init__(self, port: int, *, keep_alive: bool, path: str = "/") -> None:
        super().__init__(daemon=True)
        self.port = port
        self.keep_alive = keep_alive
        self.path = path
        self.answers: list[tuple[float, float, str]] = []
        self.failures: list[str] = []
        self.ended = threading.Event()

    def run(self) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self.ended.is_set():
            asked = time.monotonic()
            try:
                if connection is None or not self.keep_alive:
                    if connection is not None:
                        connection.close()
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                    connection.connect()
                connection.request("GET", self.path)
                answer = connection.getresponse()
                text = answer.read().decode()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {text}")
                self.answers.append((asked, time.monotonic(), text))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection = None
        if connection is not None:
            connection.close()


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body; status 0 when nobody answers."""
    return _http(port, "GET", path, None)


def http_post(port: int, path: str, body: bytes) -> tuple[int, bytes]:
    return _http(port, "POST", path, body)


def _http(port: int, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except OSError:
        return 0, b""
    finally:
        connection.close()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)
