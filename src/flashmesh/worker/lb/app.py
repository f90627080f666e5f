"""The FastAPI application of declared HTTP routes: the dev server makes one for each file, an endpoint's worker one."""

import asyncio
import inspect
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import anyio
import starlette
from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.background import BackgroundTask
from starlette.concurrency import iterate_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from flashmesh.functions.declarations import declarations_in
from flashmesh.functions.errors import FlashmeshError, FunctionNotFound
from flashmesh.wire import failures, values
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.wire.media import EVENT_STREAM, wanted_media
from flashmesh.wire.plain_json import dump
from flashmesh.worker.lb.body import BodyReader
from flashmesh.worker.lb.examples import example_of, first_line
from flashmesh.worker.lb.failures import failed
from flashmesh.worker.lb.packages import explain_missing
from flashmesh.worker.lb.reading import ClientGone
from flashmesh.worker.lb.route import HttpRoute
from flashmesh.worker.lb.signature import REQUEST_NAME, RouteSignature, fastapi_signature, is_file, is_upload, split

log = logging.getLogger("flashmesh.routes")
Function = Callable[..., Any]
_MACHINERY = tuple(str(Path(str(package.__file__)).parent) for package in (anyio, starlette, asyncio))
"""Folders whose frames stand between ours and the user's in a traceback."""


class Around(Protocol):
    """What the program keeps around the body of each request: its log, what calls from inside it inherit."""

    def __call__(self, route: HttpRoute, connection: HTTPConnection) -> AbstractContextManager[dict[str, Any]]:
        """`outcome` in the yielded dict is set to `error` when the answer's status is 400 or more."""
        ...


def build(module: ModuleType, dotted: str, routes: Sequence[HttpRoute], around: Around) -> FastAPI:
    """An application that answers these routes with the functions of `module`.

    Args:
        dotted: the module's name as function ids have it.
    Raises:
        FunctionNotFound: the module does not define one of them.
        what FastAPI raises about a signature it cannot read.
    """
    application = new_application()
    add_routes(application, module, dotted, routes, around)
    return application


def new_application() -> FastAPI:
    """One without routes, which tells failures as every face of ours does."""
    application = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    application.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]
    application.add_exception_handler(FlashmeshError, _on_error)
    application.add_exception_handler(Exception, _on_error)
    return application


def add_routes(
    application: FastAPI, module: ModuleType, dotted: str, routes: Sequence[HttpRoute], around: Around
) -> None:
    """Add one module's routes. Raises as `build`."""
    add = application.router.add_api_route
    for route in routes:
        function = find_function(module, dotted, route)
        parts = split(function, route.method, route.path)
        if parts.is_websocket:
            application.router.add_api_websocket_route(route.path, websocket_endpoint(function, parts, route, around))
            continue
        reader = BodyReader(parts.body, function.__name__) if parts.body else None
        endpoint = Endpoint(function, parts, reader, route, around).as_function()
        if route.method == "GET":
            add(route.path, endpoint, methods=["HEAD"], response_model=None, include_in_schema=False)
        add(
            route.path,
            endpoint,
            methods=[route.method],
            response_model=None,
            tags=[f"{route.file} [LB]"],
            operation_id=f"{route.method.lower()}{route.path}",
            summary=first_line(inspect.getdoc(function)) or route.function,
            description=inspect.getdoc(function) or "",
            openapi_extra=request_body(reader) if reader is not None else None,
        )


def websocket_endpoint(function: Function, parts: RouteSignature, route: HttpRoute, around: Around) -> Function:
    """What FastAPI is given for a function that takes a websocket."""

    async def endpoint(**given: Any) -> Any:
        connection = next(value for value in given.values() if isinstance(value, HTTPConnection))
        with around(route, connection):
            return await function(**given)

    endpoint.__name__ = endpoint.__qualname__ = function.__name__
    endpoint.__module__ = function.__module__
    shown = (*parts.native, *parts.body)
    endpoint.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
    )
    return endpoint


