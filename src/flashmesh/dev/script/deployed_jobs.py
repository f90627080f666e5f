"""Jobs (`f.spawn(x)`) that a server keeps: the port behind `Job`, as requests of its queue API."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

from flashmesh.dev.script.deployed_calls import STATES, DeployedCall, pause_s
from flashmesh.dev.script.road import ASK_S, Server
from flashmesh.functions.errors import WaitTimedOut
from flashmesh.worker.calls.exchange import exchange, exchange_blocking
from flashmesh.worker.calls.queue_call import WAITING

_STREAM_S: Final = 30.0
"""One question for items waits up to 5 s at the server; this is when it is given up."""


class DeployedJobs:
    """The JobBackend of the jobs of one call."""

    def __init__(self, server: Server, call: DeployedCall) -> None:
        self._server = server
        self._call = call

    async def status(self, id: str) -> str:
        return STATES[(await self._ask("status", id))["status"]]

    def status_blocking(self, id: str) -> str:
        return STATES[self._ask_blocking("status", id)["status"]]

    async def result(self, id: str, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        looks = 0
        while True:
            document = await self._ask("status", id)
            if document["status"] not in WAITING:
                return self._call.outcome(document)
            looks += 1
            await asyncio.sleep(_pause_s(id, looks, until, timeout))

    def result_blocking(self, id: str, timeout: float | None) -> Any:
        until = None if timeout is None else time.monotonic() + timeout
        looks = 0
        while True:
            document = self._ask_blocking("status", id)
            if document["status"] not in WAITING:
                return self._call.outcome(document)
            looks += 1
            time.sleep(_pause_s(id, looks, until, timeout))

    async def cancel(self, id: str) -> None:
        await self._ask("cancel", id)

    def cancel_blocking(self, id: str) -> None:
        self._ask_blocking("cancel", id)

    async def stream(self, id: str) -> AsyncIterator[Any]:
        while True:
            document = await self._ask("stream", id)
            for item in self._items(document):
                yield item
            if document["status"] not in WAITING and not document["stream"]:
                self._check_end(await self._ask("status", id))
                return

    def stream_blocking(self, id: str) -> Iterator[Any]:
        while True:
            document = self._ask_blocking("stream", id)
            yield from self._items(document)
            if document["status"] not in WAITING and not document["stream"]:
                self._check_end(self._ask_blocking("status", id))
                return

    def _items(self, document: dict[str, Any]) -> list[Any]:
        return [self._call.binder.convert_item(one["output"]) for one in document["stream"]]

    def _check_end(self, document: dict[str, Any]) -> None:
        if document["status"] != "COMPLETED":
            raise self._call.failure(document)

    async def _ask(self, verb: str, id: str) -> dict[str, Any]:
        server = self._server
        seconds = _STREAM_S if verb == "stream" else ASK_S
        response, body = await exchange(
            server.address, self._call.about(verb, id), seconds=seconds, network=server.network
        )
        return self._call.document(response, body)

    def _ask_blocking(self, verb: str, id: str) -> dict[str, Any]:
        server = self._server
        seconds = _STREAM_S if verb == "stream" else ASK_S
        response, body = exchange_blocking(
            server.address, self._call.about(verb, id), seconds=seconds, network=server.network
        )
        return self._call.document(response, body)


def _pause_s(id: str, looks: int, until: float | None, timeout: float | None) -> float:
    """Raises WaitTimedOut when there is no time left."""
    if until is None:
        return pause_s(looks)
    left = until - time.monotonic()
    if left <= 0:
        raise WaitTimedOut(f"Job {id} did not end within {timeout:g} s. It goes on; ask again later.")
    return min(pause_s(looks), left)
