"""`flash server` beside bare uvicorn that answers the same bytes itself: calls, durable accepts, start, memory."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import floors, http_load
from benchmarks.measure import Row, in_turns, percentile
from benchmarks.product import flash

JOBS = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="jobs", workersMax=1)


@remote(cpu, queue_size=100000)
async def echo(x: dict) -> dict:
    return x
"""
BODY = b'{"input":{"x":{"a":1,"text":"' + b"x" * 80 + b'"}}}'
INVOKE, ENQUEUE = "/v1/functions/echo:invoke", "/v1/functions/echo:enqueue"


class Server:
    """A running `flash server --project`."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def rss_mb(self) -> float:
        """Resident memory of the server's own process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Server]:
    """Started on a project of one function; its log goes to a file, as a deployed one's does."""
    project = folder / "server-project"
    project.mkdir(parents=True, exist_ok=True)
    (project / "jobs.py").write_text(JOBS)
    port = floors.free_port()
    environment = {**os.environ, "FLASH_HOME": str(folder / "server-home")}
    command = [flash(), "server", "--project", str(project), "--port", str(port), *options]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        floors.wait_for_200(f"http://127.0.0.1:{port}/readyz", process)
        yield Server(process, port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def server_rows(folder: Path, seconds: float = 2.0, rounds: int = 3) -> Iterator[Row]:
    """All of them. `folder` is a scratch directory."""
    yield start_to_first_answer(folder, rounds)
    with running(folder) as server, floors.bare_uvicorn(folder) as bare_port:
        idle = server.rss_mb()
        yield Row("flash server, idle memory", idle, "MB", goal="≤ 80 MB (60)", note="before the first call")
        http_load.some(server.port, http_load.request_bytes(INVOKE, BODY), 2000)
        yield sync_alone(server, bare_port, seconds, rounds)
        for connections in (32, 64, 512):
            yield sync_rate(server, bare_port, connections, seconds, rounds)
        yield accepts(server, bare_port, seconds, rounds)
        yield Row("flash server, memory after the load above", server.rss_mb(), "MB", goal="≤ 300 MB")


def start_to_first_answer(folder: Path, rounds: int) -> Row:
    """From the command to the first 200 of a call, a worker's start included; beside the start of bare uvicorn."""
    request = http_load.request_bytes(INVOKE, BODY)

    def ours() -> float:
        begin = time.perf_counter()
        with running(folder) as server:
            http_load.some(server.port, request, 1)
            return time.perf_counter() - begin

    def bare() -> float:
        begin = time.perf_counter()
        with floors.bare_uvicorn(folder):
            return time.perf_counter() - begin

    both = in_turns(ours, bare, rounds)
    return Row(
        "flash server --project: start to first answer",
        both[0] * 1e3,
        "ms",
        "start of bare uvicorn",
        both[1] * 1e3,
        "≤ 600 ms (300)",
        "a worker's start included",
    )


def sync_alone(server: Server, bare_port: int, seconds: float, rounds: int) -> Row:
    """One client, one request after the other."""
    ours, bare = http_load.request_bytes(INVOKE, BODY), http_load.request_bytes("/", BODY)
    both = in_turns(
        lambda: percentile(http_load.one_at_a_time(server.port, ours, seconds), 0.5),
        lambda: percentile(http_load.one_at_a_time(bare_port, bare, seconds), 0.5),
        rounds,
    )
    return Row("sync invoke, c=1, p50", both[0] * 1e6, "µs", "bare uvicorn", both[1] * 1e6, "≤ 1.8× (1.3)")


def sync_rate(server: Server, bare_port: int, connections: int, seconds: float, rounds: int) -> Row:
    """So many clients at once."""
    ours, bare = http_load.request_bytes(INVOKE, BODY), http_load.request_bytes("/", BODY)
    tails: list[float] = []
    per_call: list[float] = []
    refused = 0

    def rate() -> float:
        nonlocal refused
        before = server.cpu_s()
        found, latencies, other = http_load.many_at_once(server.port, ours, seconds, connections)
        refused += other
        tails.append(percentile(latencies, 0.99))
        per_call.append((server.cpu_s() - before) / max(1, len(latencies)))
        return found

    both = in_turns(rate, lambda: http_load.many_at_once(bare_port, bare, seconds, connections)[0], rounds)
    note = f"p99 {statistics.median(tails) * 1e3:.1f} ms, {statistics.median(per_call) * 1e6:.0f} µs CPU/call"
    if refused:
        note += f", {refused} not 200"
    return Row(f"sync invoke, calls/s, c={connections}", both[0], "/s", "bare uvicorn", both[1], "≥ 0.8× (1.2)", note)


def accepts(server: Server, bare_port: int, seconds: float, rounds: int) -> Row:
    """Durable accepts: every 202 was committed. What was accepted runs meanwhile, as it does in life."""
    ours, bare = http_load.request_bytes(ENQUEUE, BODY), http_load.request_bytes("/", BODY)
    tails: list[float] = []

    def rate() -> float:
        found, latencies, _ = http_load.many_at_once(server.port, ours, seconds, 32, accepted=202)
        tails.append(percentile(latencies, 0.99))
        return found

    both = in_turns(rate, lambda: http_load.many_at_once(bare_port, bare, seconds, 32)[0], rounds)
    return Row(
        "durable async accepts/s, c=32",
        both[0],
        "/s",
        "bare uvicorn",
        both[1],
        "≥ 0.35× (0.6)",
        f"p99 {statistics.median(tails) * 1e3:.1f} ms",
    )


def main() -> None:
    """`python -m benchmarks.server`: these rows alone; with `--quick` in a few seconds."""
    import tempfile

    from benchmarks.__main__ import line

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        for row in server_rows(Path(scratch), *((0.5, 1) if quick else (2.0, 3))):
            print(json.dumps(row.__dict__) if "--json" in sys.argv else line(row), flush=True)


if __name__ == "__main__":
    main()
