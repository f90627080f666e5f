"""Between ASGI and the handlers that answer by callback."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from flashmesh.gateway.http import Answer, Handler, Request
from flashmesh.worker.lb.reading import read_whole, too_large

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PRINCIPAL: Final = "flash.principal"
"""Scope key under which the access guard leaves the token's name."""
NO_BODY: Final = frozenset({204, 304})


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Names are lower-case already; values of a name that came twice are joined by `, `."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def path_of(scope: Scope) -> bytes:
    """The path as it came."""
    raw = scope.get("raw_path")
    if raw:
        return bytes(raw).partition(b"?")[0]
    from urllib.parse import quote  # servers that keep no raw path

    return quote(scope["path"], safe="/:@!$&'()*+,;=~-._").encode()


async def request_of(scope: Scope, receive: Receive, *, limit_bytes: int, limit_s: float) -> Request:
    """The whole request. Raises PayloadTooLarge (as early as its announced length says so), BodyTooSlow, ClientGone."""
    headers = headers_of(scope)
    announced = headers.get(b"content-length")
    if announced is None and b"transfer-encoding" not in headers:
        body = b""
    else:
        if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
            raise too_large(limit_bytes)
        body = await read_whole(receive, limit_bytes=limit_bytes, limit_s=limit_s)
    return head_of(scope, headers, body)


def head_of(scope: Scope, headers: Mapping[bytes, bytes], body: bytes = b"") -> Request:
    """The request without its body, which is still to be read."""
    return Request(
        scope["method"].encode("latin-1"),
        path_of(scope),
        scope["query_string"],
        headers,
        body,
        str(scope.get(PRINCIPAL, "")),
    )


async def send_answer(answer: Answer, send: Send, *, head_only: bool = False) -> None:
    """Headers with their length, and the body."""
    headers = answer.all_headers()
    if answer.status not in NO_BODY:
        headers = [*headers, (b"content-length", b"%d" % len(answer.body))]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head_only else answer.body})


async def answer_of(handler: Handler, request: Request) -> Answer:
    """Call a handler and wait for its answer."""
    told: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def respond(answer: Answer) -> None:
        if not told.done():
            told.set_result(answer)

    gone = handler(request, respond)
    try:
        return await told
    finally:
        if gone is not None and not told.done():
            gone()
