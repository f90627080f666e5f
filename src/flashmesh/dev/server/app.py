"""The dev server: what `.flash/server.py` declares its routes on, and the ASGI application that answers them.

Queue routes are answered by code of ours straight on ASGI; FastAPI is imported only when the project has HTTP routes,
in a thread, and only those routes wait for it.
"""

import logging
import os
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmesh.dev.server import answers, options
from flashmesh.dev.server.access import AccessRules, Guard, Receive, Scope, Send
from flashmesh.dev.server.door import SessionDoor, link_from
from flashmesh.dev.server.hot_calls import HotCalls
from flashmesh.dev.server.pages import Pages
from flashmesh.dev.server.queue_api import QueueApi
from flashmesh.dev.server.requests import ClientGone
from flashmesh.dev.server.route_book import (
    CallMatch,
    ChoiceMatch,
    HttpMatch,
    LookMatch,
    Match,
    QueueRoute,
    RouteBook,
    Unavailable,
    WrongMethod,
)
from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire import failures
from flashmesh.worker.lb.route import HttpRoute

if TYPE_CHECKING:
    from flashmesh.dev.server.caller import DevCaller
    from flashmesh.dev.server.lb import HttpRoutes
    from flashmesh.dev.server.user_code import UserCode

log = logging.getLogger("flashmesh.dev")
_SETTLED_METHODS = ("POST", "GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS")


class DevServer:
    """Declares routes with `queue`, `route` and `unavailable`; `app` is the ASGI application."""

    def __init__(self, root: Path, environment: Mapping[str, str] | None = None) -> None:
        """Args:
        root: the project's directory.
        environment: where options and the session's link are read from; default: the process's.
        """
        environment = os.environ if environment is None else environment
        self.root = root
        self.options = options.load(environment)
        self.book = RouteBook()
        self.app = Application(self, link_from(environment))

    def queue(
        self,
        prefix: str,
        function: str,
        *,
        resource: str,
        file: str,
        line: int | None = None,
        is_generator: bool = False,
        doc: str | None = None,
        parameters: Sequence[Mapping[str, Any]] = (),
        **_newer: Any,
    ) -> None:
        """A callable that workers run: `{prefix}/run`, `/run_sync`, `/runsync`, `/status/{id}` and so on."""
        self.book.add_queue(
            QueueRoute(
                prefix=prefix,
                function=function,
                resource=resource,
                file=file,
                line=line,
                is_generator=is_generator,
                doc=doc,
                parameters=tuple(parameters),
            )
        )

    def route(
        self,
        method: str,
        path: str,
        function: str,
        *,
        resource: str,
        file: str,
        line: int | None = None,
        dependencies: Sequence[str] = (),
        doc: str | None = None,
        parameters: Sequence[Mapping[str, Any]] = (),
        **_newer: Any,
    ) -> None:
        """A declared HTTP route, whose body runs in this process."""
        self.book.add_http(
            HttpRoute(
                method=method.upper(),
                path=path,
                function=function,
                resource=resource,
                file=file,
                line=line,
                dependencies=tuple(dependencies),
                doc=doc,
                parameters=tuple(parameters),
            )
        )

    def unavailable(self, prefix: str, *, file: str, line: int | None = None, reason: str, **_newer: Any) -> None:
        """A file with a fault: everything below `prefix` answers 503 with the reason."""
        self.book.add_unavailable(Unavailable(prefix=prefix, file=file, line=line, reason=reason))


