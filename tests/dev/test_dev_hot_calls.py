"""Calls that need no thought are answered by the dev server's connections as its application would answer them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from dev_server_client import run, serving
from dev_session_fake import FakeCall, echo
from uvicorn.config import Config

from flashmesh.dev.server.app import DevServer
from flashmesh.dev.server.handover import ChildState, DevConnection
from flashmesh.dev.server.hot_calls import HotCalls
from flashmesh.functions.errors import QueueFull

_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")
LIMIT = 2000


class Told(NamedTuple):
    """An answer, without what differs from one to the next."""

    status: int
    headers: frozenset[bytes]
    body: bytes


class Client:
    """One connection."""

    def __init__(self, state: ChildState, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.state, self.reader, self.writer = state, reader, writer

    async def _arrived(self) -> None:
        """Until the server has read the first piece of a request, so that the next is a read of its own."""
        while all(one._between for one in self.state.connections):  # noqa: ASYNC110 it tells nobody
            await asyncio.sleep(0)

    async def ask(self, *pieces: bytes) -> Told:
        for number, piece in enumerate(pieces):
            if number:
                await self._arrived()
            self.writer.write(piece)
            await self.writer.drain()
        return await self.answer()

    async def answer(self) -> Told:
        head = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = _ID.sub(b"ID", head).lower().rstrip().split(b"\r\n")
        fields = dict(line.split(b": ", 1) for line in lines)
        if fields.get(b"transfer-encoding") == b"chunked":
            body = await self.reader.readuntil(b"0\r\n\r\n")
        else:
            body = await self.reader.readexactly(int(fields.get(b"content-length", b"0")))
        kept = frozenset(line for line in lines if not line.startswith(b"date: "))
        return Told(int(first.split(b" ")[1]), kept, _ID.sub(b"ID", body))


class Site(NamedTuple):
    """A dev server twice: with its hot calls and without."""

    hot: Client
    plain: Client
    calls: HotCalls

    async def both(self, *pieces: bytes) -> Told:
        """The one answer of both."""
        plain = await self.plain.ask(*pieces)
        assert await self.hot.ask(*pieces) == plain
        return plain


def functions(server: DevServer) -> None:
    for name in ("echo", "fails", "full", "slow"):
        server.queue(f"/jobs/{name}", f"jobs.{name}", resource="jobs", file="jobs.py")


async def fails(call: FakeCall) -> None:
    call.fail(ValueError("on purpose"))


async def full(call: FakeCall) -> None:
    call.fail(QueueFull(retry_after=3))


async def slow(call: FakeCall) -> None:
    call.start()
    await call.cancelled.wait()


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    loop = asyncio.get_running_loop()
    behaviours = {"jobs.echo": echo, "jobs.fails": fails, "jobs.full": full, "jobs.slow": slow}
    async with serving(functions, behaviours, max_body_bytes=LIMIT, short_wait_s=0.05) as served:
        config = Config(served.app, http=DevConnection, interface="asgi3", lifespan="off", log_config=None)
        config.load()
        clients, servers = [], []
        for hot in (served.app.hot, None):
            state = ChildState()
            state.hot = hot
            server = await loop.create_server(lambda state=state: DevConnection(config, state, {}), "127.0.0.1", 0)
            servers.append(server)
            clients.append(Client(state, *await asyncio.open_connection(*server.sockets[0].getsockname())))
            await clients[-1].ask(post("/jobs/echo/run_sync", b"{}"))  # its host is known to be good from here on
        found = Site(*clients, served.app.hot)
        found.calls.requests = 0
        yield found
        for client, server in zip(clients, servers, strict=True):
            client.writer.close()
            await client.writer.wait_closed()
            server.close()


def post(path: str, body: bytes = b'{"input":{"x":1}}', *headers: str, host: str = "localhost") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}", *headers]
    if not any(line.lower().startswith("content-type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post("/jobs/echo/run_sync"), 200),
        (post("/jobs/echo/runsync?wait=2000"), 200),
        (post("/jobs/echo/run"), 200),
        (post("/jobs/echo/run_sync", b""), 200),
        (post("/jobs/echo/run_sync", b"{}", "traceparent: 00-1-2-03"), 200),
        (post("/jobs/echo/run_sync", b"{}", "Accept: application/json", "Idempotency-Key: k1"), 200),
        (post("/jobs/echo/run_sync", b"{}", "Connection: close"), 200),
        (post("/jobs/slow/run"), 200),
        (post("/jobs/fails/run_sync"), 500),
        (post("/jobs/full/run_sync"), 429),
        (post("/jobs/echo/run_sync?wait=1"), 422),
        (post("/jobs/echo/run_sync", b"{}", "X-Timeout-Ms: soon"), 422),
        (post("/jobs/echo/run_sync", b'{"input": nan}'), 400),
        (post("/jobs/echo/run_sync", b'{"input": NaN}'), 422),
        (post("/jobs/echo/run_sync", b"a=1", "Content-Type: text/csv"), 415),
    ],
    ids=lambda value: value.partition(b" HTTP")[0].decode() if isinstance(value, bytes) else None,
)
def test_a_hot_call_is_answered_as_the_application_answers_it(request_: bytes, status: int) -> None:
    async def main() -> None:
        async with site() as served:
            assert (await served.both(request_)).status == status
            assert served.calls.requests == 1

    run(main())


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ([post("/jobs/echo/run_sync")[:-5], b'"x":1}}'[-5:]], 200),
        ([post("/jobs/echo/run_sync", b"{}", "Origin: https://page.example")], 403),
        ([post("/jobs/echo/run_sync", b"{}", "Sec-Fetch-Site: cross-site")], 403),
        ([post("/jobs/echo/run_sync", b"{}", host="foreign.example")], 403),
        ([post("/jobs/echo/run_sync", b"{}", "Accept: text/event-stream")], 200),
        ([post("/jobs/echo/run_sync", b'"' + b"x" * LIMIT + b'"')], 413),
        ([post("/jobs/nothing/run_sync")], 404),
        ([b"GET /jobs/echo/run_sync HTTP/1.1\r\nHost: localhost\r\n\r\n"], 405),
        (
            [
                b"POST /jobs/echo/run_sync HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
            ],
            200,
        ),
    ],
    ids=["pieces", "page", "fetch", "host", "events", "large", "nothing", "method", "chunks"],
)
def test_what_needs_thought_is_the_applications(pieces: list[bytes], status: int) -> None:
    async def main() -> None:
        async with site() as served:
            assert (await served.both(*pieces)).status == status
            assert served.calls.requests == 0

    run(main())


def test_requests_behind_each_other_are_answered_in_their_order() -> None:
    async def main() -> None:
        async with site() as served:
            bodies = [json.dumps({"input": number}).encode() for number in range(5)]
            asked = b"".join(post("/jobs/echo/run_sync", body) for body in bodies)
            told = [await served.hot.ask(asked), *[await served.hot.answer() for _ in bodies[1:]]]
            assert [json.loads(one.body)["output"] for one in told] == list(range(5))
            assert served.calls.requests < len(bodies)  # those behind another are the application's

    run(main())


def test_a_session_that_was_lost_is_waited_for_by_the_application() -> None:
    async def main() -> Any:
        async with site() as served:
            assert served.calls.find(b"POST", b"/jobs/echo/run_sync") is not None
            assert served.calls.find(b"GET", b"/jobs/echo/run_sync") is None
            await served.calls._door.client.close()
            assert served.calls.find(b"POST", b"/jobs/echo/run_sync") is None
            assert (await served.hot.ask(post("/jobs/echo/run_sync"))).status == 200

    run(main())
