"""A real `flash server` as a subprocess, on a project whose functions wait for files."""

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flash_command import FLASH, PATIENCE_S, announced, ask, descendants, environment, flash, is_gone, until

PROJECT = '''
import os
import time
from pathlib import Path

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="cpu", workersMax=2)


@remote(cpu)
def hello(name: str = "world") -> dict:
    print(f"greeting {name}")
    return {"message": f"Hello, {name}!"}


@remote(cpu)
def wait_for(folder: str, name: str) -> int:
    """Says that it runs, and ends when it is told to."""
    Path(folder, name + ".begun").write_text(str(os.getpid()))
    while not Path(folder, name + ".end").exists():
        time.sleep(0.005)
    with Path(folder, name + ".done").open("a") as file:
        file.write("done\\n")
    return os.getpid()


@remote(cpu)
def fails() -> None:
    raise ValueError("no")


@remote(cpu)
def refuses(text: str) -> None:
    raise ValueError(f"{len(text)} characters")


@remote(cpu)
def count(n: int):
    yield from range(n)
'''


def write_project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.py").write_text(PROJECT)
    return folder


class ServerProcess:
    """A `flash server` in the foreground."""

    def __init__(self, home: Path, *options: str, project: Path | None = None, **env: str) -> None:
        self.home = home
        self.env = environment(home, **env)
        command = [FLASH, "server", "--port", "0", *(["--project", str(project)] if project else []), *options]
        self.log = home / "foreground.log"
        home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                command, env=self.env, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.facts = self._facts()

    def _facts(self) -> dict[str, Any]:
        """What `flash server status` says, once it answers."""

        def look() -> dict[str, Any] | None:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.log.read_text()}")
            facts = announced(self.home)
            return facts if facts is not None and facts["pid"] == self.process.pid else None

        found: dict[str, Any] = until(look, "the server's start")
        return found

    @property
    def port(self) -> int:
        return int(self.facts["url"].rpartition(":")[2])

    @property
    def data(self) -> Path:
        return Path(self.facts["data"])

    def request(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        return ask(method, f"http://127.0.0.1:{self.port}{path}", body, **headers)

    def invoke(self, function: str, **arguments: Any) -> Any:
        status, body, _ = self.request("POST", f"/v1/functions/{function}:invoke", {"input": arguments})
        assert status == 200, body
        return body["output"]

    def enqueue(self, function: str, **arguments: Any) -> str:
        status, body, _ = self.request("POST", f"/v1/functions/{function}:enqueue", {"input": arguments})
        assert status == 202, body
        return str(body["executionId"])

    def execution(self, id: str) -> dict[str, Any]:
        status, body, _ = self.request("GET", f"/v1/executions/{id}")
        assert status == 200, body
        found: dict[str, Any] = body
        return found

    def ended(self, id: str) -> dict[str, Any]:
        """The execution, once it has ended."""

        def look() -> dict[str, Any] | None:
            found = self.execution(id)
            return found if found["status"] not in ("queued", "running") else None

        found: dict[str, Any] = until(look, f"the end of {id}")
        return found

    def flash(self, *arguments: str, cwd: Path | None = None, **more: Any) -> subprocess.CompletedProcess[str]:
        """Another command of the same user."""
        return flash(self.home, *arguments, cwd=cwd or self.home, **more)

    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines it has logged."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def pids(self) -> list[int]:
        """Processes that name one of this server's sockets or belong to its tree, itself included."""
        return descendants(self.process.pid)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def serving(home: Path, *options: str, project: Path | None = None, **env: str) -> Iterator[ServerProcess]:
    """A server that is gone afterwards, however the test ends."""
    server = ServerProcess(home, *options, project=project, **env)
    try:
        yield server
    finally:
        below = server.pids()
        server.kill()
        until(lambda: all(is_gone(pid) for pid in below), "the end of the server's processes")