class Application:
    """The ASGI application of one DevServer."""

    def __init__(self, server: DevServer, link: str | None) -> None:
        self._server = server
        given = server.options
        self._door = _door(server.root, link, inline=given.inline)
        self._caller: DevCaller | None = None
        self._queue = QueueApi(self._door, given)
        self._pages = Pages(server.book, self._door, self._http_routes_if_loaded)
        self._http: HttpRoutes | None = None
        self._user_code: UserCode | None = None
        rules = AccessRules.make(
            host=given.host, token=given.token, allow_host=given.allow_host, allow_origin=given.allow_origin
        )
        self._guarded = Guard(self._route, rules)
        self.hot = HotCalls(book=server.book, guard=self._guarded, door=self._door, options=given)
        """Calls that a connection need not ask this application for."""

    @property
    def has_routes(self) -> bool:
        """Whether HTTP routes are declared, so that FastAPI is needed."""
        return bool(self._server.book.http)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start and stop with the server. Nothing here waits for the session or for an import."""
        await receive()
        self._door.open()
        if self._server.options.inline:
            self._run_inline()
        if self.has_routes:
            self._routes_of_http().start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._http is not None:
            self._http.close()
        if self._caller is not None:
            self._caller.close()
        await self._door.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. The boundary: whatever goes wrong below becomes an answer here."""
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
            return
        told = _Told(send)
        try:
            match = self._server.book.match_call(scope["path"]) if scope["method"] == "POST" else None
            if match is not None:
                await self._queue.call(match, scope, receive, told)
            else:
                await self._settle(scope, receive, told)
        except ClientGone:
            return
        except FlashmeshError as error:
            await self._fail(failures.of_ours(error), told)
        except Exception as error:
            log.error("%s %s failed\n%s", scope["method"], scope["path"], traceback.format_exc())
            await self._fail(failures.describe(error), told)

    async def _fail(self, info: failures.ErrorInfo, told: "_Told") -> None:
        if told.begun:
            return  # half an answer is out already; the server ends the connection
        status, headers, body = answers.failed(None, info)
        await answers.send_json(told, status, body, headers)

    async def _settle(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = self._pages.find(scope["path"])
        if page is not None:
            await _answer_page(page, scope, send)
            return
        match = self._server.book.match(scope["method"], scope["path"])
        if isinstance(match, CallMatch):
            await self._queue.call(match, scope, receive, send)
        elif isinstance(match, ChoiceMatch):
            await self._queue.choose(match, scope, receive, send)
        elif isinstance(match, LookMatch):
            await self._queue.look(match, scope, receive, send)
        elif isinstance(match, HttpMatch):
            await self._routes_of_http().answer(match.route, scope, receive, send)
        else:
            await _refuse(match, scope, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = self._server.book.match("GET", scope["path"])
        if isinstance(match, HttpMatch):
            await self._routes_of_http().answer(match.route, scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1000})

    def _routes_of_http(self) -> "HttpRoutes":
        if self._http is None:
            from flashmesh.dev.server.lb import HttpRoutes  # only for projects with HTTP routes

            self._http = HttpRoutes(
                self._server.root,
                self._server.book.http,
                options=self._server.options,
                door=self._door,
                dev_caller=self._calls(),
                code=self._code(),
            )
        return self._http

    def _run_inline(self) -> None:
        from flashmesh.dev.server.inline import InlineDoor

        self._calls().begin()
        if isinstance(self._door, InlineDoor):
            self._door.serve(self._server.book.queue, self._code())

    def _calls(self) -> "DevCaller":
        if self._caller is None:
            from flashmesh.dev.server.caller import DevCaller  # only where bodies run

            self._caller = DevCaller(self._door, inline=self._server.options.inline)
        return self._caller

    def _code(self) -> "UserCode":
        if self._user_code is None:
            from flashmesh.dev.server.user_code import UserCode

            book = self._server.book
            files = [route.file for route in book.http]
            if self._server.options.inline:
                files += [route.file for route in book.queue]
            self._user_code = UserCode(self._server.root, files, self._door)
        return self._user_code

    def _http_routes_if_loaded(self) -> "HttpRoutes | None":
        return self._http


def _door(root: Path, link: str | None, *, inline: bool) -> SessionDoor:
    if not inline:
        return SessionDoor(root, link)
    from flashmesh.dev.server.inline import InlineDoor  # brings what a worker is made of

    return InlineDoor(root, link)


class _Told:
    """`send` that remembers whether the answer has begun."""

    __slots__ = ("_send", "begun")

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    def __call__(self, message: Any) -> Awaitable[None]:
        self.begun = True
        return self._send(message)


async def _answer_page(page: Callable[[Scope, Send], Awaitable[None]], scope: Scope, send: Send) -> None:
    method = scope["method"]
    if method in ("GET", "HEAD"):
        await page(scope, send)
    elif method == "OPTIONS":
        await answers.send_bytes(send, 204, [(b"allow", b"GET, HEAD, OPTIONS")], b"")
    else:
        await _refuse(WrongMethod(("GET", "HEAD", "OPTIONS")), scope, send)


async def _refuse(match: Match, scope: Scope, send: Send) -> None:
    """404, 405, 503, or what OPTIONS is answered."""
    method, path = scope["method"], scope["path"]
    if isinstance(match, Unavailable):
        place = match.file if match.line is None else f"{match.file}, line {match.line}"
        body = {
            "status": "FAILED",
            "error": f"{place}: {match.reason}. Repair the file and save it.",
            "error_type": "ImportFailed",
            "code": "IMPORT_FAILED",
            "file": match.file,
            "line": match.line,
            "reason": match.reason,
        }
        await answers.send_json(send, 503, body)
    elif isinstance(match, WrongMethod):
        allow = [(b"allow", ", ".join(match.allowed).encode())]
        if method == "OPTIONS":
            await answers.send_bytes(send, 204, allow, b"")
            return
        text = f"{path} does not answer {method}, but {', '.join(match.allowed)}."
        await answers.send_json(send, 405, {"error": text, "code": "METHOD_NOT_ALLOWED"}, allow)
    else:
        nearest = getattr(match, "nearest", None)
        advice = f"Did you mean {nearest}?" if nearest else "/docs lists what there is."
        body = {"error": f"There is nothing at {method} {path}. {advice}", "code": "ROUTE_NOT_FOUND"}
        await answers.send_json(send, 404, {**body, "nearest": nearest} if nearest else body)
