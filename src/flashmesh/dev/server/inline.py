"""`flash run --inline`: the bodies of queue-based functions run in the server's own process, for debuggers.

A plain function runs in the main thread, where `breakpoint()` has the terminal; the server stands still meanwhile.
There are no workers, no queue and no limits; everything else (routes, bodies, answers) is the same.
"""

import asyncio
import contextlib
import inspect
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.route_book import QueueRoute
from flashmesh.dev.server.user_code import UserCode
from flashmesh.functions.errors import Cancelled, ExecutionNotFound, FlashmeshError, FunctionNotFound
from flashmesh.wire import failures, values
from flashmesh.wire.arguments import Bound
from flashmesh.wire.client import SessionClient
from flashmesh.wire.frames import BINARY, JSON, Error, Invoke, Result
from flashmesh.worker.callables import BoundCallable, Callables
from flashmesh.worker.loader import problem_of, served_callables, served_declarations
from flashmesh.worker.streams import ItemList

_KEPT: Final = 1000
"""Executions remembered for `/status`."""


class InlineInvocation:
    """One call; has what the queue API uses of the link's Invocation."""

    def __init__(self, frame: Invoke) -> None:
        self.frame = frame
        self.execution = frame.execution
        self.started = asyncio.Event()
        self.done: asyncio.Future[Result | Error] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self._items: deque[bytes] = deque()
        self.kept: list[bytes] = []
        self._more = asyncio.Event()

    async def wait(self, timeout: float) -> Result | Error | None:
        done, _ = await asyncio.wait((self.done,), timeout=timeout)
        return self.done.result() if done else None

    async def result(self) -> Result | Error:
        return await self.done

    async def items(self) -> AsyncIterator[bytes]:
        while True:
            while self._items:
                yield self._items.popleft()
            if self.done.done():
                return
            self._more.clear()
            await self._more.wait()

    def cancel(self) -> None:
        """Ends an async body at its next await; a plain one cannot be ended from outside."""
        if self.task is not None:
            self.task.cancel()

    def add(self, item: bytes) -> None:
        self._items.append(item)
        self.kept.append(item)
        self._more.set()

    def end(self, outcome: Result | Error) -> None:
        if not self.done.done():
            self.done.set_result(outcome)
        self.started.set()
        self._more.set()

    @property
    def status(self) -> str:
        if not self.done.done():
            return "RUNNING" if self.started.is_set() else "QUEUED"
        outcome = self.done.result()
        if isinstance(outcome, Result):
            return "SUCCESS"
        return "CANCELLED" if outcome.code == "CANCELLED" else "ERROR"


