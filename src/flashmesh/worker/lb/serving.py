"""The application of one endpoint: every route that its resource declares, at the path as declared."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from flashmesh.functions.declarations import Declaration
from flashmesh.worker.lb.app import add_routes, new_application
from flashmesh.worker.lb.calls import around
from flashmesh.worker.lb.route import HttpRoute
from flashmesh.worker.spec import WorkerSpec


class HttpProgram:
    """What an endpoint's workers serve, made once, before they are forked.

    Attributes:
        limits_ms: the run-time limit of each function with routes, by its id; 0 = none.
        default_ms: the endpoint's own, which its template knows.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.application = new_application()
        self.routes: list[HttpRoute] = []
        self.limits_ms: dict[str, int] = {}
        self.default_ms = spec.resource.execution_timeout_ms
        self._spec = spec
        self.application.router.default = self._nothing_there

    def add(self, module: ModuleType, dotted: str, declared: Mapping[str, list[Declaration]]) -> None:
        """Add a module's routes. Raises what FastAPI raises about a signature it cannot read.

        Args:
            dotted: the module's name as written, which function ids begin with.
            declared: by function id.
        """
        routes = [
            HttpRoute(
                method=str(one.method).upper(),
                path=str(one.path),
                function=function,
                resource=self._spec.endpoint,
                file=_below(self._spec.project_root, one.file),
                line=one.line or None,
            )
            for function, declarations in declared.items()
            for one in declarations
        ]
        add_routes(self.application, module, dotted, routes, around)
        self.routes += routes
        for function, declarations in declared.items():
            own = declarations[0].overrides.get("execution_timeout_ms")
            self.limits_ms[function] = self.default_ms if own is None else own

    @property
    def paths(self) -> frozenset[str]:
        """Every path that is declared, as it is written."""
        return frozenset(route.path for route in self.routes)

    async def _nothing_there(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        known = ", ".join(sorted({f"{route.method} {route.path}" for route in self.routes})[:20])
        text = f"There is nothing at {scope['method']} {scope['path']}. There is: {known}."
        await JSONResponse({"error": text, "code": "ROUTE_NOT_FOUND"}, status_code=404)(scope, receive, send)


def _below(root: str, file: str) -> str:
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
