"""One user's machine as far as deploys go: a home, projects, the real command, the real server."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flash_command import FLASH, PATIENCE_S, announced, ask, environment, flash, is_gone, until

CPU = """
import os
import time
from pathlib import Path

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="cpu", workersMax=2)


@remote(cpu)
def version() -> str:
    return "{version}"


@remote(cpu)
def pid() -> int:
    return os.getpid()


@remote(cpu)
def variable(name: str) -> str:
    return os.environ.get(name, "")
"""
ASKS = """
from flashmesh import CpuLiveServerless, remote

from cpu import version

asks = CpuLiveServerless(name="asks")


@remote(asks)
async def ask() -> str:
    return "cpu says " + await version()
"""


class Machine:
    """`flash` as its user runs it. Its server always has the same port; endpoints and server are gone after `close`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.env = environment(self.home, FLASH_SERVER_PORT=str(free_port()))
        self.started: list[subprocess.Popen[str]] = []

    def project(self, name: str = "shop", **files: str) -> Path:
        """A directory with those modules; files that are there and not named stay."""
        root = self.folder / name
        root.mkdir(exist_ok=True)
        for module, source in files.items():
            (root / f"{module}.py").write_text(source)
        return root

    def flash(
        self, *arguments: str, cwd: Path | None = None, code: int | None = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command until it ends, with that exit code (None: any)."""
        found = flash(self.home, *arguments, cwd=cwd or self.folder, env={**self.env, **env})
        if code is not None:
            assert found.returncode == code, f"exit code {found.returncode}\n{found.stdout}\n{found.stderr}"
        return found

    def begin(self, *arguments: str, cwd: Path | None = None) -> "subprocess.Popen[str]":
        """Run a command beside the test."""
        process = subprocess.Popen(
            [FLASH, *arguments],
            env=self.env,
            cwd=cwd or self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def deploy(self, root: Path, *options: str, code: int = 0) -> dict[str, Any]:
        """`flash deploy --json`: what it prints."""
        found: dict[str, Any] = json.loads(self.flash("deploy", "--json", *options, cwd=root, code=code).stdout)
        return found

    # The server

    def serve(self, *options: str) -> None:
        self.flash("server", "--detach", *options)

    @property
    def facts(self) -> dict[str, Any] | None:
        """What the server of this machine announced, living or dead."""
        return announced(self.home)

    def kill_server(self) -> None:
        """kill -9, and wait until it is gone."""
        facts = self.facts
        assert facts is not None
        os.kill(facts["pid"], signal.SIGKILL)
        until(lambda: is_gone(facts["pid"]), "the server's end")

    @property
    def token(self) -> str:
        (path,) = self.home.glob("hosts/*/token")
        return path.read_text().strip()

    def api(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Ask the server, as an admin unless `Authorization` is given."""
        facts = self.facts
        assert facts is not None
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        return request(method, facts["url"] + path, body, **{name: value for name, value in sent.items() if value})

    # What is deployed

    def status(self, *options: str) -> list[dict[str, Any]]:
        """The environments that `flash status --json` shows."""
        found: list[dict[str, Any]] = json.loads(self.flash("status", "--json", *options).stdout)["environments"]
        return found

    def endpoint(self, resource: str, *options: str) -> dict[str, Any]:
        found = [one for place in self.status(*options) for one in place["endpoints"] if one["resource"] == resource]
        assert len(found) == 1, found
        return found[0]

    def close(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        self.flash("server", "stop", "--now", code=None)


def request(method: str, url: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and body, as JSON where it is."""
    status, answer, _ = ask(method, url, body, **headers)
    return status, answer


def call(endpoint: dict[str, Any], function: str, **arguments: Any) -> Any:
    """Call a function at its endpoint's own address; its result."""
    status, body = request("POST", f"{endpoint['url']}/{function}/run_sync", {"input": arguments})
    assert status == 200, body
    return body["output"]


class Load:
    """Threads that call one function over and over, from `with` to its end: over the server, or at `url`."""

    def __init__(self, machine: Machine, function: str, clients: int = 4, *, url: str = "") -> None:
        facts = machine.facts
        assert facts is not None
        self._url = url or f"{facts['url']}/v1/functions/{function}:invoke"
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(clients)]
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self.failures: list[Any] = []

    def _call(self) -> None:
        while not self._over.is_set():
            try:
                status, body = request("POST", self._url, {"input": {}})
            except OSError as error:
                status, body = 0, repr(error)
            with self._lock:
                if status == 200:
                    self.answers[str(body["output"])] += 1
                else:
                    self.failures.append((status, body))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def wait_for(self, answer: str, more: int = 20) -> None:
        """Until that was answered so many times more."""
        before = self.answers[answer]
        until(lambda: self.answers[answer] >= before + more or self.failures, f"{more} answers {answer}")


def free_port() -> int:
    """One that nobody listens on, below those that outgoing connections get."""
    while True:
        port = random.randrange(20_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    made = Machine(folder)
    try:
        yield made
    finally:
        made.close()
