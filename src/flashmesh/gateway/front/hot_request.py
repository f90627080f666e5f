"""Hot requests on uvicorn's connections: the same handlers behind the same gate as on the lean server's own.

A connection asks for each of its requests whether it is hot, before the application is asked. A hot one is an ASGI
application by itself, in the task that uvicorn makes for it, and nothing more: no router, no middleware, and its answer
leaves in one piece, encoded as the lean server encodes it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from flashmesh.gateway.front.heads import Heads, KnownHead
from flashmesh.gateway.front.limits import BROKEN
from flashmesh.gateway.front.parser import END, is_elsewhere
from flashmesh.gateway.http import Answer, Handler, Header, Headers, Request

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Any]]

_UNTOLD: Final = -1
"""Length of a body that comes in chunks."""


class Port(Protocol):
    """What hot requests use of the HTTP port."""

    heads: Heads
    find: Callable[[bytes, bytes], Handler | None]
    check: Callable[[bytes, bytes, bytes, Mapping[bytes, bytes]], Answer | str]
    requests: int
    refused: int


class HotRequest:
    """One of them. `cycle` is uvicorn's, set before its task begins."""

    __slots__ = ("_gone", "_handler", "_head", "_port", "_send", "_told", "cycle")

    cycle: RequestResponseCycle

    def __init__(
        self, port: Port, handler: Handler, head: KnownHead, send: Callable[[RequestResponseCycle, Answer], None]
    ) -> None:
        """`send` sends the whole answer of a cycle, and does nothing when its client is gone."""
        self._port = port
        self._handler = handler
        self._head = head
        self._send = send
        self._told: asyncio.Future[Answer | None] | None = None
        self._gone: Callable[[], None] | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        port, cycle = self._port, self.cycle
        method, path, query, headers, length = self._head
        verdict = port.check(method, path, query, headers)
        if isinstance(verdict, str):
            body = await _whole(receive) if length else b""
            if body is None:
                return
            port.requests += 1
            answer = await self._answer(Request(method, path, query, headers, body, verdict))
        else:
            port.refused += 1
            answer = verdict
        if answer is not None:
            if cycle.flow.write_paused:
                await cycle.flow.drain()
            self._send(cycle, answer)

    async def _answer(self, request: Request) -> Answer | None:
        """Call the handler and wait for its answer; None: its client is gone."""
        told: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
        self._told = told
        try:
            self._gone = self._handler(request, self._respond)
        except Exception:
            log.exception("a handler failed")
            return BROKEN
        return await told

    def _respond(self, answer: Answer) -> None:
        told = self._told
        if told is not None and not told.done():
            told.set_result(answer)

    def abandon(self) -> None:
        """The client is gone."""
        told, gone = self._told, self._gone
        if told is None or told.done():
            return
        told.set_result(None)
        if gone is not None:
            try:
                gone()
            except Exception:
                log.exception("giving up a request failed")


def head_of(port: Port, raw: bytes, method: bytes, url: bytes, fields: list[Header], *, old: bool) -> KnownHead | None:
    """What the head of a request says that may be hot; None: it is not, whatever its path.

    Args:
        raw: what has arrived of the request, or empty.
        fields: its headers, with lower-case names.
        old: not HTTP/1.1.
    """
    end = raw.find(END) + len(END)
    known = port.heads.get(raw[:end])
    if known is not None:
        return known
    headers = Headers()
    for name, value in fields:
        headers[name] = headers[name] + b", " + value if name in headers else value
    if is_elsewhere(headers):
        return None
    path, _, query = url.partition(b"?")
    length = _UNTOLD if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
    head = KnownHead(method, path, query, headers, length)
    if raw.startswith(method) and len(headers) == len(fields) and not old:
        port.heads.remember(raw[:end], head)
    return head


async def _whole(receive: Receive) -> bytes | None:
    """The body, whose size and pace the connection watches; None: its client is gone."""
    message = await receive()
    if message["type"] == "http.request" and not message["more_body"]:
        whole: bytes = message["body"]
        return whole
    parts = []
    while message["type"] == "http.request":
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)
        message = await receive()
    return None
