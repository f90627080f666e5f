"""The other server: uvicorn's connections, for everything that is not hot, under the same limits."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from flashmesh.gateway.front.answers import date_line
from flashmesh.gateway.front.hot_request import HotRequest, Port, find_hot, send_whole
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
        passages: "Passages | None",
        port: Port,
    ) -> None:
        super().__init__()
        self.limits = limits
        self.dismiss = dismiss
        self.passages = passages
        self.port = port
        self.refused = 0
        self.date = b""
        """The date header as a whole line."""

    def refresh(self) -> None:
        """Renew the date header; once a second."""
        now = time.time()
        self.date = date_line(now)
        self.default_headers = [(b"date", formatdate(now, usegmt=True).encode())]


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
        self._hot: deque[HotRequest] = deque()
        """Those that wait for their answers, in the order they came."""

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
        hot = None if self.parser.should_upgrade() else self._hot_request()
        if hot is None:
            self._leave_if_claimed()
            super().begin_request()
            return
        self.app = hot
        super().begin_request()
        self.app = self.config.loaded_app
        hot.cycle = self.cycle
        self._hot.append(hot)

    def _hot_request(self) -> HotRequest | None:
        port, parser = self.server_state.port, self.parser
        if self._limits.is_upload(self.url):
            return None  # too large to be held, even by a handler that refuses it
        old = parser.get_http_version() != "1.1"
        found = find_hot(port, self._raw, parser.get_method(), self.url, self.headers, old=old)
        return None if found is None else HotRequest(port, *found, self._send_whole)

    def _leave_if_claimed(self) -> None:
        passages, cycle = self.server_state.passages, cast("RequestResponseCycle | None", self.cycle)
        alone = cycle is None or cycle.response_complete
        if passages is not None and alone and self._raw:
            self._elsewhere = passages.claims(self._raw)
            if self._elsewhere is not None:
                raise _Elsewhere

    def _send_whole(self, cycle: RequestResponseCycle, answer: Answer) -> None:
        if self.transport.is_closing():
            return
        if cycle.more_body:
            self._end_with(answer)
            return
        self._hot.popleft()
        send_whole(cycle, answer, self.server_state.date)

    def on_response_complete(self) -> None:
        """As uvicorn's without its timer: the sweep closes what is idle."""
        state = self.server_state
        state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._part is None:
            self._since = self.loop.time()

    def _is_unwatched(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is None or cycle.response_complete

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for request in self._hot:
            request.abandon()

    def _leave(self, where: "Destination") -> None:
        passages = self.server_state.passages
        assert passages is not None
        self.connection_lost(ConnectionAbortedError("the request goes elsewhere"))  # for uvicorn it ends here
        passages.adopt(self.transport, self._raw, where)

    def turn_away(self, refusal: Refusal) -> None:
        self._end_with(answer_to(refusal))

    def _end_with(self, answer: Answer) -> None:
        """The rest of the request is not waited for."""
        self.server_state.dismiss(self.transport, answer)
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
        passages: "Passages | None",
        port: Port,
    ) -> None:
        """`dismiss` sends a last answer and ends the connection; `passages` take requests for endpoints, and `port`
        knows the hot routes."""
        self.state = AppState(limits, dismiss, passages, port)
        self.state.refresh()
        self._loop = loop
        self._config = Config(
            application,
            http=AppConnection,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
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
