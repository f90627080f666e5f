"""The Caller of a script: every call goes to a worker of the session that was started for it.

Event loops come and go in a script (`asyncio.run` twice), so each gets a connection of its own, which ends with it;
plain code and other threads share a blocking one. The session learns of functions as they are called.
"""

import asyncio
import copy
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Literal, Protocol

import msgspec

from flashmesh.dev.script.functions import Known, ScriptFunctions
from flashmesh.dev.session.headless import SessionHandle
from flashmesh.dev.session_calls import decoded, frame_of, function_id, value_of
from flashmesh.dev.session_jobs import SessionJobs
from flashmesh.functions.calls import Call
from flashmesh.functions.declarations import Declaration
from flashmesh.functions.jobs import Job
from flashmesh.wire.client import BlockingClient, SessionClient
from flashmesh.wire.frames import MSGPACK, Invoke
from flashmesh.wire.signature import Signer

ENVIRONMENT = "dev"


class Session(Protocol):
    """Where the script's session comes from."""

    starts: int

    def handle(self) -> SessionHandle: ...

    def current(self) -> SessionHandle | None: ...

    def close(self) -> None: ...


class ScriptCaller:
    """See the module. Safe to use from several threads and loops."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._functions = ScriptFunctions()
        self._lock = threading.RLock()
        self._start = 0
        self._blocking: BlockingClient | None = None
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClient] = weakref.WeakKeyDictionary()
        self._signer: Signer | None = None

    def close(self) -> None:
        """End the session and its workers."""
        with self._lock:
            if self._blocking is not None:
                self._blocking.close()
        self._session.close()

    # The port

    def is_local(self, declaration: Declaration) -> bool:
        return declaration.resource.is_load_balanced

    async def call(self, call: Call) -> Any:
        call, build = await self._prepared(call)
        client = await self._client()
        return value_of(await client.invoke(self._frame(call, build)).result(), call, signer=self._signer)

    def call_blocking(self, call: Call) -> Any:
        call, build = self._prepare(call)
        outcome = self._connected().invoke(self._frame(call, build)).result()
        return value_of(outcome, call, signer=self._signer)

    async def stream(self, call: Call) -> AsyncIterator[Any]:
        call, build = await self._prepared(call)
        client = await self._client()
        invocation = client.invoke(self._frame(call, build, stream=True))
        items = invocation.items()
        try:
            async for item in items:
                yield self._item(call, invocation.execution, item)
            value_of(await invocation.result(), call, signer=self._signer)
        finally:
            await items.aclose()  # type: ignore[attr-defined]

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        call, build = self._prepare(call)
        invocation = self._connected().invoke(self._frame(call, build, stream=True))
        for item in invocation.items():
            yield self._item(call, invocation.execution, item)
        value_of(invocation.result(), call, signer=self._signer)

    def spawn(self, call: Call) -> Job:
        call, build = self._prepare(call)
        client = self._connected()
        frame = self._frame(call, build, mode="async")
        client.invoke(frame)
        client.query("accepted", id=frame.execution)
        jobs = SessionJobs(call, ask=self._ask, client=self._connected, signer=lambda: self._signer)
        return Job(frame.execution, jobs)

    def _frame(
        self, call: Call, build: str, *, mode: Literal["sync", "async"] = "sync", stream: bool = False
    ) -> Invoke:
        frame = frame_of(call, signer=self._signer, mode=mode, stream=stream)
        return msgspec.structs.replace(frame, build=build) if build else frame

    # What the session knows

    async def _prepared(self, call: Call) -> tuple[Call, str]:
        """The call as the session knows it, and the build that has to run it (see Known).

        The first one starts the session, in a thread: it takes 0.2 s.
        """
        known = self._known(call.declaration)
        if known is None:
            return await asyncio.to_thread(self._prepare, call)
        return _under(call, known), known.build

    def _prepare(self, call: Call) -> tuple[Call, str]:
        with self._lock:
            known = self._known(call.declaration)
            if known is None:
                handle = self._session.handle()
                if self._start != self._session.starts:
                    self._start = self._session.starts
                    self._functions.forget()
                    self._signer = Signer(handle.key, ENVIRONMENT)
                assert self._signer is not None
                answer = self._connected().query(
                    "register", **self._functions.registration(call.declaration, self._signer)
                )
                self._functions.registered(answer["builds"])
                known = self._functions.known(call.declaration)
                assert known is not None
        return _under(call, known), known.build

    def _known(self, declaration: Declaration) -> Known | None:
        """None also when the session that knew it is gone."""
        if self._session.current() is None or self._start != self._session.starts:
            return None
        return self._functions.known(declaration)

    # Connections

    def _connected(self) -> BlockingClient:
        with self._lock:
            if self._blocking is None or not self._blocking.alive:
                self._blocking = BlockingClient.connect(self._session.handle().link)
            return self._blocking

    async def _client(self) -> SessionClient:
        """The connection of the running loop, made at its first call."""
        loop = asyncio.get_running_loop()
        held = self._clients.get(loop)
        if held is None or not held.client.alive:
            client = await SessionClient.connect(self._session.handle().link)
            held = self._clients[loop] = _LoopClient(client)
            await held.hold()
        return held.client

    async def _ask(self, question: Callable[[SessionClient], Awaitable[Any]]) -> Any:
        return await question(await self._client())

    def _item(self, call: Call, execution: str, item: bytes) -> Any:
        function = function_id(call.declaration, call.method)
        return decoded(item, MSGPACK, function, execution, self._signer)


class _LoopClient:
    """A connection that ends with its loop: `asyncio.run` closes every asynchronous generator it has begun."""

    def __init__(self, client: SessionClient) -> None:
        self.client = client
        self._held = self._until_the_loop_ends()

    async def hold(self) -> None:
        await anext(self._held)

    async def _until_the_loop_ends(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self.client.close()


def _under(call: Call, known: Known) -> Call:
    """The same call under the name its function has in the session (`__main__` is nobody's name there)."""
    declaration = call.declaration
    if declaration.id == known.id:
        return call
    named = copy.copy(declaration)
    named.module, named.qualname = known.module, known.id.removeprefix(known.module + ".")
    return Call(named, call.args, call.kwargs, method=call.method, init=call.init)
