"""The ASGI application: every route of the table in operations.py, behind one way of telling failures.

Calls go through the same handlers as on the short way; what takes longer (streams, changes of functions) is a coroutine
here. Imported when the first request comes that is not hot: starlette is not needed to answer calls.
"""

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from flashmesh.functions.errors import FlashmeshError, FunctionNotFound, ValidationError
from flashmesh.gateway import docs_page
from flashmesh.gateway.api import openapi
from flashmesh.gateway.api.asgi import (
    ASGIApp,
    Receive,
    Scope,
    Send,
    answer_of,
    head_of,
    headers_of,
    request_of,
    send_answer,
)
from flashmesh.gateway.api.bodies import Replicas, read_object
from flashmesh.gateway.api.executions import (
    ExecutionHandlers,
    execution_id,
    query_fields,
    whole_number,
)
from flashmesh.gateway.api.failures import Face, InvalidRequest, failure
from flashmesh.gateway.api.functions import InvokeHandler
from flashmesh.gateway.api.hot import CallRoutes
from flashmesh.gateway.api.operations import METRICS, OPERATIONS, Operation, Vocabulary
from flashmesh.gateway.api.queue import QueueHandlers, RunSyncHandler
from flashmesh.gateway.api.readiness import readiness
from flashmesh.gateway.api.registry_port import Complete, Registry
from flashmesh.gateway.api.streams import follow_execution, follow_logs, stream_call
from flashmesh.gateway.api.words import dump
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.directory import ANYWHERE, Directory, Where
from flashmesh.gateway.http import JSON_TYPE, Answer, Handler, Request
from flashmesh.queueing.logbook import LogBook, LogFilter
from flashmesh.wire.media import EVENT_STREAM, wanted_media
from flashmesh.worker.lb.reading import ClientGone

log = logging.getLogger("flashmesh.server")
TITLE: Final = "flash server"
_LOG_FIELDS: Final = frozenset({"function", "execution", "endpoint", "tail", "follow", "app", "env"})
Reply = Callable[[Request], Awaitable[Answer]]


class NoRoute(FunctionNotFound):
    """There is nothing at this address. /docs lists what is."""

    code = "NOT_FOUND"


