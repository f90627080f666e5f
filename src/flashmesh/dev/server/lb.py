"""The HTTP routes of a project (its load-balanced resources), whose bodies run in the dev server itself.

One FastAPI application per file: a file that cannot be imported takes only its own routes down. Imports begin with the
server and run beside it; a request for a route waits for its file, no other request does.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flashmesh.dev.server import answers
from flashmesh.dev.server.access import Receive, Scope, Send
from flashmesh.dev.server.caller import DevCaller
from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.lb_environment import SharedEnvironment
from flashmesh.dev.server.lb_loading import FileLoad, LoadProblem, load_all
from flashmesh.dev.server.options import DevOptions
from flashmesh.dev.server.requests import check_length, limited
from flashmesh.dev.server.user_code import UserCode, dotted_name
from flashmesh.dev.session_calls import TRACE
from flashmesh.worker.lb import route_log
from flashmesh.worker.lb.packages import explain_missing
from flashmesh.worker.lb.route import HttpRoute

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection


class HttpRoutes:
    """Answers declared HTTP routes."""

    def __init__(
        self,
        root: Path,
        routes: Sequence[HttpRoute],
        *,
        options: DevOptions,
        door: SessionDoor,
        dev_caller: DevCaller,
        code: UserCode,
    ) -> None:
        self._root = root
        self._options = options
        self._door = door
        self._caller = dev_caller
        self._code = code
        self._environment = SharedEnvironment()
        self._by_file: dict[str, list[HttpRoute]] = {}
        for route in routes:
            self._by_file.setdefault(route.file, []).append(route)
        self._loads: dict[str, FileLoad] = {}
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to import the files. Needs the running loop; called again it does nothing."""
        if self._starting is not None:
            return
        self._caller.begin()
        for file, routes in self._by_file.items():
            make = _Import(self._code, file, tuple(routes), self._environment)
            self._loads[file] = FileLoad(file, make, self._explainer(file, routes))
        self._starting = asyncio.ensure_future(self._load())

    def _explainer(self, file: str, routes: Sequence[HttpRoute]) -> Callable[[BaseException], LoadProblem]:
        declared = declared_by(routes)

        def explain(error: BaseException) -> LoadProblem:
            problem = self._code.problem_of(error, file)
            missing = explain_missing(error, declared)
            return problem if missing is None else dataclasses.replace(problem, reason=str(missing).rstrip("."))

        return explain

    async def _load(self) -> None:
        """FastAPI is imported while the session is dialled; files then find the functions they call."""
        framework = asyncio.to_thread(import_module, "flashmesh.worker.lb.app")
        await asyncio.gather(framework, self._door.get(), return_exceptions=True)
        await load_all(list(self._loads.values()), self._options.import_limit_s)

    def close(self) -> None:
        if self._starting is not None:
            self._starting.cancel()

    async def answer(self, route: HttpRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or websocket. Raises PayloadTooLarge, BodyTooSlow."""
        load = await self._loaded(route.file)
        if load.problem is not None:
            await _unavailable(load.problem, scope, receive, send)
            return
        if scope["type"] == "http":
            limit_bytes = self._options.max_body_bytes
            check_length(scope, limit_bytes)
            receive = limited(receive, limit_bytes=limit_bytes, limit_s=self._options.body_limit_s)
        await load.result(scope, receive, send)

    async def applications(self, patience_s: float) -> dict[str, Any]:
        """The FastAPI application of every file that is imported, waiting `patience_s` for those that are not yet."""
        self.start()
        waiting = [load.ready for load in self._loads.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=patience_s)
        return {file: load.result for file, load in self._loads.items() if load.result is not None}

    async def _loaded(self, file: str) -> FileLoad:
        self.start()
        load = self._loads[file]
        if not load.ready.done():
            await asyncio.shield(load.ready)
        return load


class _Import:
    """Imports one file and makes its application. Runs in a thread."""

    def __init__(
        self, code: UserCode, file: str, routes: tuple[HttpRoute, ...], environment: SharedEnvironment
    ) -> None:
        self._code = code
        self._file = file
        self._routes = routes
        self._environment = environment

    def __call__(self) -> Any:
        build = import_module("flashmesh.worker.lb.app").build  # FastAPI: half a second that only this thread waits
        module = self._code.load(self._file)
        self._environment.take(module)
        return build(module, dotted_name(self._file), self._routes, around)


@contextmanager
def around(route: HttpRoute, connection: "HTTPConnection") -> Iterator[dict[str, Any]]:
    """Around a request's body: what it prints is its own, and calls that it makes carry its trace on."""
    token = TRACE.set(connection.headers.get("traceparent", ""))
    try:
        with route_log.request(route) as fields:
            yield fields
    finally:
        TRACE.reset(token)


def declared_by(routes: Sequence[HttpRoute]) -> tuple[str, ...]:
    """The packages that any of the routes declares."""
    return tuple(dict.fromkeys(package for route in routes for package in route.dependencies))


async def _unavailable(problem: LoadProblem, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1011})
        return
    place = problem.file if problem.line is None else f"{problem.file}, line {problem.line}"
    body = {
        "status": "FAILED",
        "error": f"{place}: {problem.reason}. Repair the file and save it.",
        "error_type": "ImportFailed",
        "code": "IMPORT_FAILED",
        "file": problem.file,
        "line": problem.line,
        "reason": problem.reason,
        "traceback": problem.traceback,
    }
    await answers.send_json(send, 503, {key: value for key, value in body.items() if value is not None})
