"""The gate before an ASGI application: requests, streams and websockets alike."""

from collections.abc import Awaitable, Callable
from typing import Any

from flashmesh.gateway.access import pages
from flashmesh.gateway.access.gate import AccessGate, Entered, answer
from flashmesh.gateway.access.lasting import LastingAnswers
from flashmesh.gateway.http import Answer

Scope = Any
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

PRINCIPAL = "flash.principal"
"""Scope key of the caller's name; empty: the loopback without a token."""
_POLICY_VIOLATION = 1008


def guard(application: Application, gate: AccessGate) -> Application:
    """`application` behind `gate`. It finds the caller's name in `scope[PRINCIPAL]`.

    An answer that lasts ends when the token that was shown for it counts no longer.
    """
    lasting = LastingAnswers()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await application(scope, receive, send)
            return
        headers = pages.joined(scope["headers"])
        method = scope.get("method", "GET")
        origin = None
        principal = gate.quick(method, scope["path"], scope["query_string"], headers) if kind == "http" else None
        if principal is None:
            decision = gate.decide(
                method=method,
                path=scope["path"],
                query=scope["query_string"].decode("latin-1"),
                headers=headers,
                websocket=kind == "websocket",
            )
            if not isinstance(decision, Entered):
                if kind == "websocket":
                    await receive()
                    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
                else:
                    await _send(answer(decision, headers, secure=scope.get("scheme") == "https"), send)
                return
            principal, origin = decision.principal, decision.origin
        if origin is not None and kind == "http":
            send = pages.with_headers(send, pages.cors_headers(origin))
        if not principal or kind != "http":
            await application({**scope, PRINCIPAL: principal}, receive, send)
            return

        def still() -> bool:
            query = scope["query_string"].decode("latin-1")
            return isinstance(gate.decide(method=method, path=scope["path"], query=query, headers=headers), Entered)

        answering = lasting.answer(send, still)
        try:
            await application({**scope, PRINCIPAL: principal}, receive, answering)
        finally:
            answering.close()

    return guarded


async def _send(found: Answer, send: Send) -> None:
    headers = [*found.headers, (b"content-length", b"%d" % len(found.body))]
    await send({"type": "http.response.start", "status": found.status, "headers": headers})
    await send({"type": "http.response.body", "body": found.body})