class MethodNotAllowed(FlashmeshError):
    """This address does not take that method."""

    code = "METHOD_NOT_ALLOWED"
    status = 405

    def __init__(self, message: str | None = None, *, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.allowed = allowed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ApiLimits:
    """How large and how slow a body may be."""

    max_body_bytes: int = 64 * 1024 * 1024
    body_limit_s: float = 60.0


class Endpoint:
    """One operation as an ASGI application: reads the request, answers failures in its face's words."""

    def __init__(self, serve: "Serve", face: Face, limits: ApiLimits, *, streams_body: bool = False) -> None:
        self._serve = serve
        self._face: Face = face
        self._limits = limits
        self._streams_body = streams_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limits = self._limits
        try:
            if self._streams_body:
                request = head_of(scope, headers_of(scope))
            else:
                request = await request_of(
                    scope, receive, limit_bytes=limits.max_body_bytes, limit_s=limits.body_limit_s
                )
            answer = await self._serve(request, receive, send)
        except ClientGone:
            return
        except FlashmeshError as error:
            answer = failure(error, face=self._face)
        if answer is not None:
            await send_answer(answer, send, head_only=request_is_head(scope))


class ByMethod:
    """One address, as an ASGI application: its routes by method, so that a 405 can name all of them."""

    def __init__(self, endpoints: Mapping[str, Endpoint]) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._endpoints[method](scope, receive, send)


Serve = Callable[[Request, Receive, Send], Awaitable[Answer | None]]
"""Serves one request: the answer, or None when it was sent already."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OtherFace:
    """Operations of another part of the control plane, and what serves each, by its id."""

    operations: tuple[Operation, ...]
    serves: Mapping[str, "Serve"]
    vocabulary: Vocabulary = dataclasses.field(default_factory=Vocabulary)


def request_is_head(scope: Scope) -> bool:
    return bool(scope["method"] == "HEAD")


def of_handler(handler: Handler) -> Serve:
    async def serve(request: Request, receive: Receive, send: Send) -> Answer | None:
        return await answer_of(handler, request)

    return serve


def of_reply(reply: Reply) -> Serve:
    async def serve(request: Request, receive: Receive, send: Send) -> Answer | None:
        try:
            return await reply(request)
        except ValidationError as error:
            raise _as_invalid(error) from error

    return serve


def wants_events(request: Request) -> bool:
    accept = request.headers.get(b"accept")
    return accept is not None and wanted_media(accept.decode("latin-1")) == EVENT_STREAM


class CallApi:
    """Calls, by the same handlers as on the short way, and their streams."""

    def __init__(self, calls: Calls, directory: Directory, routes: CallRoutes, queue: QueueHandlers) -> None:
        self._calls = calls
        self._directory = directory
        self._routes = routes
        self._queue = queue

    async def call(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        """`:invoke`, `:enqueue`, run, runsync."""
        handler = self._routes.resolve(request.path, self._directory.where(request))
        if handler is None:
            raise NoRoute
        if wants_events(request) and isinstance(handler, InvokeHandler | RunSyncHandler):
            frame, echoed = handler.streamed(request)
            await stream_call(self._calls, frame, receive, send, echoed, face=handler.face)
            return None
        return await answer_of(handler, request)

    async def stream(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        """`/v2/…/stream/{id}`."""
        if not wants_events(request):
            return await answer_of(self._queue.stream, request)
        await follow_execution(self._calls, self._queue.job(request)[1], receive, send, face="queue")
        return None


class FunctionsApi:
    """`/v1/functions…` but for calls."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def list(self, request: Request) -> Answer:
        where = self._registry.where(request)
        meant = [one for one in self._registry.functions() if self._registry.within(one.endpoint, where)]
        found = [dict(self._registry.describe(callee)) for callee in meant]
        return _json(200, found)

    async def create(self, request: Request) -> Answer:
        made = dict(await self._registry.create(request.body))
        location = (b"location", b"/v1/functions/" + str(made["name"]).encode())
        return Answer(201, [JSON_TYPE, location], dump(made))

    async def get(self, request: Request) -> Answer:
        callee = self._registry.function(_name(request), self._registry.where(request))
        return _json(200, dict(self._registry.describe(callee)))

    async def patch(self, request: Request) -> Answer:
        where = self._registry.where(request)
        return _json(200, dict(await self._registry.patch(_name(request), request.body, where)))

    async def delete(self, request: Request) -> Answer:
        await self._registry.delete(_name(request))
        return Answer(204, [], b"")

    async def replicas(self, request: Request) -> Answer:
        return _json(
            200, dict(await self._registry.replicas(_name(request, b"/replicas"), self._registry.where(request)))
        )

    async def set_replicas(self, request: Request) -> Answer:
        wanted: Replicas = read_object(request.body, Replicas)
        name, where = _name(request, b"/replicas"), self._registry.where(request)
        return _json(200, dict(await self._registry.set_replicas(name, wanted.replicas, where)))


class OtherPages:
    """Logs, completions, documentation, health."""

    def __init__(self, *, calls: Calls, registry: Registry, logbook: LogBook, complete: Complete) -> None:
        self._calls = calls
        self._registry = registry
        self._logbook = logbook
        self._complete = complete
        self.operations: tuple[Operation, ...] = OPERATIONS
        self.vocabularies: tuple[Vocabulary, ...] = ()

    async def logs(self, request: Request, receive: Receive, send: Send) -> Answer | None:
        wanted = query_fields(request.query, _LOG_FIELDS)
        follow = wanted.get("follow", "0")
        if follow not in ("0", "1"):
            raise InvalidRequest(f"`follow` is 0 or 1, not {follow[:40]!r}.", field="follow")
        tail = whole_number(wanted.get("tail"), range(10_001), "tail", 100)
        filtered = self._lines_wanted(wanted, self._registry.where(request))
        await follow_logs(self._logbook, filtered, receive, send, tail=tail, follow=follow == "1")
        return None

    def _lines_wanted(self, wanted: Mapping[str, str], where: Where) -> LogFilter:
        registry, function, endpoint = self._registry, wanted.get("function", ""), wanted.get("endpoint", "")
        callee = registry.function(function, where) if function else None
        if callee is not None and callee.named:
            endpoint = endpoint or callee.endpoint
        elif endpoint and registry.scoped:
            endpoint = registry.endpoint(endpoint, where)[0].endpoint
        inside = None
        if where != ANYWHERE:
            inside = frozenset(
                str(one.endpoint) for one in registry.functions() if registry.within(one.endpoint, where)
            )
        return LogFilter(
            function="" if callee is None else callee.function,
            execution=wanted.get("execution", ""),
            endpoint=endpoint,
            endpoints=inside,
        )

    async def complete(self, request: Request) -> Answer:
        text = request.headers.get(b"x-dispatch-attempt")
        attempt: int | None = None
        if text is not None:
            if not text.isdigit() or len(text) > 9 or int(text) < 1:
                raise InvalidRequest("`X-Dispatch-Attempt` is a number from 1.", field="X-Dispatch-Attempt")
            attempt = int(text)
        execution = execution_id(request.path, b"/v1/internal/executions/", b":complete")
        self._complete(execution, attempt, request.body)
        return Answer(204, [], b"")

    async def root(self, request: Request) -> Answer:
        return _json(200, {"message": TITLE, "docs": "/docs"})

    async def healthz(self, request: Request) -> Answer:
        return _json(200, {"status": "ok"})

    async def readyz(self, request: Request) -> Answer:
        dispatcher = self._calls.dispatcher
        return readiness(
            dispatcher.status()["endpoints"], store=dispatcher.store.unavailable, told_all=bool(request.principal)
        )

    async def openapi(self, request: Request) -> Answer:
        return Answer(
            200,
            [JSON_TYPE, (b"cache-control", b"no-store")],
            dump(openapi.document(self.operations, self.vocabularies)),
        )

    async def docs(self, request: Request) -> Answer:
        return Answer(200, [(b"content-type", b"text/html; charset=utf-8")], docs_page.docs_page(TITLE))

    async def docs_asset(self, request: Request) -> Answer:
        name = request.path.rpartition(b"/")[2].decode("latin-1")
        if name not in docs_page.KINDS:
            raise NoRoute
        headers = [(b"content-type", docs_page.KINDS[name]), (b"cache-control", b"max-age=86400")]
        return Answer(200, headers, docs_page.asset(name))


def application(
    *,
    calls: Calls,
    registry: Registry,
    logbook: LogBook,
    complete: Complete,
    metrics: Callable[[], bytes] | None = None,
    limits: ApiLimits | None = None,
    more: Iterable[BaseRoute] = (),
    faces: Iterable[OtherFace] = (),
) -> ASGIApp:
    """The application.

    Args:
        complete: takes what `:complete` brings.
        metrics: makes the text of `/metrics`; without it there is no such route.
        more: routes of other faces; they come after these.
        faces: operations of other parts, and what serves them.
    """
    limits = limits or ApiLimits()
    pages = OtherPages(calls=calls, registry=registry, logbook=logbook, complete=complete)
    serves = _serves(calls, registry, pages)
    operations = list(OPERATIONS)
    if metrics is not None:
        operations.append(METRICS)
        serves[METRICS.id] = of_reply(_metrics_page(metrics))
    faces = tuple(faces)
    pages.vocabularies = tuple(face.vocabulary for face in faces)
    for face in faces:
        operations += face.operations
        serves |= face.serves
    pages.operations = tuple(operations)
    paths: dict[str, dict[str, Endpoint]] = {}
    for operation in operations:
        endpoint = Endpoint(serves[operation.id], _face(operation.path), limits, streams_body=operation.streams_body)
        paths.setdefault(operation.path, {})[operation.method] = endpoint
    routes: list[BaseRoute] = [Route(path, ByMethod(methods), methods=list(methods)) for path, methods in paths.items()]
    return Starlette(
        routes=[*routes, *more],
        exception_handlers={HTTPException: _not_served, Exception: _broken},
    )


def _serves(calls: Calls, registry: Registry, pages: OtherPages) -> dict[str, Serve]:
    """What serves each operation, by its id."""
    executions = ExecutionHandlers(calls, registry)
    queue = QueueHandlers(calls, registry)
    call_api = CallApi(calls, registry, CallRoutes(calls, registry), queue)
    functions = FunctionsApi(registry)
    serves: dict[str, Serve] = {
        "invoke_function": call_api.call,
        "enqueue_function": call_api.call,
        "follow_logs": pages.logs,
    }
    for verb in ("run", "runsync", "run_sync"):
        serves |= {f"queue_{verb}": call_api.call, f"queue_{verb}_of": call_api.call}
    for of in ("", "_of"):
        for suffix in ("", "_by_post"):
            serves[f"queue_status{of}{suffix}"] = of_handler(queue.status)
            serves[f"queue_stream{of}{suffix}"] = call_api.stream
        serves[f"queue_cancel{of}"] = of_handler(queue.cancel)
        serves[f"queue_retry{of}"] = of_handler(queue.retry)
        serves[f"queue_purge_queue{of}"] = of_handler(queue.purge)
        serves[f"queue_health{of}"] = of_handler(queue.health)
    handlers: Mapping[str, Handler] = {
        "retry_execution": executions.retry,
        "list_executions": executions.list,
        "get_execution": executions.get,
        "cancel_execution": executions.cancel,
    }
    replies: Mapping[str, Reply] = {
        "list_functions": functions.list,
        "create_function": functions.create,
        "get_function": functions.get,
        "patch_function": functions.patch,
        "delete_function": functions.delete,
        "get_replicas": functions.replicas,
        "set_replicas": functions.set_replicas,
        "complete_execution": pages.complete,
        "get_root": pages.root,
        "get_healthz": pages.healthz,
        "get_readyz": pages.readyz,
        "get_openapi": pages.openapi,
        "get_docs": pages.docs,
        "get_docs_asset": pages.docs_asset,
    }
    serves |= {name: of_handler(handler) for name, handler in handlers.items()}
    serves |= {name: of_reply(reply) for name, reply in replies.items()}
    return serves


def _metrics_page(metrics: Callable[[], bytes]) -> Reply:
    async def page(request: Request) -> Answer:
        return Answer(200, [(b"content-type", b"text/plain; version=0.0.4; charset=utf-8")], metrics())

    return page


def _face(path: str) -> Face:
    return "queue" if path.startswith("/v2/") else "functions"


async def _not_served(request: StarletteRequest, exc: Exception) -> Response:
    """No such address, or not with that method."""
    assert isinstance(exc, HTTPException)
    error: FlashmeshError = NoRoute()
    if exc.status_code == 405:
        allowed = tuple(sorted(str((exc.headers or {}).get("Allow", "")).split(", ")))
        error = MethodNotAllowed(f"This address takes {', '.join(allowed)}.", allowed=allowed)
    return _response(failure(error, face=_face(request.url.path)))


async def _broken(request: StarletteRequest, exc: Exception) -> Response:
    """A fault of ours. What was wrong is for the log, not for the client."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=exc)
    error = FlashmeshError("The server failed to answer this request; its log says why.")
    return _response(failure(error, face=_face(request.url.path)))


def _response(answer: Answer) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.all_headers()}
    return Response(answer.body, answer.status, headers)


def _json(status: int, value: Any) -> Answer:
    return Answer(status, [JSON_TYPE], dump(value))


def _name(request: Request, suffix: bytes = b"") -> str:
    raw = request.path[len(b"/v1/functions/") : len(request.path) - len(suffix)]
    return unquote_to_bytes(raw).decode("utf-8", "replace")


def _as_invalid(error: ValidationError) -> FlashmeshError:
    """Bad fields of a request are 400 here; errors with a status of their own keep it."""
    if error.status != ValidationError.status:
        return error
    return InvalidRequest(str(error), field=error.field)
