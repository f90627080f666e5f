"""Thirty-two clients call while deploys follow each other: by the server, at the endpoint's address, through a peer."""

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from deployed_fixtures import PATIENCE_S, Machine, machine, until

CLIENTS = 32
DEPLOYS = 5
COUNTER = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="counter", workersMin=1, workersMax=2)


@remote(cpu)
def number() -> int:
    return {number}
"""
ASKING = """
from flashmesh import CpuLiveServerless, remote

from counter import number

asking = CpuLiveServerless(name="asking", workersMin=1, workersMax=2)


@remote(asking)
async def ask() -> int:
    return await number()
"""
ROUTED = """
from flashmesh import CpuLiveLoadBalancer, remote

api = CpuLiveLoadBalancer(name="routed", workersMin=1, workersMax=2)


@remote(api, method="POST", path="/number")
async def routed() -> int:
    return {number}
"""


class Clients:
    """So many clients, each with one call under way on a connection that is kept as long as the answers say so."""

    def __init__(self, roads: list[tuple[str, bytes]]) -> None:
        """`roads`: URL and body; clients take them in turn."""
        self._roads = roads
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._all()))
        self.answers: Counter[tuple[str, int]] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> "Clients":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def wait_for(self, number: int) -> None:
        """Until that was answered on every road."""
        until(
            lambda: self.failures or all(self.answers[url, number] for url, _ in self._roads),
            f"{number} on all roads, with {self.answers}",
        )
        assert not self.failures, self.failures[:5]

    async def _all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(CLIENTS):
                group.create_task(self._calls(*self._roads[client % len(self._roads)]))

    async def _calls(self, url: str, body: bytes) -> None:
        parts = urlsplit(url)
        head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        reader = writer = None
        while not self._over.is_set():
            try:
                if reader is None or writer is None:
                    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                writer.write(request)
                keeps, answer = await _answer(reader)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self.failures.append(f"{url}: {error!r}")
                keeps = False
            else:
                self.answers[url, answer] += 1
            if not keeps and writer is not None:
                writer.close()
                reader = writer = None
        if writer is not None:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[bool, int]:
    """Whether the connection is kept, and the number. Raises ValueError for what is not 200."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    body = await reader.readexactly(int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or 0))
    if not head.startswith(b"http/1.1 200"):
        raise ValueError(f"{head[:60]!r} {body[:200]!r}")
    document = json.loads(body)
    return b"connection: close" not in head, int(document["output"] if isinstance(document, dict) else document)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


def test_no_call_of_thirty_two_clients_fails_while_deploys_follow_each_other(here: Machine) -> None:
    def project(number: int) -> Path:
        return here.project(counter=COUNTER.format(number=number), asking=ASKING, routed=ROUTED.format(number=number))

    urls = {one["resource"]: one["url"] for one in here.deploy(project(0))["endpoints"]}
    assert here.facts is not None
    server = here.facts["url"]
    empty = b'{"input": {}}'
    roads = [
        (f"{server}/v1/functions/number:invoke", empty),
        (f"{urls['counter']}/run_sync", empty),
        (f"{urls['asking']}/run_sync", empty),
        (f"{server}/lb/routed/number", b"{}"),
        (f"{urls['routed']}/number", b"{}"),
    ]
    with Clients(roads) as clients:
        clients.wait_for(0)
        for number in range(1, DEPLOYS + 1):
            deployed = here.deploy(project(number))
            assert {one["url"] for one in deployed["endpoints"]} == set(urls.values())
            clients.wait_for(number)
    assert clients.failures == []
