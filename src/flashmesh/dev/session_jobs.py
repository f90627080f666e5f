"""Jobs (`f.spawn(x)`) whose executions a session keeps: the port behind `Job`, as queries over the link."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, Final

from flashmesh.dev.script.main_module import main_name
from flashmesh.dev.session_calls import decoded, function_id, returned_type
from flashmesh.functions.calls import Call
from flashmesh.functions.errors import WaitTimedOut
from flashmesh.wire import failures
from flashmesh.wire.blocking_client import BlockingClient
from flashmesh.wire.client import SessionClient
from flashmesh.wire.frames import MSGPACK
from flashmesh.wire.signature import Signer

FINAL: Final = frozenset({"SUCCESS", "ERROR", "TIMEOUT", "CANCELLED"})
_POLL_S: Final = 10.0
"""How long one question waits for news at the session; a longer wait asks again."""
Answer = dict[str, Any]
Ask = Callable[[Callable[[SessionClient], Awaitable[Answer]]], Awaitable[Answer]]


class SessionJobs:
    """The JobBackend of the jobs of one call's function."""

    def __init__(
        self, call: Call, *, ask: Ask, client: Callable[[], BlockingClient], signer: Callable[[], Signer | None]
    ) -> None:
        """Take the ways to the session.

        Args:
            ask: runs a question on the loop that owns the connection, from whatever loop.
            client: the connection for blocking questions.
        """
        self._function = function_id(call.declaration, call.method)
        self._kind = returned_type(call)
        self._ask = ask
        self._client = client
        self._signer = signer

    async def status(self, id: str) -> str:
        return str((await self._ask(lambda client: client.query("execution", id=id)))["status"])

    def status_blocking(self, id: str) -> str:
        return str(self._client().query("execution", id=id)["status"])

    async def result(self, id: str, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            wait = _remaining(id, until, timeout)
            record = await self._ask(lambda client: client.query("await", id=id, wait=wait))  # noqa: B023
            if record["status"] in FINAL:
                return self._value(id, record)

    def result_blocking(self, id: str, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            record = self._client().query("await", id=id, wait=_remaining(id, until, timeout))
            if record["status"] in FINAL:
                return self._value(id, record)

    async def cancel(self, id: str) -> None:
        await self._ask(lambda client: client.query("cancel", id=id))

    def cancel_blocking(self, id: str) -> None:
        self._client().query("cancel", id=id)

    async def stream(self, id: str) -> AsyncIterator[Any]:
        after: int | None = None
        while True:
            found = await self._ask(lambda client: client.query("stream", id=id, after=after, wait=_POLL_S))  # noqa: B023
            for item in self._items(id, found):
                yield item
            after = found["next"]
            if found["done"]:
                if found["status"] != "SUCCESS":
                    self._value(id, await self._ask(lambda client: client.query("await", id=id)))
                return

    def stream_blocking(self, id: str) -> Iterator[Any]:
        after: int | None = None
        while True:
            found = self._client().query("stream", id=id, after=after, wait=_POLL_S)
            yield from self._items(id, found)
            after = found["next"]
            if found["done"]:
                if found["status"] != "SUCCESS":
                    self._value(id, self._client().query("await", id=id))
                return

    def _items(self, id: str, found: Answer) -> list[Any]:
        content_type = found.get("content_type") or MSGPACK
        return [decoded(item, content_type, self._function, id, self._signer()) for item in found["items"]]

    def _value(self, id: str, record: Answer) -> Any:
        """What the execution ended with. Raises what the function raised, Cancelled or TimedOut."""
        payload = record.get("payload") or b""
        if record["status"] == "SUCCESS":
            content_type = record.get("content_type") or MSGPACK
            return decoded(payload, content_type, self._function, id, self._signer(), self._kind)
        code = (record.get("error") or {}).get("code") or _CODES.get(record["status"], "INTERNAL")
        raise failures.restore(failures.unpack(payload, code), main_module=main_name())


_CODES: Final = {"CANCELLED": "CANCELLED", "TIMEOUT": "TIMEOUT"}


def _remaining(id: str, until: float | None, timeout: float | None) -> float:
    if until is None:
        return _POLL_S
    left = until - time.monotonic()
    if left <= 0:
        raise WaitTimedOut(f"Execution {id} did not end within {timeout:g} s. It goes on; ask again later.")
    return min(_POLL_S, left)
