"""Calling an endpoint by the queue API: `Endpoint(id=…)` and `Endpoint(image=…)`."""

from __future__ import annotations

import os
import time

from flashmesh.functions.errors import EndpointUnreachable, EndpointUnresolved

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from typing import Any

RUNPOD_ENDPOINT_URL = "https://api.runpod.ai/v2"

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})

POLL_FIRST_S = 0.25
POLL_FACTOR = 1.5
POLL_LONGEST_S = 5.0
POLL_ERRORS = 5
"""Answers missed in a row before `wait` gives up: a network that blinks must not lose a job that runs."""


class EndpointJob:
    """A job on an endpoint. `output`, `error` and `done` tell what the last answer said; `status()` asks again."""

    __slots__ = ("_client", "_data")

    def __init__(self, data: dict[str, Any], client: EndpointClient) -> None:
        self._data = data
        self._client = client

    @property
    def id(self) -> str:
        return str(self._data.get("id", ""))

    @property
    def output(self) -> Any:
        """The result, once COMPLETED."""
        return self._data.get("output")

    @property
    def error(self) -> str | None:
        """What went wrong, once FAILED."""
        return self._data.get("error")

    @property
    def done(self) -> bool:
        return self._last in FINAL

    @property
    def _last(self) -> str:
        return str(self._data.get("status", "UNKNOWN"))

    async def status(self) -> str:
        """IN_QUEUE, IN_PROGRESS, COMPLETED, FAILED, CANCELLED or TIMED_OUT."""
        self._data = await self._client.job_request("GET", f"/status/{self.id}", timeout=30.0)
        return self._last

    async def cancel(self) -> EndpointJob:
        self._data.update(await self._client.job_request("POST", f"/cancel/{self.id}"))
        return self

    async def wait(self, timeout: float | None = None) -> EndpointJob:
        """Ask until it is over; 0.25 s apart at first, 5 s at last.

        Raises TimeoutError after `timeout` seconds (the job goes on), EndpointUnreachable after five missed answers.
        """
        import asyncio

        deadline = None if timeout is None else time.monotonic() + timeout
        pause = POLL_FIRST_S
        missed = 0
        while not self.done:
            try:
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    await asyncio.sleep(pause)
                    await self.status()
                missed = 0
            except EndpointUnreachable:
                missed += 1
                if missed >= POLL_ERRORS:
                    raise
            except TimeoutError:
                raise TimeoutError(f"Job {self.id} was not over after {timeout} s (last seen: {self._last}).") from None
            pause = min(pause * POLL_FACTOR, POLL_LONGEST_S)
        return self

    def __repr__(self) -> str:
        return f"EndpointJob(id={self.id!r}, status={self._last!r})"


class EndpointClient:
    """Requests to one endpoint, by id, or by name on a server of one's own (`RUNPOD_ENDPOINT_BASE_URL`)."""

    def __init__(self, *, id: str | None, name: str | None) -> None:
        self._id = id
        self._name = name

    async def run(self, input_data: Any, *, webhook: str | None = None) -> EndpointJob:
        body = {"input": input_data}
        if webhook is not None:
            body["webhook"] = webhook
        return EndpointJob(await self.job_request("POST", "/run", body), self)

    async def runsync(self, input_data: Any, *, timeout: float = 60.0) -> EndpointJob:
        return EndpointJob(await self.job_request("POST", "/runsync", {"input": input_data}, timeout=timeout), self)

    async def cancel(self, job_id: str) -> EndpointJob:
        return EndpointJob(await self.job_request("POST", f"/cancel/{job_id}"), self)

    async def job_request(self, method: str, path: str, body: Any = None, *, timeout: float = 60.0) -> dict[str, Any]:
        """One request of the queue API; its answer is an object."""
        answer = await _in_thread(method, f"{self._queue_url()}{path}", body, timeout)
        if not isinstance(answer, dict):
            raise EndpointUnreachable(f"The endpoint's answer to {path} is not an object. Is its address right?")
        return answer

    def request(self, method: str, path: str, data: Any = None, *, mode: str, timeout: float = 60.0) -> ClientRequest:
        """One request to the endpoint's own HTTP routes."""
        if not path.startswith("/"):
            raise ValueError(f"path must start with '/', got {path!r}. Write '/{path}'.")
        return ClientRequest(_in_thread(method, f"{self._routes_url()}{path}", data, timeout), method, path, mode)

    def _queue_url(self) -> str:
        return f"{_base()}/{self._address()}"

    def _routes_url(self) -> str:
        """`https://{id}.api.runpod.ai` there; `/lb/{id}` beside the queue API on a server of one's own."""
        from urllib.parse import urlsplit

        from flashmesh.functions.credentials import RUNPOD_DOMAINS

        base = urlsplit(_base())
        host = base.hostname or ""
        if any(host.endswith("." + domain) for domain in RUNPOD_DOMAINS):
            return f"https://{self._address()}.{base.netloc}"
        return f"{base.scheme}://{base.netloc}/lb/{self._address()}"

    def _address(self) -> str:
        from urllib.parse import quote

        if self._id is not None:
            return quote(self._id, safe="/")
        if not os.environ.get("RUNPOD_ENDPOINT_BASE_URL", "").strip():
            raise EndpointUnresolved(
                f"The image of endpoint {self._name!r} is not deployed anywhere that this process knows. "
                "Set RUNPOD_ENDPOINT_BASE_URL to the server that runs it, or attach to it by id: Endpoint(id=…)."
            )
        return quote(self._name or "", safe="")


class ClientRequest:
    """A request that was not sent yet: `await` sends it. Used as a decorator it says why it is none."""

    __slots__ = ("_method", "_mode", "_path", "_request")

    def __init__(self, request: Coroutine[Any, Any, Any], method: str, path: str, mode: str) -> None:
        self._request = request
        self._method = method
        self._path = path
        self._mode = mode

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._request.__await__()

    def __call__(self, *_: Any, **__: Any) -> Any:
        self._request.close()
        raise TypeError(
            f"Endpoint({self._mode}=…) is a client, so .{self._method.lower()}({self._path!r}) is a request and no "
            "decorator. Declare routes on Endpoint(name=…)."
        )


def _base() -> str:
    return (os.environ.get("RUNPOD_ENDPOINT_BASE_URL", "").strip() or RUNPOD_ENDPOINT_URL).rstrip("/")


async def _in_thread(method: str, url: str, body: Any, timeout: float) -> Any:
    import asyncio

    from flashmesh.functions.http import request_json  # HTTP and JSON only where they are used

    return await asyncio.to_thread(request_json, method, url, body, timeout=timeout)
