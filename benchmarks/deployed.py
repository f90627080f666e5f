"""The product under measurement: a real `flash server` with projects deployed on it by `flash deploy`."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.floors import free_port, wait_for_200
from benchmarks.product import flash


class Deployed:
    """A running server and what is deployed on it."""

    def __init__(self, port: int, home: Path, environment: dict[str, str]) -> None:
        self.port = port
        self._home = home
        self._environment = environment

    def deploy(self, project: Path) -> dict[str, Any]:
        """`flash deploy` of that folder; what it prints as JSON."""
        command = [flash(), "deploy", "--json"]
        done = subprocess.run(command, cwd=project, env=self._environment, check=True, capture_output=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ask(self, path: str, body: object = None) -> Any:
        """The server's answer to an admin: to a POST where there is a body."""
        with self._opened(path, body) as answer:
            return json.load(answer)

    def end_of(self, deployment: str) -> dict[str, Any]:
        """Follow a deployment to its end: its document."""
        with self._opened(f"/v1/deployments/{deployment}/events") as answer:
            last = [line for line in answer if line.startswith(b"data:")][-1]
        found: dict[str, Any] = json.loads(last.removeprefix(b"data:"))
        return found

    def _opened(self, path: str, body: object = None) -> Any:
        (token,) = self._home.glob("hosts/*/token")
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {token.read_text().strip()}"},
        )
        return urllib.request.urlopen(request, timeout=60)


@contextmanager
def deploying(folder: Path) -> Iterator[Deployed]:
    """A server without a project, in a home of its own; what is deployed ends with it."""
    port, home = free_port(), folder / "deploy-home"
    environment = {**os.environ, "FLASH_HOME": str(home)}
    with (folder / "deploy-server.log").open("ab") as log:
        process = subprocess.Popen(
            [flash(), "server", "--port", str(port)], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    try:
        wait_for_200(f"http://127.0.0.1:{port}/healthz", process)
        yield Deployed(port, home, environment)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)


def port_of(url: str) -> int:
    """Of `http://127.0.0.1:PORT`."""
    return int(url.rpartition(":")[2])
