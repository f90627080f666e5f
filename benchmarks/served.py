"""The product under measurement: a real `flash server --project` on a project of a few functions."""

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import floors, http_load, program, tree

JOBS = """
import time

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="jobs", workersMax=1)
bounded = CpuLiveServerless(name="bounded", workersMax=1)


@remote(cpu, queue_size=100000)
async def echo(x: dict) -> dict:
    return x


@remote(bounded, queue_size=200)
async def short(x: dict) -> dict:
    return x


@remote(bounded, queue_size=200)
def milliseconds(x: dict) -> dict:
    time.sleep(0.005)
    return x
"""
BODY = b'{"input":{"x":{"a":1,"text":"' + b"x" * 80 + b'"}}}'


class Server:
    """A running one."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, environment: dict[str, str]) -> None:
        self.process = process
        self.port = port
        self._environment = environment

    @property
    def pid(self) -> int:
        return self.process.pid

    def rss_mb(self) -> float:
        """Resident memory of the server's own process."""
        return tree.rss_mb(self.pid)

    def cpu_s(self) -> float:
        """CPU time of the server, its keeper, templates and workers."""
        return tree.tree_cpu_s(self.pid)

    def token(self) -> str:
        """A new token that may call."""
        command = [program.flash(), "token", "create", f"bench-{time.monotonic_ns()}", "--scope", "call", "--json"]
        said = subprocess.run(command, env=self._environment, check=True, capture_output=True, text=True).stdout
        return str(json.loads(said)["token"])


def invoke(function: str) -> str:
    return f"/v1/functions/{function}:invoke"


def enqueue(function: str) -> str:
    return f"/v1/functions/{function}:enqueue"


@contextmanager
def serving(folder: Path, *options: str, variables: dict[str, str] | None = None) -> Iterator[Server]:
    """Started afresh and answering calls. Its log goes to a file, as a deployed one's does."""
    project = folder / "server-project"
    project.mkdir(parents=True, exist_ok=True)
    (project / "jobs.py").write_text(JOBS)
    port = floors.free_port()
    environment = program.environment(folder / "server-home", variables)
    command = [program.flash(), "server", "--project", str(project), "--port", str(port), *options]
    with program.started(command, environment=environment, log=folder / "server.log") as process:
        first_answer(process, port, http_load.request_bytes(invoke("echo"), BODY))
        yield Server(process, port, environment)


def first_answer(process: subprocess.Popen[bytes], port: int, request: bytes, limit_s: float = 60.0) -> None:
    """Ask until it answers 200; what it answers while it starts does not count."""
    until = time.perf_counter() + limit_s
    while time.perf_counter() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=limit_s) as connection:
                connection.sendall(request)
                if connection.recv(65536).startswith(b"HTTP/1.1 200"):
                    return
        except OSError:
            pass  # it does not listen yet
        time.sleep(0.002)
    raise TimeoutError(f"no answer within {limit_s:.0f} s")