def find_function(module: ModuleType, dotted: str, route: HttpRoute) -> Function:
    """The plain function behind a route."""
    qualname = route.function.removeprefix(dotted + ".")
    declared = [found for found in declarations_in(vars(module)) if found.qualname == qualname]
    for found in declared:
        if (found.method or "").upper() == route.method and route.path.endswith(found.path or "\0"):
            return found.target
    if declared:
        return declared[-1].target
    found_here = getattr(module, qualname, None)
    if found_here is None:
        raise FunctionNotFound(f"{route.file} does not define `{qualname}` when it is imported")
    return inspect.unwrap(found_here)  # type: ignore[no-any-return]


def request_body(reader: BodyReader) -> dict[str, Any]:
    """The OpenAPI description of a body that we read."""
    schema = reader.schema()
    example = example_of(schema, schema.get("$defs", {}))
    content: dict[str, Any] = {"application/json": {"schema": schema, "example": example}}
    if any(is_upload(reader.parameter(name).annotation) for name in reader.names):
        content = {}
    files = [name for name in reader.names if _is_binary(reader, name)]
    if files:
        fields: dict[str, Any] = {
            name: {"type": "string", "format": "binary"} if name in files else {"type": "string"}
            for name in reader.names
        }
        required = [name for name in reader.names if reader.parameter(name).default is inspect.Parameter.empty]
        content = {
            "multipart/form-data": {"schema": {"type": "object", "properties": fields, "required": required}}
        } | content
    return {"requestBody": {"content": content, "required": True}}


def _is_binary(reader: BodyReader, name: str) -> bool:
    return is_file(reader.parameter(name).annotation)


class Endpoint:
    """One route's function between FastAPI, which fills its own parameters, and the body, which we read."""

    def __init__(
        self,
        function: Function,
        parts: RouteSignature,
        reader: BodyReader | None,
        route: HttpRoute,
        around: Around,
    ) -> None:
        self._function = function
        self._around = around
        self._reader = reader
        self._parts = parts
        self._route = route
        self._is_async = inspect.iscoroutinefunction(function)
        self._streams = inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
        self._positional = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        ]

    def as_function(self) -> Function:
        """What FastAPI is given: an async function with the signature it is to read."""

        async def endpoint(**given: Any) -> Any:
            return await self._answer(given)

        endpoint.__name__ = endpoint.__qualname__ = self._function.__name__
        endpoint.__doc__ = self._function.__doc__
        endpoint.__module__ = self._function.__module__
        endpoint.__signature__ = fastapi_signature(self._parts)  # type: ignore[attr-defined]
        return endpoint

    async def _answer(self, given: dict[str, Any]) -> Response:
        own = self._parts.request_name
        request: Request = given.pop(REQUEST_NAME) if own is None else given[own]
        with self._around(self._route, request) as fields:
            response = await self._respond_to(given, request)
            if response.status_code >= 400:
                fields["outcome"] = "error"
            return response

    async def _respond_to(self, given: dict[str, Any], request: Request) -> Response:
        base = given.get(self._parts.response_name) if self._parts.response_name else None
        try:
            if self._reader is not None:
                given |= await self._reader.read(request)
            value = await self._run(given)
            response = self._respond(value, request)
        except (HTTPException, RequestValidationError, ClientGone):
            await request.close()
            raise
        except Exception as error:
            await request.close()
            return failure_response(error, self._route)
        if isinstance(response, StreamingResponse):
            response.background = _afterwards(response.background, request.close)
        else:
            await request.close()  # uploads, when it was a form
        if base is not None and not isinstance(value, Response):
            response.status_code = base.status_code or response.status_code
            response.raw_headers.extend(base.raw_headers)
        return response

    async def _run(self, arguments: dict[str, Any]) -> Any:
        positional = [arguments.pop(name) for name in self._positional if name in arguments]
        if self._is_async:
            return await self._function(*positional, **arguments)
        if self._streams:
            return self._function(*positional, **arguments)
        # A body in a thread cannot be stopped; whoever waits for it can.
        return await to_thread.run_sync(partial(self._function, *positional, **arguments), abandon_on_cancel=True)

    def _respond(self, value: Any, request: Request) -> Response:
        if isinstance(value, Response):
            return value
        accept = wanted_media(request.headers.get("accept"))
        if isinstance(value, AsyncIterator | Iterator):
            return _Streamed(value, accept, self._route)
        if accept == BINARY and isinstance(value, bytes | bytearray | memoryview):
            return Response(bytes(value), media_type=BINARY)
        media = MSGPACK if accept == MSGPACK else JSON
        return Response(values.encode(value, media), media_type=media)


