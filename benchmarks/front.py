"""The lean HTTP front beside bare uvicorn: the same request, the same answer, one process each."""

import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.floors import ECHO_APP, free_port, wait_for_200
from benchmarks.http_load import many_at_once, one_at_a_time, request_bytes
from benchmarks.measure import Row, percentile

HOT_SERVER = """
import asyncio, socket, sys
import msgspec, uvloop
from flashmesh.gateway.front import FrontServer
from flashmesh.gateway.http import JSON_TYPE, Answer
decode, encode = msgspec.json.decode, msgspec.json.encode

def echo(request, respond):
    value = decode(request.body)["input"] if request.body else None
    respond(Answer(200, [JSON_TYPE], encode({"output": value})))

class Site:
    def __init__(self):
        self.routes = {(b"POST", b"/"): echo, (b"GET", b"/"): echo}
    def find(self, method, path):
        return self.routes.get((method, path))
    def check(self, method, path, query, headers):
        return ""

def application():
    from echo_app import app
    return app

async def main():
    site = Site()
    server = FrontServer(site, site, application, lean=sys.argv[2] == "lean")
    await server.start([socket.create_server(("127.0.0.1", int(sys.argv[1])))])
    await asyncio.Event().wait()

uvloop.run(main())
"""

BODY = b'{"input":{"name":"alice","number":12345,"list":[1,2,3,4,5,6,7,8,9,10],"text":"some words that are not many"}}'
REQUEST = request_bytes("/", BODY)
ROUNDS = 3
SECONDS = 1.0
LUA = f"""
wrk.method = "POST"; wrk.headers["Content-Type"] = "application/json"
wrk.body = '{BODY.decode()}'
"""


class Server(NamedTuple):
    """A running one."""

    port: int
    pid: int


class Load(NamedTuple):
    """What one turn gave: requests per second, and CPU microseconds of the server per request (0: not known)."""

    rate: float
    cpu_us: float


@contextmanager
def serving(folder: Path, *arguments: str) -> Iterator[Server]:
    """A Python process that answers 200 on the port that `{port}` in its arguments stands for."""
    port = free_port()
    process = subprocess.Popen([sys.executable, *(word.format(port=port) for word in arguments)], cwd=folder)
    try:
        wait_for_200(f"http://127.0.0.1:{port}/", process)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 where /proc does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def load(server: Server, connections: int, script: Path) -> Load:
    """One turn, by wrk where it is installed: a client in Python costs more than what it measures."""
    before = cpu_seconds(server.pid)
    wrk = shutil.which("wrk")
    if wrk is None:
        rate, latencies, _ = many_at_once(server.port, REQUEST, SECONDS, connections)
        count = len(latencies)
    else:
        command = [wrk, "-t1", f"-c{connections}", f"-d{SECONDS:g}s", "-s", str(script)]
        said = subprocess.run(
            [*command, f"http://127.0.0.1:{server.port}/"], capture_output=True, text=True, check=True
        )
        if "Non-2xx" in said.stdout:
            raise RuntimeError(said.stdout)
        rate = float(re.findall(r"Requests/sec:\s*([\d.]+)", said.stdout)[0])
        count = int(re.findall(r"(\d+) requests in", said.stdout)[0])
    return Load(rate, (cpu_seconds(server.pid) - before) / count * 1e6)


def in_turns(servers: list[Server], connections: int, script: Path) -> list[Load]:
    """The medians of each server, which take turns in an order that is reversed every other round."""
    turns: dict[Server, list[Load]] = {server: [] for server in servers}
    for number in range(ROUNDS):
        for server in servers if number % 2 else reversed(servers):
            turns[server].append(load(server, connections, script))
    return [Load(*(statistics.median(column) for column in zip(*turns[one], strict=True))) for one in servers]


def median_us(server: Server) -> float:
    return percentile(one_at_a_time(server.port, REQUEST, SECONDS / 2), 0.5) * 1e6


def front_rows(folder: Path) -> Iterator[Row]:
    """A hot echo route on the front, and all by uvicorn under our limits, over bare uvicorn."""
    (folder / "hot_server.py").write_text(HOT_SERVER)
    (folder / "echo_app.py").write_text(ECHO_APP)
    script = folder / "post.lua"
    script.write_text(LUA)
    client = "wrk" if shutil.which("wrk") else "Python client"
    quiet = ("--log-level", "error", "--no-access-log")
    with ExitStack() as stack:
        lean = stack.enter_context(serving(folder, "hot_server.py", "{port}", "lean"))
        portable = stack.enter_context(serving(folder, "hot_server.py", "{port}", "portable"))
        bare = stack.enter_context(serving(folder, "-m", "uvicorn", "echo_app:app", "--port", "{port}", *quiet))
        singles = [[median_us(server) for server in (lean, bare)] for _ in range(ROUNDS)]
        ours, floor = (statistics.median(column) for column in zip(*singles, strict=True))
        yield Row("HTTP front: hot echo, one at a time, p50", ours, "us", "bare uvicorn", floor)
        for connections in (32, 64, 512):
            loads = in_turns([lean, portable, bare], connections, script)
            name = f"HTTP front: hot echo, c={connections}"
            goal = "about 3x" if connections == 32 else ""
            yield Row(name, loads[0].rate, "/s", "bare uvicorn", loads[2].rate, goal, client)
            if loads[0].cpu_us:
                yield Row(f"{name}, CPU per request", loads[0].cpu_us, "us", "bare uvicorn", loads[2].cpu_us)
            if connections == 32:
                yield Row(f"{name}, lean front off", loads[1].rate, "/s", "bare uvicorn", loads[2].rate, "", client)
