"""A DevServer with a scripted session, called in process as an ASGI application."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dev_session_fake import Behaviour, FakeSession

from flashmesh.dev.server.app import DevServer


class Answer:
    """What the server sent."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.done = asyncio.Event()
        self.more = asyncio.Event()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class DevClient:
    """Sends requests to one application."""

    def __init__(self, app: Any, session: FakeSession) -> None:
        self.app = app
        self.session = session

    async def send(
        self,
        method: str,
        url: str,
        body: Any = None,
        *,
        headers: dict[str, str] | None = None,
        gone: asyncio.Event | None = None,
        answer: Answer | None = None,
    ) -> Answer:
        """One request. `gone` set = the client hangs up. `answer` may be given to watch it while it comes."""
        answer = answer or Answer()
        gone = gone or asyncio.Event()
        path, _, query = url.partition("?")
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        named = {"host": "localhost:8888", **(headers or {})}
        if data:
            named.setdefault("content-type", "application/json")
            named.setdefault("content-length", str(len(data)))
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in named.items()],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 8888),
            "scheme": "http",
            "root_path": "",
        }
        waiting = [{"type": "http.request", "body": data, "more_body": False}]

        async def receive() -> Any:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            else:
                answer.chunks.append(message.get("body", b""))
                answer.more.set()

        await self.app(scope, receive, send)
        answer.done.set()
        return answer

    async def post(self, url: str, body: Any = None, **more: Any) -> Answer:
        return await self.send("POST", url, body, **more)

    async def get(self, url: str, **more: Any) -> Answer:
        return await self.send("GET", url, **more)


@asynccontextmanager
async def serving(
    declare: Callable[[DevServer], None],
    behaviours: dict[str, Behaviour] | None = None,
    *,
    root: Path | None = None,
    **options: Any,
) -> AsyncIterator[DevClient]:
    """A started server whose session behaves as scripted."""
    with tempfile.TemporaryDirectory(prefix="flash-test-") as folder:
        link = Path(folder) / "link.sock"
        environment = {"FLASH_SESSION_LINK": str(link), "FLASH_DEV_OPTIONS": json.dumps(options)}
        async with FakeSession(link, behaviours or {}) as session:
            server = DevServer(root or Path(folder), environment)
            declare(server)
            async with lifespan(server.app):
                yield DevClient(server.app, session)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    started, ending, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    order = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> Any:
        kind = next(order)
        if kind == "lifespan.shutdown":
            await ending.wait()
        return {"type": kind}

    async def send(message: Any) -> None:
        (started if message["type"] == "lifespan.startup.complete" else ended).set()

    task = asyncio.ensure_future(app({"type": "lifespan"}, receive, send))
    await asyncio.wait({task, asyncio.ensure_future(started.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert started.is_set(), task.result()
    try:
        yield
    finally:
        ending.set()
        await asyncio.wait_for(task, 10)
        assert ended.is_set()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))
