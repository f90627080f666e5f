"""The other server: uvicorn's connections, for everything that is not hot, under the same limits."""

import asyncio
import contextlib
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from flashmesh.gateway.front.limits import FrontLimits, Refusal, answer_to, too_many_connections
from flashmesh.gateway.http import Answer
from flashmesh.worker.lb.connection import LimitedConnection

if TYPE_CHECKING:
    from flashmesh.gateway.lb.heads import Destination
    from flashmesh.gateway.lb.passages import Passages


class _Elsewhere(Exception):
    """The request is not the application's. Nobody sees this: it ends the parsing."""


class AppState(ServerState):
    """What all of uvicorn's connections share, besides its own."""

    def __init__(
        self,
        limits: FrontLimits,
        dismiss: Callable[[asyncio.Transport, Answer], None],
        passages: "Passages | None" = None,
    ) -> None:
        super().__init__()
        self.limits = limits
        self.dismiss = dismiss
        self.passages = passages
        self.refused = 0

    def refresh(self) -> None:
        """Renew the date header; once a second."""
        self.default_headers = [(b"date", formatdate(usegmt=True).encode())]


class AppConnection(LimitedConnection):
    """A connection of the control plane's application."""

    server_state: AppState

    def __init__(self, config: Config, state: AppState, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(config, state, loop, state.limits)
        self._raw = b""
        """The head that is arriving, as it came; empty where that cannot be told, behind another request's bytes."""
        self._begun = 0
        self._elsewhere: Destination | None = None
        """Where its request goes, when that is not the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limits = self.server_state.limits
        if len(self.connections) > limits.max_connections:
            self.give_up(too_many_connections(limits))

    def data_received(self, data: bytes) -> None:
        if self._part is None:
            self._raw, self._begun = data, 0
        elif self._part == "head" and self._raw:
            self._raw += data
        else:
            self._raw = b""
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun += 1
        if self._begun > 1:
            self._raw = b""

    def begin_request(self) -> None:
        passages, cycle = self.server_state.passages, cast("RequestResponseCycle | None", self.cycle)
        alone = cycle is None or cycle.response_complete
        if passages is not None and alone and self._raw:
            self._elsewhere = passages.claims(self._raw)
            if self._elsewhere is not None:
                raise _Elsewhere
        super().begin_request()

    def _leave(self, where: "Destination") -> None:
        passages = self.server_state.passages
        assert passages is not None
        self.connection_lost(ConnectionAbortedError("the request goes elsewhere"))  # for uvicorn it ends here
        passages.adopt(self.transport, self._raw, where)

    def turn_away(self, refusal: Refusal) -> None:
        self.server_state.dismiss(self.transport, answer_to(refusal))
        self.connection_lost(ConnectionAbortedError("the request was refused"))  # for uvicorn it ends here

    def send_400_response(self, msg: str) -> None:
        if self._elsewhere is not None:
            self._leave(self._elsewhere)
            return
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
        passages: "Passages | None" = None,
    ) -> None:
        """`dismiss` sends a last answer and ends the connection; `passages` take requests for endpoints."""
        self.state = AppState(limits, dismiss, passages)
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
        if data:
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
