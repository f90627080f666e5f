"""Deploys while calls go on: what calls see of an update, and what a deploy of many unchanged resources costs."""

import asyncio
import dataclasses
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import deployed
from benchmarks.deployed import Deployed
from benchmarks.http_load import request_bytes
from benchmarks.measure import Row, percentile

CLIENTS = 32
DEPLOYS = 10
RESOURCES = 100
APP = "updates"
VERSION = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="version", workersMin=1, workersMax=2)


@remote(cpu)
def version() -> int:
    return {number}
"""
ONE_OF_MANY = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="{name}")


@remote(cpu)
def function_of_{name}(x: int) -> int:
    return x
"""


@dataclasses.dataclass
class Seen:
    """What clients got."""

    latencies_s: list[float] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


class Clients:
    """So many clients, each with one call under way, from `with` to its end.

    One half calls over the server, on connections that are kept; the other half calls the endpoint at its own address.
    A call that is not answered 200, for whatever reason, is a failure.
    """

    def __init__(self, server_port: int, endpoint_port: int, count: int = CLIENTS) -> None:
        over_server = server_port, request_bytes(f"/v1/functions/version:invoke?app={APP}", b'{"input":{}}')
        direct = endpoint_port, request_bytes("/run_sync", b'{"input":{}}')
        self._roads = [over_server if number % 2 else direct for number in range(count)]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self._over = threading.Event()
        self.seen = Seen()

    def __enter__(self) -> "Clients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def take(self) -> Seen:
        """What was seen since the last time."""
        seen, self.seen = self.seen, Seen()
        return seen

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for port, request in self._roads:
                group.create_task(self._calls(port, request))

    async def _calls(self, port: int, request: bytes) -> None:
        writer = None
        while not self._over.is_set():
            begin = time.perf_counter()
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(request)
                keeps = await _answer(reader)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self.seen.failures.append(repr(error))
                keeps = False
            else:
                self.seen.latencies_s.append(time.perf_counter() - begin)
            if not keeps and writer is not None:
                writer.close()
                writer = None
        if writer is not None:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> bool:
    """Read one answer; whether its connection is kept. Raises ValueError for one that is not 200."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
    body = await reader.readexactly(length)
    if not head.startswith(b"http/1.1 200"):
        raise ValueError(f"{head.partition(b' ')[2][:3].decode()}: {body[:200].decode(errors='replace')}")
    return b"connection: close" not in head


def update_rows(folder: Path, deploys: int = DEPLOYS, clients: int = CLIENTS) -> Iterator[Row]:
    """Calls before and during updates. `folder` is a scratch directory."""
    project = folder / APP
    project.mkdir(parents=True)
    with deployed.deploying(folder) as server:
        (project / "version.py").write_text(VERSION.format(number=0))
        (endpoint,) = server.deploy(project)["endpoints"]
        with Clients(server.port, deployed.port_of(endpoint["url"]), clients) as load:
            time.sleep(0.5)  # until all are under way
            load.take()
            time.sleep(3.0)
            before = load.take()
            took = []
            for number in range(1, deploys + 1):
                (project / "version.py").write_text(VERSION.format(number=number))
                took.append(server.deploy(project)["tookMs"])
            during = load.take()
    failures = [*before.failures, *during.failures]
    note = f"of {len(during.latencies_s):,}" + (f"; the first: {failures[0]}" if failures else "")
    yield Row(f"{deploys} deploys under {clients} clients: calls that failed", len(failures), "", goal="≤ 0", note=note)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield Row(
            f"a call during those deploys, {name}",
            percentile(during.latencies_s, share) * 1e3,
            "ms",
            "the same clients before",
            percentile(before.latencies_s, share) * 1e3,
        )
    yield Row("a deploy that replaces an endpoint, under that load", statistics.median(took), "ms")


def unchanged_rows(folder: Path, resources: int = RESOURCES, rounds: int = 5) -> Iterator[Row]:
    """A deploy that has nothing to do: what the server takes from the request to the end of the deployment."""
    project = folder / "many"
    project.mkdir(parents=True)
    for number in range(resources):
        name = f"r{number:03}"
        (project / f"{name}.py").write_text(ONE_OF_MANY.format(name=name))
    with deployed.deploying(folder) as server:
        first = server.deploy(project)
        body = {"app": "many", "environment": "production", "build": first["build"]}
        times = [_deployment(server, body) for _ in range(rounds)]
    yield Row(
        f"a deploy of {resources} unchanged resources, server time",
        statistics.median(times) * 1e3,
        "ms",
        goal="≤ 1000 ms",
        note=f"the first deploy took {first['tookMs'] / resources:.0f} ms for each resource",
    )


def _deployment(server: Deployed, body: dict[str, str]) -> float:
    begin = time.perf_counter()
    begun = server.ask("/v1/deployments", body)
    document = server.end_of(begun["id"])
    if document["status"] != "succeeded" or begun["plan"]["new"] or begun["plan"]["changed"]:
        raise RuntimeError(f"not a deploy of unchanged resources: {document}")
    return time.perf_counter() - begin


def main() -> None:
    """`python -m benchmarks.updates`: these rows alone."""
    from benchmarks.__main__ import line

    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        for row in itertools.chain(update_rows(Path(scratch, "one")), unchanged_rows(Path(scratch, "many"))):
            print(line(row), flush=True)


if __name__ == "__main__":
    main()
