"""The product under measurement: a real `flash run` on a small project in a folder of its own."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import program
from benchmarks.floors import free_port, wait_for_200

WORKERS = """
import os
import numpy as np
from flashmesh import CpuLiveServerless, remote

warm = CpuLiveServerless(name="warm", workersMax=1)
short = CpuLiveServerless(name="short", workersMax=1, idleTimeout=1)
wide = CpuLiveServerless(name="wide", workersMax=8)
job = CpuLiveServerless(name="job", workersMax=1)


@remote(warm)
def echo(x: dict) -> dict:
    return x


@remote(warm)
async def echo_async(x: dict) -> dict:
    return x


@remote(warm)
def total(array: np.ndarray) -> float:
    return float(array[0, 0])


@remote(short)
def wake(x: int) -> int:
    return x


@remote(wide)
def pid(x: int) -> int:
    import time
    time.sleep(0.2)
    return os.getpid()


@remote(job, mode="JOB")
def once(x: int) -> int:
    return x
"""

CALLER = '''
import time
from flashmesh import CpuLiveServerless, remote
from workers import echo

cpu = CpuLiveServerless(name="caller")


@remote(cpu)
def peers(count: int) -> list:
    """Latencies in seconds of calls to another endpoint on this machine."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        echo.call({"a": 1})
        taken.append(time.perf_counter() - begin)
    return taken
'''

ROUTES = """
from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="api")


@remote(api, method="GET", path="/version")
async def version() -> dict:
    return {"version": 0}
"""

VERSIONED = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="versioned")


@remote(cpu)
def version() -> int:
    return 0
"""


def write_project(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"workers": WORKERS, "caller": CALLER, "routes": ROUTES, "versioned": VERSIONED}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


class Session:
    """A running `flash run`."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int) -> None:
        self.folder = folder
        self.process = process
        self.port = port

    def post(self, path: str, body: object) -> Any:
        return program.ask(f"http://127.0.0.1:{self.port}{path}", body)

    def get(self, path: str) -> Any:
        return program.ask(f"http://127.0.0.1:{self.port}{path}")

    def output(self, path: str, body: object) -> Any:
        return self.post(path, {"input": body})["output"]

    def status(self) -> Any:
        command = [program.flash(), "status", "--json"]
        return json.loads(subprocess.run(command, cwd=self.folder, check=True, capture_output=True).stdout)

    def worker_pids(self, endpoint: str) -> list[int]:
        entries = {entry["endpoint"]: entry for entry in self.status()["endpoints"]}
        return [process["pid"] for process in entries[endpoint]["processes"]]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Session]:
    port = free_port()
    environment = program.environment(folder.parent / "home")
    command = [program.flash(), "run", str(folder), "--port", str(port), *options]
    with program.started(command, environment=environment, log=folder.parent / "session.log") as process:
        wait_for_200(f"http://127.0.0.1:{port}/ping", process)
        yield Session(folder, process, port)


def private_megabytes(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no memory figures for process {pid}")


def until(condition: Any, limit: float = 20.0, pause: float = 0.001) -> None:
    deadline = time.perf_counter() + limit
    while not condition():
        if time.perf_counter() > deadline:
            raise TimeoutError("the condition did not come true")
        time.sleep(pause)