def _afterwards(before: BackgroundTask | None, close: Callable[[], Any]) -> BackgroundTask:
    async def run() -> None:
        if before is not None:
            await before()
        await close()

    return BackgroundTask(run)


class _Streamed(StreamingResponse):
    """A generator's items as they come: server-sent events where accepted, else bytes and text as they are, and
    anything else as one JSON document per line. The first item decides, and a failure before it has its own status."""

    def __init__(self, items: Any, accept: str, route: HttpRoute) -> None:
        self._items = items if isinstance(items, AsyncIterator) else iterate_in_threadpool(items)
        self._events = accept == EVENT_STREAM
        self._route = route
        super().__init__(self._encoded(None))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            first = await anext(self._items)
        except StopAsyncIteration:
            self.body_iterator = self._encoded(None)
        except Exception as error:
            await failure_response(error, self._route)(scope, receive, send)
            return
        else:
            self.body_iterator = self._encoded([first])
            self.headers["content-type"] = self._media_type(first)
        try:
            await super().__call__(scope, receive, send)
        finally:
            close = getattr(self._items, "aclose", None)
            if close is not None:
                await close()

    def _media_type(self, first: Any) -> str:
        if self._events:
            return f"{EVENT_STREAM}; charset=utf-8"
        if isinstance(first, bytes):
            return BINARY
        return "text/plain; charset=utf-8" if isinstance(first, str) else "application/x-ndjson"

    async def _encoded(self, first: list[Any] | None) -> AsyncIterator[bytes]:
        if first is None:
            return
        yield self._encode(first[0])
        async for item in self._items:
            yield self._encode(item)

    def _encode(self, item: Any) -> bytes:
        if self._events:
            return b"data: " + values.encode(item, JSON) + b"\n\n"
        if isinstance(item, bytes):
            return item
        return item.encode() if isinstance(item, str) else values.encode(item, JSON) + b"\n"


def failure_response(error: Exception, route: HttpRoute | None = None) -> Response:
    """The answer to a failed body: 422 and 400 for arguments, 503 for a missing declared package, else 500."""
    more: dict[str, Any] = {}
    missing = explain_missing(error, route.dependencies) if route is not None else None
    if missing is not None:
        info = failures.of_ours(missing)
    elif isinstance(error, FlashmeshError):
        info = failures.of_ours(error)
    else:
        log.error("%s", "".join(traceback.format_exception(error)).rstrip())
        info = failures.describe(error, hide_frames_of=_MACHINERY)
    if info.code == "VALIDATION_ERROR":
        where = ["body", *(info.field or "").split(".")] if info.field else ["body"]
        more["detail"] = [{"loc": where, "msg": info.message, "type": "value_error"}]
    status, headers, body = failed(None, info, **more)
    return Response(dump(body), status_code=status, headers=_text(headers), media_type=JSON)


def _text(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


async def _on_invalid(_request: Request, error: RequestValidationError) -> Response:
    """FastAPI's own 422, with our fields beside its `detail`."""
    details = [{key: item[key] for key in ("loc", "msg", "type") if key in item} for item in error.errors()]
    field = ".".join(str(part) for part in details[0]["loc"][1:]) if details else ""
    text = f"`{field}`: {details[0]['msg']}." if details else "The arguments do not fit."
    body = {
        "status": "FAILED",
        "error": text,
        "error_type": "ValidationError",
        "code": "VALIDATION_ERROR",
        "field": field,
        "detail": details,
    }
    return JSONResponse(body, status_code=422)


async def _on_error(_request: Request, error: Exception) -> Response:
    """What is raised outside the body: by a dependency, or while the request is read."""
    return failure_response(error)
