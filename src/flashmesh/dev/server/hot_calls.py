"""Calls that need no thought, which most are: answered without the application, as the control plane's hot requests.

Such a request came whole, is addressed to a callable of its own and to a name that was found good before, comes from no
browser page and wants no events; the session is connected. Everything else is the application's.
"""

from collections.abc import Callable, Mapping

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from flashmesh.dev.server.access import Guard, Header
from flashmesh.dev.server.calls import CallHandler
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.options import DevOptions
from flashmesh.dev.server.route_book import RouteBook
from flashmesh.gateway.front.heads import Heads
from flashmesh.gateway.front.hot_request import HotRequest, find_hot
from flashmesh.gateway.front.parser import END
from flashmesh.gateway.http import Answer, Handler


class HotCalls:
    """Of one dev server. Implements Port of gateway.front.hot_request."""

    def __init__(self, *, book: RouteBook, guard: Guard, door: SessionDoor, options: DevOptions) -> None:
        self.heads = Heads()
        self.requests = self.refused = 0
        self._book = book
        self._guard = guard
        self._door = door
        self._options = options
        self._handlers: dict[bytes, CallHandler] = {}

    def take(
        self,
        raw: bytes,
        method: bytes,
        url: bytes,
        fields: list[Header],
        *,
        old: bool,
        send: Callable[[RequestResponseCycle, Answer], None],
    ) -> HotRequest | None:
        """The request, if it is such a call. Arguments as of `find_hot` and HotRequest; `raw` ends with what came."""
        found = find_hot(self, raw, method, url, fields, old=old)
        if found is None:
            return None
        head, _ = found
        is_whole = len(raw) == raw.find(END) + len(END) + head.length
        if not is_whole or head.length > self._options.max_body_bytes or not self._guard.is_plain(head.headers):
            return None
        return HotRequest(self, *found, send)

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """The handler of a call's own address, while the session is there."""
        if method != b"POST" or self._door.client is None:
            return None
        return self._handlers.get(path) or self._look_up(path)

    def _look_up(self, path: bytes) -> Handler | None:
        match = self._book.match_call(path.decode("latin-1"))
        if match is None:
            return None
        handler = self._handlers[path] = CallHandler(self._door, self._options, match)
        return handler

    def check(self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes]) -> Answer | str:
        """Only requests that are let in are taken."""
        return ""
