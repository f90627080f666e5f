"""The server of a session, kept up: starts the dev template again when it dies, and hears what it says."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Protocol

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.session.server_process import Event, ServerProcess

_QUICK_S = 2.0
_MOST_QUICK_DEATHS = 3


class Server(Protocol):
    """What serves `.flash/server.py` on the session's port."""

    def serve(self) -> None:
        """Serve the file as it is now; the newest request wins."""
        ...

    async def close(self, drain_s: float) -> None:
        """Finish running requests, at most `drain_s`, and end."""
        ...

    def kill(self) -> None:
        """End now. Idempotent, and harmless when it has ended by itself."""
        ...


class ForkingServer:
    """The usual Server: a dev template that forks a child per change.

    Args:
        process: started already, for the sake of start-up time.
        restart: makes another one, after a death.
        on_ready: called with each generation that has begun to serve.
        on_failure: called once when the template cannot be kept alive.
    """

    def __init__(
        self,
        process: ServerProcess,
        *,
        restart: Callable[[], ServerProcess],
        printer: LogPrinter,
        on_ready: Callable[[int], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._process = process
        self._restart = restart
        self._printer = printer
        self._on_ready = on_ready
        self._on_failure = on_failure
        self._deaths: list[float] = []
        self._closing = False
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(process.fileno(), self._hear)

    @property
    def pid(self) -> int:
        return self._process.process.pid

    def serve(self) -> None:
        self._process.serve()

    async def close(self, drain_s: float) -> None:
        self._closing = True
        self._process.close(drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s + 2):
                await self._ended.wait()
        self.kill()

    def kill(self) -> None:
        self._closing = True
        if self._process.fileno() >= 0:
            self._loop.remove_reader(self._process.fileno())
        self._process.kill()

    def _hear(self) -> None:
        if self._process.read(self._on_event):
            return
        self._loop.remove_reader(self._process.fileno())
        self._ended.set()
        if not self._closing:
            self._replace()

    def _on_event(self, event: Event) -> None:
        match event["event"]:
            case "ready":
                self._on_ready(int(event["generation"]))
            case "failed" | "problem" as kind:
                self._printer.notice(_describe(event), level="error" if kind == "failed" else "warning")

    def _replace(self) -> None:
        generation = self._process.generation
        self._process.kill()
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < _QUICK_S] + [now]
        if len(self._deaths) >= _MOST_QUICK_DEATHS:
            self._on_failure("The server process ends as soon as it is started; see the lines above.")
            return
        self._printer.notice("The server process ended; starting it again.", level="warning")
        self._ended.clear()
        self._process = self._restart()
        self._loop.add_reader(self._process.fileno(), self._hear)
        if generation:
            self._process.generation = generation - 1
            self._process.serve()


def _describe(event: dict[str, Any]) -> str:
    reason = str(event.get("reason", "the server failed"))
    file, line = event.get("file"), event.get("line")
    if not file:
        return reason
    return f"{file}:{line}: {reason}" if line else f"{file}: {reason}"
