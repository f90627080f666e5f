"""The other server: uvicorn's connections, for everything that is not hot, under the same limits."""

import asyncio
import contextlib
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from flashmesh.gateway.front.limits import FrontLimits, Refusal, answer_to, too_many_connections
from flashmesh.gateway.http import Answer
from flashmesh.worker.lb.connection import LimitedConnection


class AppState(ServerState):
    """What all of uvicorn's connections share, besides its own."""

    def __init__(self, limits: FrontLimits, dismiss: Callable[[asyncio.Transport, Answer], None]) -> None:
        super().__init__()
        self.limits = limits
        self.dismiss = dismiss
        self.refused = 0

    def refresh(self) -> None:
        """Renew the date header; once a second."""
        self.default_headers = [(b"date", formatdate(usegmt=True).encode())]


class AppConnection(LimitedConnection):
    """A connection of the control plane's application."""

    server_state: AppState

    def __init__(self, config: Config, state: AppState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, state, loop, state.limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self.server_state.limits
        if len(self.connections) > limits.max_connections:
            self.give_up(too_many_connections(limits))

    def turn_away(self, refusal: Refusal) -> None:
        self.server_state.dismiss(self.transport, answer_to(refusal))
        self.connection_lost(ConnectionAbortedError("the request was refused"))  # for uvicorn it ends here

    def send_400_response(self, msg: str) -> None:
        self.server_state.refused += 1
        super().send_400_response(msg)


class AppServer:
    """Makes uvicorn's connections and ends them."""

    def __init__(
        self,
        application: Any,
        limits: FrontLimits,
        loop: asyncio.AbstractEventLoop,
        dismiss: Callable[[asyncio.Transport, Answer], None],
    ) -> None:
        """`dismiss` sends a last answer and ends the connection."""
        self.state = AppState(limits, dismiss)
        self.state.refresh()
        self._loop = loop
        self._config = Config(
            application,
            http=AppConnection,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=int(limits.idle_s) or 1,
        )
        self._config.load()

    def connection(self) -> AppConnection:
        return AppConnection(self._config, self.state, self._loop)

    def adopt(self, transport: asyncio.Transport, data: bytes) -> None:
        """Take over a connection whose next request begins with `data`."""
        connection = self.connection()
        transport.set_protocol(connection)
        connection.connection_made(transport)
        connection.data_received(data)

    @property
    def connections(self) -> int:
        return len(self.state.connections)

    @property
    def is_quiet(self) -> bool:
        return not self.state.connections and not self.state.tasks

    def sweep(self, now: float) -> None:
        self.state.refresh()
        for connection in list(self.state.connections):
            if type(connection) is AppConnection:  # not a websocket's
                connection.sweep(now)

    def wind_down(self) -> None:
        """Close what is idle; the rest closes after its answer, websockets with `going away`."""
        for connection in list(self.state.connections):
            connection.shutdown()

    def close(self) -> None:
        for connection in list(self.state.connections):
            with contextlib.suppress(AttributeError):
                connection.transport.abort()
        for task in list(self.state.tasks):
            task.cancel()
