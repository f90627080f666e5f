"""A registry in front of a real dispatcher, functions on real sockets and in real processes, clients that wait."""

import asyncio
import dataclasses
import sqlite3
import ssl
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from flashmesh.executions.memory import MemoryStore
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.functions.registry import FunctionRegistry
from flashmesh.kit.ids import EndpointName, ExecutionId, new_execution_id
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import LoopClock, WorkerPort
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import JSON, AnyFrame, Error, Hello, Invoke, Log, Result, Started

PYTHON = sys.executable
WAIT_S = 20.0


class NoLocalTarget:
    """The local target of a server without a project; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def ensure(self, endpoint: EndpointName) -> None:
        self.asked.append(("ensure", endpoint))

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        self.asked.append(("scale", endpoint))

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        self.asked.append(("cancel", endpoint))

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        self.asked.append(("linked", endpoint))

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        self.asked.append(("unlinked", endpoint))


@dataclasses.dataclass
class Settings:
    allow_commands: bool = True
    plain_networks: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 1024 * 1024


class TinyDatabase:
    """SQLite behind the store's interface; `broken` makes its writes fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._schemas: dict[str, int] = {}
        self.broken: Exception | None = None
        self.held: list[Callable[[], None]] | None = None
        """A list keeps writes back until somebody calls what is in it."""

    def add_schema(self, name: str, statements: Sequence[str]) -> None:
        known = {row[0] for row in self._connection.execute("SELECT name FROM sqlite_master")}
        for statement in statements:
            if statement.split()[2] not in known:
                self._connection.execute(statement)

    def write(
        self, sql: str, parameters: Sequence[Any] = (), then: Callable[[Exception | None], None] | None = None
    ) -> None:
        self.write_together([(sql, parameters)], then)

    def write_together(
        self, statements: Sequence[tuple[str, Sequence[Any]]], then: Callable[[Exception | None], None] | None = None
    ) -> None:
        def commit() -> None:
            if self.broken is None:
                for sql, parameters in statements:
                    self._connection.execute(sql, parameters)
            if then is not None:
                then(self.broken)

        if self.held is not None:
            self.held.append(commit)
        else:
            asyncio.get_running_loop().call_soon(commit)

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        self._connection.close()


class Call:
    """A client that waits for one call."""

    def __init__(self, execution: str) -> None:
        self.execution = execution
        self.started = asyncio.Event()
        self.frames: list[AnyFrame] = []
        self._end: asyncio.Future[Result | Error] = asyncio.get_running_loop().create_future()

    def send(self, frame: AnyFrame) -> None:
        self.frames.append(frame)
        if isinstance(frame, Started):
            self.started.set()
        if isinstance(frame, Result | Error):
            assert not self._end.done(), "answered twice"
            self._end.set_result(frame)

    @property
    def ended(self) -> bool:
        return self._end.done()

    async def end(self) -> Result | Error:
        async with asyncio.timeout(WAIT_S):
            return await self._end

    async def output(self) -> Any:
        frame = await self.end()
        assert isinstance(frame, Result), unpack(frame.payload).message
        return msgspec.json.decode(frame.payload) if frame.content_type == JSON else frame.payload

    async def error(self) -> tuple[str, str]:
        """Code and message."""
        frame = await self.end()
        assert isinstance(frame, Error), frame.payload[:200]
        return frame.code, unpack(frame.payload).message


