"""A front server on a real port, with small hot routes and a small application, and a client that speaks raw bytes."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

import uvloop

from flashmesh.gateway.front import FrontLimits, FrontServer
from flashmesh.gateway.http import JSON_TYPE, Answer, Handler, Request, Respond

PLAIN = (b"content-type", b"application/octet-stream")
HURRY = FrontLimits(head_s=0.2, body_s=0.3, idle_s=1, write_s=0.3, linger_s=0.1, sweep_s=0.02)


class Held(NamedTuple):
    """A request that waits for the test to answer it."""

    request: Request
    respond: Respond


class Site:
    """The hot routes, the gate and the application of the tests."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.held: list[Held] = []
        self.cancelled: list[bytes] = []
        self.made = 0
        """How often the application was asked for."""
        self.refused: set[bytes] = set()
        """Paths that the gate turns away."""
        self.lines: list[str] = []
        self.release: asyncio.Event
        self.routes: dict[bytes, Handler] = {
            b"/echo": self.echo,
            b"/about": self.about,
            b"/hold": self.hold,
            b"/big": self.big,
            b"/empty": lambda request, respond: respond(Answer(204, [], b"")),
            b"/evil": lambda request, respond: respond(Answer(200, [(b"x-a", unquote_to_bytes(request.query))], b"")),
            b"/fail": self.fail,
        }

    def find(self, method: bytes, path: bytes) -> Handler | None:
        return self.routes.get(path) if method in (b"GET", b"POST", b"HEAD") else None

    def check(self, method: bytes, path: bytes, query: bytes, headers: Any) -> Answer | str:
        if headers.get(b"authorization") == b"no" or path in self.refused:
            return Answer(401, [JSON_TYPE], b"{}")
        return str(headers.get(b"x-name", b"").decode())

    def echo(self, request: Request, respond: Respond) -> None:
        self.seen.append(request)
        respond(Answer(200, [PLAIN], request.body))

    def about(self, request: Request, respond: Respond) -> None:
        self.seen.append(request)
        said = {
            "method": request.method.decode(),
            "path": request.path.decode(),
            "query": request.query.decode(),
            "headers": {name.decode(): value.decode("latin-1") for name, value in request.headers.items()},
            "principal": request.principal,
        }
        respond(Answer(200, [JSON_TYPE], json.dumps(said).encode()))

    def hold(self, request: Request, respond: Respond) -> Callable[[], None]:
        self.held.append(Held(request, respond))
        return lambda: self.cancelled.append(request.query)

    def big(self, request: Request, respond: Respond) -> None:
        respond(Answer(200, [PLAIN], b"x" * int(request.query)))

    def fail(self, request: Request, respond: Respond) -> None:
        raise RuntimeError("broken on purpose")

    def application(self) -> Any:
        self.made += 1
        return self.app

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._websocket(receive, send)
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.lines.append("disconnect")
                return
            body += message["body"]
            more = message["more_body"]
        self.lines.append(scope["path"])
        if scope["path"] == "/slow":
            await self.release.wait()
        said = {"path": scope["path"], "body": body.decode("latin-1"), "client": scope["client"], "app": True}
        answer = json.dumps(said).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _websocket(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": message["text"][::-1]})


class Answered(NamedTuple):
    """What a client got."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One raw connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rest = b""

    def send(self, data: bytes) -> "Client":
        self.socket.sendall(data)
        return self

    def answer(self, *, head_only: bool = False) -> Answered:
        """The next answer, whole. Raises ConnectionError if the connection ends before."""
        while b"\r\n\r\n" not in self.rest:
            self._read()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        status = int(first.split(" ")[1])
        length = 0 if head_only or status < 200 else int(headers.get("content-length", 0))
        while len(self.rest) < length:
            self._read()
        body, self.rest = self.rest[:length], self.rest[length:]
        return Answered(status, headers, body)

    def ask(self, data: bytes) -> Answered:
        return self.send(data).answer()

    def address(self) -> list[Any]:
        """Its own address, as the application tells it."""
        return list(self.socket.getsockname())

    def _read(self) -> None:
        data = self.socket.recv(262144)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.rest += data

    def is_ended(self) -> bool:
        """Wait for the end; False if more came instead."""
        try:
            return self.rest == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.socket.close()


class Served:
    """A running server, and the loop's thread."""

    def __init__(self, server: FrontServer, site: Site, port: int, loop: asyncio.AbstractEventLoop) -> None:
        self.server, self.site, self.port, self.loop = server, site, port, loop
        self.clients: list[Client] = []

    def connect(self, context: ssl.SSLContext | None = None) -> Client:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        if context is not None:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        client = Client(connection)
        self.clients.append(client)
        return client

    def call(self, action: Callable[[], Any]) -> Any:
        """Run it on the server's loop and wait for what it gives."""

        async def run() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(20)

    def begin_drain(self, seconds: float) -> Any:
        """A future of how many connections were left."""
        return asyncio.run_coroutine_threadsafe(self.server.drain(seconds), self.loop)

    def wait_until(self, holds: Callable[[], bool], seconds: float = 20) -> None:
        """Until it holds on the loop's thread."""
        until = time.monotonic() + seconds
        while not self.call(holds):
            assert time.monotonic() < until, "it did not come to hold"

    def answer_held(self, query: bytes, body: bytes = b"") -> None:
        """Answer the held request of that query."""

        def respond() -> None:
            held = next(held for held in self.site.held if held.request.query == query)
            held.respond(Answer(200, [PLAIN], body or query))

        self.call(respond)


@contextlib.contextmanager
def serving(
    limits: FrontLimits | None = None,
    *,
    tls: ssl.SSLContext | None = None,
    lean: bool = True,
    passages: Any = None,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> Iterator[Served]:
    """A server for one test, ended afterwards."""
    site = Site()
    ready: list[Served] = []
    started = threading.Event()

    async def main() -> None:
        site.release = asyncio.Event()
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = FrontServer(site, site, site.application, limits, lean=lean, passages=passages)
        await server.start([listener], tls)
        stop = asyncio.Event()
        served = Served(server, site, port, asyncio.get_running_loop())
        served.stop = stop  # type: ignore[attr-defined]
        ready.append(served)
        started.set()
        await stop.wait()
        server.close()
        for _ in range(3):
            await asyncio.sleep(0)  # let aborted connections end

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory) as runner:
                runner.run(main())
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(20)
    served = ready[0]
    try:
        yield served
    finally:
        for client in served.clients:
            client.close()
        served.loop.call_soon_threadsafe(served.stop.set)  # type: ignore[attr-defined]
        thread.join(20)


def post(path: str, body: bytes = b"", *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", *more, "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: localhost", *more, "", ""]).encode("latin-1")
