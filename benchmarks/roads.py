"""Roads between endpoints: a peer by its socket and by its port, a function of one's own, routes over the server."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import deployed, floors, http_load
from benchmarks.measure import Row, in_turns, percentile

APP = "roads"
WORKERS = """
import statistics
import time

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="workers", workersMin=1, workersMax=1)


@remote(cpu)
async def echo(x: dict) -> dict:
    return x


async def plain(x: dict) -> dict:
    return x


@remote(cpu)
async def own(count: int) -> list:
    '''Nanoseconds of a call of a function of this endpoint, and of a plain one.'''

    async def one(function) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            await function({"a": 1})
        return (time.perf_counter() - begin) / count * 1e9

    rounds = [(await one(echo), await one(plain)) for _ in range(99)]
    return [statistics.median(a for a, _ in rounds), statistics.median(b for _, b in rounds)]
"""
ROUTES = """
from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="routes", workersMin=1, workersMax=1)


@remote(api, method="POST", path="/echo")
async def routed(x: dict) -> dict:
    return x
"""


def road_rows(folder: Path, count: int = 300, rounds: int = 6) -> Iterator[Row]:
    """All of them. `folder` is a scratch directory."""
    project = folder / APP
    project.mkdir(parents=True)
    (project / "workers.py").write_text(WORKERS)
    (project / "routes.py").write_text(ROUTES)
    with deployed.deploying(folder) as server, floors.bare_uvicorn(folder) as bare:
        server.deploy(project)
        manifest = server.ask(f"/manifest?app={APP}")
        entries = manifest["resources"]
        yield own_function(server.port)
        yield from peers(folder, project, manifest, bare, count=count, rounds=rounds)
        yield proxied(server.port, entries["routes"], count=count, rounds=rounds)


def own_function(port: int) -> Row:
    """Inside a worker: `await f(x)` of its own endpoint."""
    request = http_load.request_bytes(f"/v1/functions/own:invoke?app={APP}", b'{"input":{"count":500}}')
    decorated, plain = http_load.output(port, request)
    return Row(
        "a function of the same endpoint, called in its worker",
        decorated,
        "ns",
        "plain call",
        plain,
        "≤ +500 ns (200)",
        f"+{decorated - plain:.0f} ns",
    )


def peers(
    folder: Path, project: Path, manifest: dict[str, Any], bare: int, *, count: int, rounds: int
) -> Iterator[Row]:
    """One endpoint calls another, one call at a time; beside a raw request on a connection that is kept."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest))
    sockets = Path(manifest["resources"]["workers"]["peer_urls"][0].removeprefix("unix:")).parent
    arguments = [str(project), str(path), str(sockets), str(bare), str(count), str(rounds)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peer_caller", *arguments], check=True, stdout=subprocess.PIPE
    )
    found: dict[str, list[list[float]]] = json.loads(done.stdout)

    def median(name: str, share: float) -> float:
        return statistics.median(percentile(turn, share) for turn in found[name]) * 1e6

    for name, label in (("socket", "by its Unix socket"), ("port", "by HTTP, its TCP port")):
        for word, share in (("p50", 0.5), ("p99", 0.99)):
            goal = "≤ 2× (1.3)" if (name, word) == ("socket", "p50") else ""
            floor = "raw keep-alive request, bare uvicorn"
            yield Row(f"a deployed peer {label}, {word}", median(name, share), "µs", floor, median("raw", share), goal)


def proxied(server_port: int, entry: dict[str, Any], *, count: int, rounds: int) -> Row:
    """An HTTP route over the server, beside the same at the endpoint's own address."""
    body = b'{"a":1}'
    direct = http_load.request_bytes("/echo", body)
    over = http_load.request_bytes(f"/lb/{entry['endpoint_id']}/echo", body)
    port = deployed.port_of(entry["endpoint_url"])
    both = in_turns(
        lambda: percentile(http_load.some(server_port, over, count), 0.5),
        lambda: percentile(http_load.some(port, direct, count), 0.5),
        rounds,
    )
    return Row("an HTTP route over the server (/lb), p50", both[0] * 1e6, "µs", "at its own address", both[1] * 1e6)


def main() -> None:
    """`python -m benchmarks.roads`: these rows alone."""
    from benchmarks.__main__ import line

    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        for row in road_rows(Path(scratch)):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