class InlineClient:
    """Stands where the session's client stands, and runs the calls itself."""

    alive = True

    def __init__(self, routes: list[QueueRoute], code: UserCode, session: SessionDoor) -> None:
        self._files = {route.function: route.file for route in routes}
        self._code = code
        self._session = session
        self._callables: dict[str, Callables] = {}
        self._known: OrderedDict[str, InlineInvocation] = OrderedDict()

    def invoke(self, frame: Invoke) -> InlineInvocation:
        invocation = self._known[frame.execution] = InlineInvocation(frame)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        invocation.task = asyncio.ensure_future(self._run(invocation))
        return invocation

    async def query(self, what: str, /, **arguments: Any) -> dict[str, Any]:
        """Questions about executions are answered here, the others by the session. Raises as the session does."""
        if what not in ("execution", "stream", "cancel"):
            return await (await self._session.get()).query(what, **arguments)
        invocation = self._known.get(str(arguments.get("id")))
        if invocation is None:
            raise ExecutionNotFound
        if what == "cancel":
            invocation.cancel()
            await asyncio.wait((invocation.done,), timeout=1)
        if what == "stream":
            return _news(invocation, arguments.get("after"))
        return _record(invocation, payload=bool(arguments.get("payload")))

    async def close(self) -> None:
        for invocation in self._known.values():
            invocation.cancel()

    def _find(self, function: str) -> BoundCallable:
        """Raises FunctionNotFound, or ImportProblem when its file cannot be imported."""
        file = self._files.get(function)
        if file is None:
            raise FunctionNotFound(f"{function} is not served here.")
        if file not in self._callables:
            machinery = self._code.machinery
            functions = [known for known, its_file in self._files.items() if its_file == file]
            spec = self._code.spec([file], functions)
            try:
                modules = {spec.modules[0].module: self._code.load(file)}
            except BaseException as error:
                raise problem_of(error, file=spec.modules[0].file, imports=machinery) from error
            declared = served_declarations(spec, modules, machinery)
            self._callables[file] = Callables(served_callables(spec, declared))
        return self._callables[file].find(function)

    async def _run(self, invocation: InlineInvocation) -> None:
        frame = invocation.frame
        began = time.perf_counter_ns()
        try:
            target = self._find(frame.function)
            bound = target.bind(frame.payload, frame.content_type)
            invocation.started.set()
            value = await self._value(target, bound)
            content_type, payload, count = await self._encoded(invocation, value)
        except asyncio.CancelledError:
            invocation.end(_error(frame.execution, Cancelled()))
        except BaseException as error:
            if not isinstance(error, FlashmeshError):
                traceback.print_exc()
            invocation.end(_error(frame.execution, error))
        else:
            run_us = (time.perf_counter_ns() - began) // 1000
            result = Result(
                frame.execution,
                content_type=content_type,
                run_us=run_us,
                items=count,
                size=len(payload),
                payload=payload,
            )
            invocation.end(result)

    async def _value(self, target: BoundCallable, bound: Bound) -> Any:
        if target.needs_loop:
            await target.prepare(bound)
            value = target.call(bound)
            return await value if inspect.isawaitable(value) else value
        with _no_running_loop():  # as in a worker: the body may use asyncio.run itself
            return target.call(bound)

    async def _encoded(self, invocation: InlineInvocation, value: Any) -> tuple[str, bytes, int]:
        """Content type, payload, and how many items went before (-1: not a generator)."""
        frame = invocation.frame
        media = frame.accept if frame.accept != BINARY or isinstance(value, bytes | bytearray | memoryview) else JSON
        if not isinstance(value, AsyncIterator | Iterator):
            return media, values.encode(value, media), -1
        collected = ItemList(media)
        async for item in _items(value):
            data = values.encode(item, media)
            invocation.add(data)
            if not frame.meta.get("stream"):
                collected.add(data)
        if frame.meta.get("stream"):
            return media, b"", len(invocation.kept)
        return media, collected.encoded(), len(invocation.kept)


class InlineDoor(SessionDoor):
    """A door behind which the calls run in this process. What else is asked goes to the session."""

    _here: InlineClient | None = None

    def serve(self, routes: list[QueueRoute], code: UserCode) -> None:
        """Run the calls of these routes here."""
        session = SessionDoor(self._root, self._given)
        self._here = InlineClient(routes, code, session)

    @property
    def client(self) -> SessionClient | None:
        return self._here  # type: ignore[return-value]  # it has what is used of one

    async def get(self) -> SessionClient:
        assert self.client is not None
        return self.client

    def open(self) -> None:
        """Nothing to connect to before something is asked of the session."""

    async def close(self) -> None:
        if self._here is not None:
            await self._here.close()


async def _items(value: Any) -> AsyncIterator[Any]:
    if isinstance(value, AsyncIterator):
        async for item in value:
            yield item
        return
    while True:
        with _no_running_loop():
            try:
                item = next(value)
            except StopIteration:
                return
        yield item
        await asyncio.sleep(0)  # what was yielded leaves before the next item is computed


@contextlib.contextmanager
def _no_running_loop() -> Iterator[None]:
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def _error(execution: str, error: BaseException) -> Error:
    info = failures.describe(error)
    payload = failures.pack(info)
    return Error(execution, info.code, size=len(payload), payload=payload)


def _record(invocation: InlineInvocation, *, payload: bool) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": invocation.execution,
        "function": invocation.frame.function,
        "status": invocation.status,
    }
    if invocation.done.done():
        outcome = invocation.done.result()
        if isinstance(outcome, Error):
            record["error"] = failures.to_http(failures.of_frame(outcome))
        else:
            record |= {"run_ms": outcome.run_us / 1000, "content_type": outcome.content_type}
            if payload:
                record["payload"] = outcome.payload
    return record


def _news(invocation: InlineInvocation, after: int | None) -> dict[str, Any]:
    start = after or 0
    items = invocation.kept[start:]
    if after is None:
        invocation.kept = []
    done = invocation.done.done()
    return {"status": invocation.status, "items": items, "next": start + len(items), "done": done}
