"""The dev server's Caller: where calls go that the body of an HTTP route makes.

Functions of HTTP routes run here; functions of workers go through the session. Bodies run on the server's loop, in
threads, or on loops of their own in threads (`asyncio.run(f(x))`), and each finds a way that blocks nobody else.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.session_calls import decoded, frame_of, function_id, value_of
from flashmesh.dev.session_jobs import SessionJobs
from flashmesh.functions.calls import Call, install
from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import FlashmeshError, LinkLost
from flashmesh.functions.jobs import Job
from flashmesh.wire.client import BlockingClient, Invocation, SessionClient
from flashmesh.wire.frames import Error, Result
from flashmesh.wire.signature import Signer
from flashmesh.worker.stubs import is_stub

ENVIRONMENT = "dev"


class DevCaller:
    """A Caller over the session's link."""

    def __init__(self, door: SessionDoor, *, inline: bool = False) -> None:
        """Nothing happens yet.

        Args:
            inline: the bodies of workers' functions run here, too.
        """
        self._door = door
        self._inline = inline
        self._loop: asyncio.AbstractEventLoop | None = None
        self._blocking: BlockingClient | None = None
        self._lock = threading.Lock()
        self._signer: Signer | None = None

    def begin(self) -> None:
        """Become this process's Caller. The running loop is the server's, to which the session's connection belongs."""
        self._loop = asyncio.get_running_loop()
        install(self)

    def close(self) -> None:
        if self._blocking is not None:
            self._blocking.close()

    def is_local(self, declaration: Declaration) -> bool:
        return (self._inline or declaration.resource.is_load_balanced) and not is_stub(declaration)

    async def call(self, call: Call) -> Any:
        return await self._on_server_loop(self._call(call))

    def call_blocking(self, call: Call) -> Any:
        client = self._connected()
        outcome = client.invoke(frame_of(call, signer=self.signer())).result()
        return value_of(outcome, call, signer=self.signer())

    async def stream(self, call: Call) -> AsyncIterator[Any]:
        invocation = await self._on_server_loop(self._begin(call))
        items = invocation.items()
        try:
            while True:
                try:
                    item = await self._on_server_loop(anext(items))
                except StopAsyncIteration:
                    break
                yield self._item(call, invocation.execution, item)
            value_of(await self._on_server_loop(_outcome(invocation)), call, signer=self.signer())
        finally:
            await self._on_server_loop(items.aclose())

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        invocation = self._connected().invoke(frame_of(call, signer=self.signer(), stream=True))
        for item in invocation.items():
            yield self._item(call, invocation.execution, item)
        value_of(invocation.result(), call, signer=self.signer())

    def spawn(self, call: Call) -> Job:
        client = self._connected()
        frame = frame_of(call, signer=self.signer(), mode="async")
        invocation = client.invoke(frame)
        try:
            client.query("execution", id=frame.execution)
        except FlashmeshError:
            refused = invocation.wait(0.1)
            if refused is None:
                raise
            value_of(refused, call, signer=self.signer())
        jobs = SessionJobs(call, ask=self._ask, client=self._connected, signer=self.signer)
        return Job(frame.execution, jobs)

    def signer(self) -> Signer | None:
        """What signs pickled values in this session; None while its key cannot be read."""
        if self._signer is None and (key := self._door.key) is not None:
            self._signer = Signer(key, ENVIRONMENT)
        return self._signer

    async def _call(self, call: Call) -> Any:
        invocation = await self._begin(call, stream=False)
        return value_of(await invocation.result(), call, signer=self.signer())

    async def _begin(self, call: Call, *, stream: bool = True) -> Invocation:
        client = self._door.client or await self._door.get()
        return client.invoke(frame_of(call, signer=self.signer(), stream=stream))

    async def _ask(self, question: Callable[[SessionClient], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
        async def asking() -> dict[str, Any]:
            return await question(self._door.client or await self._door.get())

        answer: dict[str, Any] = await self._on_server_loop(asking())
        return answer

    async def _on_server_loop(self, work: Any) -> Any:
        """Await `work` on the loop that the connection belongs to; from another loop, in a thread, across."""
        if self._loop is None or asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(work), self._loop))

    def _item(self, call: Call, execution: str, item: bytes) -> Any:
        function = function_id(call.declaration, call.method)
        return decoded(item, "application/x-msgpack", function, execution, self.signer())

    def _connected(self) -> BlockingClient:
        """The connection for blocking calls: one for all threads. Raises LinkLost."""
        with self._lock:
            if self._blocking is None or not self._blocking.alive:
                link = self._door.link
                if link is None:
                    raise LinkLost("The session is not reached yet. Try again in a moment.")
                self._blocking = BlockingClient.connect(link)
            return self._blocking


async def _outcome(invocation: Invocation) -> Result | Error:
    return await invocation.result()


async def _awaited(work: Any) -> Any:
    return await work