class Bench:
    """A server's parts as far as functions need them."""

    def __init__(
        self,
        *,
        database: TinyDatabase | None = None,
        settings: Settings | None = None,
        scratch: Path | None = None,
        store: MemoryStore | None = None,
        **options: Any,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.lines: list[Log] = []
        self.clock = LoopClock(loop)
        self.store = store or MemoryStore()
        self.database = database
        self.local = NoLocalTarget()
        self.dispatcher = Dispatcher(
            store=self.store,
            clock=self.clock,
            source=self.local,
            log=lambda event, fields: self.events.append((event, fields)),
        )
        self.registry = FunctionRegistry(
            dispatcher=self.dispatcher,
            clock=self.clock,
            settings=settings or Settings(),
            database=database,
            on_log=self.lines.append,
            log=lambda event, fields: self.events.append((event, fields)),
            scratch=scratch,
            **options,
        )

    async def close(self) -> None:
        """End everything, the database last."""
        await self.registry.close()
        if self.database is not None:
            self.database.close()

    async def create(self, name: str = "f", **spec: Any) -> Mapping[str, Any]:
        return await self.registry.create(msgspec.json.encode({"name": name, **spec}))

    def call(
        self,
        function: str = "f",
        value: Any = None,
        *,
        kind: Any = "sync",
        payload: bytes | None = None,
        content_type: str = JSON,
        deadline_ms: int = 0,
        **meta: Any,
    ) -> Call:
        callee = self.registry.function(function)
        call = Call(new_execution_id())
        body = msgspec.json.encode({"input": value}) if payload is None else payload
        frame = Invoke(
            call.execution, callee.function, 0, "", content_type, JSON, deadline_ms, {"mode": kind, **meta}, 0, body
        )
        self.dispatcher.submit(frame, call, kind=kind)
        return call

    def endpoint(self, name: str = "f") -> dict[str, Any]:
        return next(found for found in self.dispatcher.status()["endpoints"] if found["name"] == name)

    def pids(self, name: str = "f") -> list[int]:
        return [worker["pid"] for worker in self.endpoint(name)["processes"]]

    def texts(self, stream: str = "") -> list[str]:
        return [line.text for line in self.lines if not stream or line.stream == stream]


async def until(condition: Callable[[], Any], what: str = "it") -> None:
    """Wait until `condition` holds: other processes and the kernel tell nobody when they are done."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - as said above
            await asyncio.sleep(0.005)


def play(scenario: Callable[[Bench], Awaitable[None]], **options: Any) -> None:
    """Run a scenario on the product's own event loop, and end everything after it."""

    async def run() -> None:
        bench = Bench(**options)
        try:
            await scenario(bench)
        finally:
            await bench.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def refused(work: Awaitable[Any]) -> FlashmeshError:
    """The refusal that it must end in."""
    try:
        await work
    except FlashmeshError as error:
        return error
    raise AssertionError("it was not refused")


class Asked:
    """One request that a function got."""

    def __init__(self, line: str, headers: dict[str, str], body: bytes) -> None:
        self.line = line
        self.headers = headers
        self.body = body

    @property
    def input(self) -> Any:
        return msgspec.json.decode(self.body)["input"]


Handler = Callable[[Asked, asyncio.StreamWriter], Awaitable[bytes | None]]
"""Gives the raw answer; None: it has written what it wanted, and the connection ends."""


class WebFunction:
    """An HTTP function on a real port."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None, port: int = 0) -> None:
        self._handler = handler
        self._tls = tls
        self._port = port
        self._server: asyncio.Server | None = None
        self.asked: list[Asked] = []
        self.connections = 0
        self.open = 0

    async def __aenter__(self) -> "WebFunction":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 20, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/invoke"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                asked = Asked(head[0], headers, body)
                self.asked.append(asked)
                ended = asyncio.ensure_future(reader.read(1))
                answer = asyncio.ensure_future(self._handler(asked, writer))
                await asyncio.wait((ended, answer), return_when=asyncio.FIRST_COMPLETED)
                if ended.done() and not answer.done():
                    answer.cancel()
                    return
                ended.cancel()
                await asyncio.wait((ended,))
                said = answer.result()
                if said is None:
                    return
                writer.write(said)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            writer.transport.abort()


def answer(body: bytes, status: str = "200 OK", media: str = JSON, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {media}", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def echo(asked: Asked, _: asyncio.StreamWriter) -> bytes:
    return answer(msgspec.json.encode(asked.input))


def python(code: str) -> list[str]:
    """A command that runs this program."""
    return [PYTHON, "-u", "-c", code]
