"""A stand-in for the session on the other end of the link: answers calls by scripted functions, queries by a table."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError
from flashmesh.wire import failures
from flashmesh.wire.connection import Link
from flashmesh.wire.frames import (
    Answer,
    AnyFrame,
    Cancel,
    Chunk,
    Error,
    Invoke,
    Query,
    Result,
    Started,
)

Behaviour = Callable[["FakeCall"], Awaitable[None]]


class FakeCall:
    """One INVOKE and the ways to answer it."""

    def __init__(self, link: Link, frame: Invoke) -> None:
        self.link = link
        self.frame = frame
        self.cancelled = asyncio.Event()
        self.items: list[bytes] = []
        self.status = "QUEUED"
        self.result: Result | None = None

    @property
    def value(self) -> Any:
        body = msgspec.json.decode(self.frame.payload)
        return body.get("input", body) if isinstance(body, dict) else body

    def start(self) -> None:
        self.status = "RUNNING"
        self.link.send(Started(self.frame.execution))

    def item(self, value: Any) -> None:
        self.raw_item(msgspec.json.encode(value))

    def raw_item(self, data: bytes) -> None:
        self.items.append(data)
        if self.frame.meta.get("stream"):
            self.link.send(Chunk(self.frame.execution, item=True, data=data))

    def succeed(self, payload: bytes, *, content_type: str = "application/json", items: int = -1) -> None:
        self.status = "SUCCESS"
        self.result = Result(
            self.frame.execution,
            content_type=content_type,
            run_us=1500,
            queue_us=250,
            items=items,
            size=len(payload),
            payload=payload,
        )
        self.link.send(self.result)

    def fail(self, error: BaseException, *, code: str | None = None, ran: bool = True) -> None:
        info = failures.describe(error, code=code)
        self.status = "CANCELLED" if info.code == "CANCELLED" else "ERROR"
        payload = failures.pack(info)
        self.link.send(Error(self.frame.execution, info.code, ran=ran, size=len(payload), payload=payload))


class FakeSession:
    """Listens on `path`. `behaviours` maps a callable id to what it does; `queries` what is answered."""

    def __init__(self, path: Path, behaviours: dict[str, Behaviour]) -> None:
        self.path = path
        self.behaviours = behaviours
        self.queries: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "execution": self._execution,
            "cancel": self._cancel_query,
            "stream": self._stream,
            "await": lambda arguments: self._execution({**arguments, "payload": True}),
            "project": lambda arguments: {"resources": {}},
        }
        self.calls: dict[str, FakeCall] = {}
        self.seen: list[Invoke] = []
        self.called = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._links: set[Link] = set()

    async def __aenter__(self) -> "FakeSession":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: self._link(), str(self.path))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.sleep(0)

    def _link(self) -> Link:
        link = Link(self._frame, lambda link, error: self._links.discard(link))
        self._links.add(link)
        return link

    def _frame(self, link: Link, frame: AnyFrame) -> None:
        if isinstance(frame, Invoke):
            self.seen.append(frame)
            self.called.set()
            call = self.calls[frame.execution] = FakeCall(link, frame)
            task = asyncio.ensure_future(self.behaviours[frame.function](call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(frame, Cancel):
            self.calls[frame.execution].cancelled.set()
        elif isinstance(frame, Query):
            self._answer(link, frame)

    def _answer(self, link: Link, frame: Query) -> None:
        try:
            link.send(Answer(frame.id, self.queries[frame.what](frame.arguments)))
        except FlashmeshError as error:
            link.send(Answer(frame.id, error={"code": error.code, "message": str(error)}))

    def _call(self, arguments: dict[str, Any]) -> FakeCall:
        call = self.calls.get(arguments["id"])
        if call is None:
            raise ExecutionNotFound
        return call

    def _execution(self, arguments: dict[str, Any]) -> dict[str, Any]:
        call = self._call(arguments)
        record: dict[str, Any] = {"id": arguments["id"], "function": call.frame.function, "status": call.status}
        if call.result is not None:
            record |= {"run_ms": 1.5, "queue_ms": 0.25}
            if arguments.get("payload"):
                record |= {"content_type": call.result.content_type, "payload": call.result.payload}
        return record

    def _cancel_query(self, arguments: dict[str, Any]) -> dict[str, Any]:
        call = self._call(arguments)
        if call.status in ("QUEUED", "RUNNING"):
            call.cancelled.set()
            call.status = "CANCELLED"
        return {}

    def _stream(self, arguments: dict[str, Any]) -> dict[str, Any]:
        call = self._call(arguments)
        after = arguments.get("after") or 0
        if arguments.get("after") is None:
            items, call.items = call.items, []
            return {"status": call.status, "items": items, "next": len(items)}
        return {"status": call.status, "items": call.items[after:], "next": len(call.items)}


async def echo(call: FakeCall) -> None:
    """Returns its input, at once."""
    call.succeed(msgspec.json.encode(call.value))


def main(path: str) -> None:
    """A session of its own process whose every function echoes; for load."""

    class Everything(dict[str, Behaviour]):
        def __missing__(self, key: str) -> Behaviour:
            return echo

    async def run() -> None:
        async with FakeSession(Path(path), Everything()):
            await asyncio.Event().wait()

    import uvloop

    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(run())


if __name__ == "__main__":
    main(sys.argv[1])
