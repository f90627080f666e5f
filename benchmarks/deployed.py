"""The product under measurement: a real `flash server` with projects deployed on it by `flash deploy`."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import program
from benchmarks.floors import free_port, wait_for_200


class Deployed:
    """A running server and what is deployed on it."""

    def __init__(self, port: int, home: Path, environment: dict[str, str]) -> None:
        self.port = port
        self._home = home
        self._environment = environment

    def deploy(self, project: Path) -> dict[str, Any]:
        """`flash deploy` of that folder; what it prints as JSON."""
        command = [program.flash(), "deploy", "--json"]
        done = subprocess.run(command, cwd=project, env=self._environment, check=True, capture_output=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def ask(self, path: str, body: object = None) -> Any:
        """The server's answer to an admin: to a POST where there is a body."""
        return program.ask(self._url(path), body, token=self._token)

    def end_of(self, deployment: str) -> dict[str, Any]:
        """Follow a deployment to its end: its document."""
        with program.opened(self._url(f"/v1/deployments/{deployment}/events"), token=self._token) as answer:
            last = [line for line in answer if line.startswith(b"data:")][-1]
        found: dict[str, Any] = json.loads(last.removeprefix(b"data:"))
        return found

    def _url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @property
    def _token(self) -> str:
        (token,) = self._home.glob("hosts/*/token")
        return token.read_text().strip()


@contextmanager
def deploying(folder: Path) -> Iterator[Deployed]:
    """A server without a project, in a home of its own; what is deployed ends with it."""
    port, home = free_port(), folder / "deploy-home"
    environment = program.environment(home)
    command = [program.flash(), "server", "--port", str(port)]
    with program.started(command, environment=environment, log=folder / "deploy-server.log") as process:
        wait_for_200(f"http://127.0.0.1:{port}/healthz", process)
        yield Deployed(port, home, environment)


def port_of(url: str) -> int:
    """Of `http://127.0.0.1:PORT`."""
    return int(url.rpartition(":")[2])
