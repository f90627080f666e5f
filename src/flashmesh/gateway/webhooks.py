"""Webhooks of the queue API: when a job that asked for it has ended, its status is POSTed to the address it named.

Deliveries run beside calls and never hold them up. One that fails is tried again with growing pauses; what is not
delivered yet is kept in the store's database where there is one, so that a restart goes on with it. An address gets the
body RunPod would send: the job's status with its output or its error.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from flashmesh.executions.record import Execution
from flashmesh.functions.errors import ResultEvicted
from flashmesh.gateway.api.records import job_body

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("flashmesh.server")
TRY_AFTER_S: Final = (1.0, 10.0, 60.0, 600.0)
"""Pauses before the second, third … try; RunPod tries three times in all. Longer: a receiver may be away for longer."""
TIME_LIMIT_S: Final = 10.0
"""For one try, connecting included."""
MAX_AT_ONCE: Final = 16
"""Deliveries under way together."""
MAX_PENDING: Final = 10_000
"""Deliveries that wait. Beyond it the oldest is dropped, and a line in the log says so."""
MAX_BODY_BYTES: Final = 16 * 1024 * 1024
"""A larger output is left out of the body; the receiver asks `/status/{id}` for it."""
SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS webhooks (execution TEXT PRIMARY KEY, url TEXT NOT NULL, body BLOB NOT NULL, "
    "tries INTEGER NOT NULL, due REAL NOT NULL)",
)
SCHEMA_NAME: Final = "webhooks"
"""For `database.add_schema(SCHEMA_NAME, SCHEMA)`, before it is opened."""


class Database(Protocol):
    """What is used of the store's database."""

    def write(
        self, sql: str, parameters: Sequence[Any], then: Callable[[Exception | None], None] | None = None
    ) -> None:
        """Later, on the store's writer."""
        ...

    def read(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]: ...


class Delivery:
    """One body for one address. `due` is UTC seconds."""

    __slots__ = ("body", "due", "execution", "tries", "url")

    def __init__(self, execution: str, url: str, body: bytes, tries: int, due: float) -> None:
        self.execution = execution
        self.url = url
        self.body = body
        self.tries = tries
        self.due = due


class Webhooks:
    """`ended` goes into the dispatcher's `on_ended`.

    Args:
        database: keeps what is not delivered over a restart; None: nothing does.
        now: UTC seconds.
        pauses_s: before each further try.
    """

    def __init__(
        self,
        *,
        database: Database | None = None,
        now: Callable[[], float] = time.time,
        pauses_s: Sequence[float] = TRY_AFTER_S,
        time_limit_s: float = TIME_LIMIT_S,
    ) -> None:
        self._database = database
        self._now = now
        self._pauses_s = tuple(pauses_s)
        self._time_limit_s = time_limit_s
        self._waiting: deque[Delivery] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: dict[Delivery, asyncio.TimerHandle] = {}
        self._client: httpx.AsyncClient | None = None
        self._closing = False

    def ended(self, execution: Execution) -> None:
        """An execution has ended: if it named an address, the delivery is kept and begun."""
        url = execution.meta.get("webhook")
        if not url or self._closing:
            return
        try:
            body = job_body(execution)
        except ResultEvicted:
            body = job_body(execution, payload=False)
        if len(body) > MAX_BODY_BYTES:
            body = job_body(execution, payload=False)
        delivery = Delivery(execution.id, str(url), body, 0, self._now())
        if self._database is not None:
            self._database.write(
                "INSERT OR REPLACE INTO webhooks VALUES (?, ?, ?, ?, ?)",
                (delivery.execution, delivery.url, delivery.body, delivery.tries, delivery.due),
            )
        self._add(delivery)

    def resume(self) -> int:
        """Go on with what was not delivered before a restart. How many those are."""
        if self._database is None:
            return 0
        found = self._database.read("SELECT execution, url, body, tries, due FROM webhooks ORDER BY due", ())
        for execution, url, body, tries, due in found:
            delivery = Delivery(str(execution), str(url), bytes(body), int(tries), float(due))
            pause_s = self._pauses_s[min(delivery.tries, len(self._pauses_s)) - 1] if delivery.tries else 0.0
            self._later(delivery, min(pause_s, max(0.0, delivery.due - self._now())))  # the clock may have been set
        return len(found)

    @property
    def pending(self) -> int:
        """Deliveries that wait or are under way."""
        return len(self._waiting) + len(self._tasks) + len(self._timers)

    async def close(self, limit_s: float = 2.0) -> None:
        """Let what is under way finish for at most `limit_s`. With a database the rest goes on after a restart."""
        self._closing = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._waiting.clear()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=limit_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _add(self, delivery: Delivery) -> None:
        if len(self._waiting) >= MAX_PENDING:
            oldest = self._waiting.popleft()
            log.warning("webhook_dropped", extra={"execution": oldest.execution, "reason": "too many wait"})
            self._forget(oldest)
        self._waiting.append(delivery)
        self._pump()

    def _pump(self) -> None:
        while self._waiting and len(self._tasks) < MAX_AT_ONCE and not self._closing:
            task = asyncio.get_running_loop().create_task(self._deliver(self._waiting.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._delivered)

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("webhook_failed", exc_info=task.exception())
        self._pump()

    async def _deliver(self, delivery: Delivery) -> None:
        delivery.tries += 1
        wrong = await self._post(delivery)
        if wrong is None:
            log.info("webhook_delivered", extra={"execution": delivery.execution, "tries": delivery.tries})
            self._forget(delivery)
            return
        if delivery.tries > len(self._pauses_s):
            fields = {"execution": delivery.execution, "tries": delivery.tries, "reason": wrong}
            log.warning("webhook_given_up", extra=fields)
            self._forget(delivery)
            return
        pause_s = self._pauses_s[delivery.tries - 1]
        delivery.due = self._now() + pause_s
        if self._database is not None:
            self._database.write(
                "UPDATE webhooks SET tries = ?, due = ? WHERE execution = ?",
                (delivery.tries, delivery.due, delivery.execution),
            )
        if not self._closing:
            self._later(delivery, pause_s)

    async def _post(self, delivery: Delivery) -> str | None:
        """One try. None: a 2xx; else why not, in a few words."""
        import httpx  # a third of a second and 12 MB, for those who use webhooks only

        if self._client is None:
            limits = httpx.Limits(max_connections=MAX_AT_ONCE, max_keepalive_connections=4)
            self._client = httpx.AsyncClient(follow_redirects=False, trust_env=False, limits=limits)
        headers = {"content-type": "application/json", "user-agent": "flashmesh", "x-execution-id": delivery.execution}
        try:
            async with (
                asyncio.timeout(self._time_limit_s),
                self._client.stream("POST", delivery.url, content=delivery.body, headers=headers) as response,
            ):
                return None if response.is_success else f"status {response.status_code}"
        except TimeoutError:
            return "no answer in time"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            return type(error).__name__

    def _later(self, delivery: Delivery, seconds: float) -> None:
        def due() -> None:
            self._timers.pop(delivery, None)
            self._add(delivery)

        self._timers[delivery] = asyncio.get_running_loop().call_later(seconds, due)

    def _forget(self, delivery: Delivery) -> None:
        if self._database is not None:
            self._database.write("DELETE FROM webhooks WHERE execution = ?", (delivery.execution,))
