"""The hot routes: from the bytes of a path to its handler by one dictionary, filled as paths are asked for."""

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote_to_bytes

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.api.executions import PREFIX as EXECUTIONS
from flashmesh.gateway.api.executions import ExecutionHandlers
from flashmesh.gateway.api.failures import failure
from flashmesh.gateway.api.functions import EnqueueHandler, InvokeHandler
from flashmesh.gateway.api.queue import QueueHandlers, QueueTarget, RunHandler, RunSyncHandler
from flashmesh.gateway.api.queue_paths import CALL_VERBS, parse
from flashmesh.gateway.api.queue_paths import PREFIX as QUEUE
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.directory import ANYWHERE, Directory, Where
from flashmesh.gateway.http import Handler, Request, Respond

FUNCTIONS: Final = b"/v1/functions/"
MAX_REMEMBERED: Final = 10_000
"""Paths kept; beyond it all are looked up again. Many names for one function must not fill the memory."""
CallHandler = InvokeHandler | EnqueueHandler | RunHandler | RunSyncHandler


class CallRoutes:
    """Routes of calls and of looking at one execution: gateway.http.HotRoutes.

    What cannot be found (unknown names, other methods) is None: the application answers that, at leisure.
    """

    def __init__(self, calls: Calls, directory: Directory) -> None:
        self._calls = calls
        self._directory = directory
        self._posts: dict[bytes, Handler] = {}
        self._version = directory.version
        self._execution: Handler = ExecutionHandlers(calls, directory).get
        self._status: Handler = QueueHandlers(calls, directory).status

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """See HotRoutes."""
        if method == b"POST":
            if self._version == self._directory.version:
                handler = self._posts.get(path)
                if handler is not None:
                    return handler
            return self._look_up(path)
        if method == b"GET":
            if path.startswith(EXECUTIONS):
                return self._execution if path.find(b"/", len(EXECUTIONS)) < 0 else None
            if path.startswith(QUEUE) and b"/status/" in path:
                found = parse(path)
                return self._status if found is not None and found.verb == "status" else None
        return None

    def _look_up(self, path: bytes) -> Handler | None:
        if self._version != self._directory.version or len(self._posts) >= MAX_REMEMBERED:
            self._posts.clear()
            self._version = self._directory.version
        try:
            found = self.resolve(path)
        except FlashmeshError:
            return None
        if found is None:
            return None
        handler = ByPlace(self, self._directory, path, found) if self._directory.scoped else found
        self._posts[path] = handler
        return handler

    def resolve(self, path: bytes, where: Where = ANYWHERE) -> CallHandler | None:
        """The handler of a POST; None when the path is of another kind.

        Raises FunctionNotFound, AmbiguousFunction.
        """
        if path.startswith(FUNCTIONS):
            name, colon, verb = path[len(FUNCTIONS) :].rpartition(b":")
            if not colon or b"/" in name or verb not in (b"invoke", b"enqueue"):
                return None
            decoded = unquote_to_bytes(name).decode("utf-8", "replace")
            callee = self._directory.function(decoded, where)
            kind = InvokeHandler if verb == b"invoke" else EnqueueHandler
            return kind(self._calls, callee)
        found = parse(path)
        if found is None or found.verb not in CALL_VERBS:
            return None
        target = QueueTarget.of(self._directory, found, where)
        return (RunHandler if found.verb == "run" else RunSyncHandler)(self._calls, target)


class ByPlace:
    """A call by a name that another caller may mean differently: looked up again for those who say, or whose token
    does."""

    __slots__ = ("_directory", "_handler", "_path", "_routes")

    def __init__(self, routes: CallRoutes, directory: Directory, path: bytes, handler: CallHandler) -> None:
        self._routes = routes
        self._directory = directory
        self._path = path
        self._handler = handler

    def __call__(self, request: Request, respond: Respond) -> Callable[[], None] | None:
        where = self._directory.where(request)
        handler: Handler | None = self._handler
        if where != ANYWHERE:
            try:
                handler = self._routes.resolve(self._path, where)
            except FlashmeshError as error:
                respond(failure(error, face=self._handler.face))
                return None
        return None if handler is None else handler(request, respond)
