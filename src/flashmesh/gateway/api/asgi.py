"""Between ASGI and the handlers that answer by callback."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Final

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge
from flashmesh.gateway.http import Answer, Handler, Request

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

PRINCIPAL: Final = "flash.principal"
"""Scope key under which the access guard leaves the token's name."""
NO_BODY: Final = frozenset({204, 304})


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


class BodyTooSlow(FlashmeshError):
    """The request's body did not arrive in time."""

    code = "BODY_TOO_SLOW"
    status = 408


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
    """The whole request. Raises PayloadTooLarge, BodyTooSlow, ClientGone."""
    headers = headers_of(scope)
    body = await read_body(headers, receive, limit_bytes=limit_bytes, limit_s=limit_s)
    return Request(
        scope["method"].encode("latin-1"),
        path_of(scope),
        scope["query_string"],
        headers,
        body,
        str(scope.get(PRINCIPAL, "")),
    )


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, *, limit_bytes: int, limit_s: float) -> bytes:
    """Raises PayloadTooLarge (by its announced length before any is read), BodyTooSlow, ClientGone."""
    announced = headers.get(b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > limit_bytes:
        raise too_large(limit_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(limit_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > limit_bytes:
                    raise too_large(limit_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return part if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise BodyTooSlow(f"The body did not arrive within {limit_s:g} s.") from None


def too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The body is larger than {limit_bytes} bytes. Send less, or raise the limit with FLASH_MAX_BODY_BYTES."
    )


async def send_answer(answer: Answer, send: Send, *, head_only: bool = False) -> None:
    """Headers with their length, and the body."""
    headers = list(answer.headers)
    if answer.status not in NO_BODY:
        headers.append((b"content-length", b"%d" % len(answer.body)))
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


def asgi_of(handler: Handler, *, limit_bytes: int, limit_s: float) -> ASGIApp:
    """A handler as an ASGI application of its own. A client that goes away does not end what it asked for."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            request = await request_of(scope, receive, limit_bytes=limit_bytes, limit_s=limit_s)
        except ClientGone:
            return
        await send_answer(await answer_of(handler, request), send, head_only=request.method == b"HEAD")

    return application
