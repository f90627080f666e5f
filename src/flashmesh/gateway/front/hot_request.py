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

from flashmesh.gateway.front.answers import CLOSE, WITHOUT_LENGTH, BadAnswer, encode_head
from flashmesh.gateway.front.heads import Heads, KnownHead
from flashmesh.gateway.front.limits import BROKEN
from flashmesh.gateway.front.parser import END, is_elsewhere
from flashmesh.gateway.http import Answer, Handler, Header, Headers, Request

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Any]]

_LARGE_BODY: Final = 64 * 1024
"""Bytes that are not worth a copy."""
UNTOLD: Final = -1
"""Length of a body that comes in chunks."""


class Port(Protocol):
    """What hot requests use of the HTTP port."""

    heads: Heads
    requests: int
    refused: int

    @property
    def find(self) -> Callable[[bytes, bytes], Handler | None]:
        """See HotRoutes."""

    @property
    def check(self) -> Callable[[bytes, bytes, bytes, Mapping[bytes, bytes]], Answer | str]:
        """See Gate."""


class HotRequest:
    """One of them. `cycle` is uvicorn's, set before its task begins."""

    __slots__ = ("_gone", "_handler", "_head", "_port", "_send", "_told", "cycle")

    cycle: RequestResponseCycle

    def __init__(
        self, port: Port, head: KnownHead, handler: Handler, send: Callable[[RequestResponseCycle, Answer], None]
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


def find_hot(
    port: Port, raw: bytes, method: bytes, url: bytes, fields: list[Header], *, old: bool
) -> tuple[KnownHead, Handler] | None:
    """What the head of a hot request says, and its handler; None: it is not hot.

    Args:
        raw: what has arrived of the request, or empty.
        fields: its headers, with lower-case names.
        old: not HTTP/1.1.
    """
    end = raw.find(END) + len(END)
    known = port.heads.get(raw[:end])
    head = known or _head_of(method, url, fields)
    handler = None if head is None else port.find(head.method, head.path)
    if head is None or handler is None:
        return None
    if known is None and raw.startswith(method) and len(head.headers) == len(fields) and not old:
        port.heads.remember(raw[:end], head)
    return head, handler


def _head_of(method: bytes, url: bytes, fields: list[Header]) -> KnownHead | None:
    headers = Headers()
    for name, value in fields:
        headers[name] = headers[name] + b", " + value if name in headers else value
    if is_elsewhere(headers):
        return None
    path, _, query = url.partition(b"?")
    length = UNTOLD if b"transfer-encoding" in headers else int(headers.get(b"content-length", 0))
    return KnownHead(method, path, query, headers, length)


def send_whole(cycle: RequestResponseCycle, answer: Answer, date: bytes) -> None:
    """As `cycle.send` with both messages of an answer, but in one write and as the lean server encodes it.

    The request is complete and its client there; `date` is a whole header line.
    """
    transport, line = cycle.transport, b"" if cycle.keep_alive else CLOSE
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    try:
        head = encode_head(answer, date, line)
    except BadAnswer:
        log.exception("an answer was not sent")
        answer = BROKEN
        head = encode_head(answer, date, line)
    body = b"" if cycle.scope["method"] == "HEAD" or answer.status in WITHOUT_LENGTH else answer.body
    if len(body) < _LARGE_BODY:
        transport.write(head + body)
    else:
        transport.writelines((head, body))
    cycle.message_event.set()
    if not cycle.keep_alive:
        transport.close()
    cycle.on_response()


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
