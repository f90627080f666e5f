"""`f.spawn(x)` in a worker: the one call that goes through the session, which keeps what it accepted.

The connection is made at the first spawn and is a client's, apart from the worker's own link. It is blocking and may be
used from any thread; asynchronous questions are asked from a thread, so that the loop goes on.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, TypeVar

from flashmesh.functions.caller import Call
from flashmesh.functions.errors import Cancelled, LinkLost, TimedOut, WaitTimedOut
from flashmesh.functions.jobs import Job
from flashmesh.kit.ids import new_execution_id
from flashmesh.wire import failures, values
from flashmesh.wire.arguments import argument_parts
from flashmesh.wire.blocking_client import BlockingClient
from flashmesh.wire.frames import MSGPACK, Error, Invoke
from flashmesh.wire.parts import sendable
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.worker.calls.around import child_trace
from flashmesh.worker.invocation import CURRENT

T = TypeVar("T")

FINAL: Final = frozenset({"SUCCESS", "ERROR", "TIMEOUT", "CANCELLED"})
_LOOK_S: Final = 1.0
"""The longest single question: a thread that nobody waits for any more is gone after that."""


class Spawning:
    """Jobs of one worker process, kept by the session at `link`. A JobBackend."""

    def __init__(self, link: str, *, signer: Signer | None) -> None:
        self._link = link
        self._signer = signer
        self._client: BlockingClient | None = None
        self._connecting = threading.Lock()
        self._functions: dict[str, str] = {}

    def spawn(self, call: Call, function: str, *, endpoint: str = "") -> Job:
        """Accepted when this returns.

        `endpoint`: which one is meant, since another environment may serve functions of the same ids.
        Raises QueueFull, LinkLost (no session), FunctionNotFound, NotEncodable.
        """
        execution = new_execution_id()
        current = CURRENT.get()
        payload = argument_parts(
            call.args,
            call.kwargs,
            init=call.init,
            signer=self._signer,
            context=Purpose(function, "call", execution),
        )
        # No chain: nobody waits for a job, so it cannot wait for itself.
        meta = {"mode": "async", "trace": child_trace(current.trace if current is not None else "")}
        if endpoint:
            meta["endpoint"] = endpoint
        frame = Invoke(
            execution=execution,
            function=function,
            content_type=MSGPACK,
            accept=MSGPACK,
            meta=meta,
            payload=sendable(payload),
        )
        client = self._connected()
        sent = client.invoke(frame)
        try:
            # Frames are handled in order, so its record exists now if it was accepted.
            client.query("execution", id=execution)
        except LookupError:
            if isinstance(sent.outcome, Error):
                raise failures.restore(failures.unpack(sent.outcome.payload)) from None
            raise
        self._functions[execution] = function
        return Job(execution, self)

    def status_blocking(self, id: str) -> str:
        return str(self._connected().query("execution", id=id)["status"])

    def result_blocking(self, id: str, timeout: float | None) -> Any:
        return self._result(id, timeout, threading.Event())

    def cancel_blocking(self, id: str) -> None:
        self._connected().query("cancel", id=id)

    def stream_blocking(self, id: str) -> Iterator[Any]:
        after = 0
        while True:
            found = self._connected().query("stream", id=id, after=after, wait=_LOOK_S)
            for item in found["items"]:
                yield self._decoded(id, item, MSGPACK)
            after = found["next"]
            if found["status"] in FINAL and not found["items"]:
                self._outcome(id)  # raises what ended it early
                return

    async def status(self, id: str) -> str:
        return await _in_thread(lambda given_up: self.status_blocking(id))

    async def result(self, id: str, timeout: float | None) -> Any:
        return await _in_thread(lambda given_up: self._result(id, timeout, given_up))

    async def cancel(self, id: str) -> None:
        await _in_thread(lambda given_up: self.cancel_blocking(id))

    async def stream(self, id: str) -> AsyncIterator[Any]:
        items = self.stream_blocking(id)
        end = object()
        while (item := await _in_thread(lambda given_up: next(items, end))) is not end:
            yield item

    def _result(self, id: str, timeout: float | None, given_up: threading.Event) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        while not given_up.is_set():
            left = _LOOK_S if until is None else min(_LOOK_S, until - time.monotonic())
            if left <= 0:
                break
            found = self._connected().query("await", id=id, wait=left)
            if found["status"] in FINAL:
                return self._outcome(id)
        raise WaitTimedOut(f"The job {id} is not over after {timeout} s. It goes on; ask again later.")

    def _outcome(self, id: str) -> Any:
        record = self._connected().query("execution", id=id, payload=True)
        if record["status"] == "SUCCESS":
            return self._decoded(id, record.get("payload") or b"", record.get("content_type", MSGPACK))
        error = record.get("error")
        if isinstance(error, bytes):
            raise failures.restore(failures.unpack(error))
        if record["status"] == "CANCELLED":
            raise Cancelled()
        if record["status"] == "TIMEOUT":
            raise TimedOut()
        told = error or {}
        info = failures.ErrorInfo(
            code=told.get("code", "USER_ERROR"), type=told.get("type", "Exception"), message=told.get("message", "")
        )
        raise failures.restore(info)

    def _decoded(self, id: str, payload: bytes, content_type: str) -> Any:
        if not payload:
            return None
        purpose = Purpose(self._functions.get(id, ""), "result", id)
        return values.decode(payload, content_type, signer=self._signer, context=purpose)

    def _connected(self) -> BlockingClient:
        with self._connecting:
            if self._client is None or not self._client.alive:
                try:
                    self._client = BlockingClient.connect(self._link)
                except LinkLost as error:
                    raise LinkLost(
                        "A job needs the server that keeps it, which does not answer. Start it with `flash run`, "
                        "or `flash server` for deployed functions. Calls that are awaited do without it."
                    ) from error
            return self._client


async def _in_thread(question: Callable[[threading.Event], T]) -> T:
    """Ask from a thread; when the asking task is cancelled the question is given up, soon."""
    given_up = threading.Event()
    try:
        return await asyncio.to_thread(question, given_up)
    finally:
        given_up.set()
