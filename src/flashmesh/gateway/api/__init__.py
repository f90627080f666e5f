"""The HTTP faces of the control plane: the functions API, RunPod's queue API, executions, logs and documentation.

`hot_routes` is what the lean server calls for the few routes that matter for speed; `application` serves all of them,
and is imported when it is first needed.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashmesh.gateway.api.asgi import ASGIApp
    from flashmesh.gateway.api.registry_port import Complete, Registry
    from flashmesh.gateway.api.starlette_app import ApiLimits
    from flashmesh.gateway.calls import Calls
    from flashmesh.gateway.directory import Directory
    from flashmesh.gateway.http import HotRoutes
    from flashmesh.queueing.logbook import LogBook

__all__ = ["application", "hot_routes"]


def hot_routes(calls: "Calls", directory: "Directory") -> "HotRoutes":
    """`:invoke`, `:enqueue`, run, runsync, status, and GET of one execution."""
    from flashmesh.gateway.api.hot import CallRoutes  # the dev server uses pure parts of this package only

    return CallRoutes(calls, directory)


def application(
    *,
    calls: "Calls",
    registry: "Registry",
    logbook: "LogBook",
    complete: "Complete",
    metrics: Callable[[], bytes] | None = None,
    limits: "ApiLimits | None" = None,
    more: Iterable[Any] = (),
    faces: Iterable[Any] = (),
) -> "ASGIApp":
    """Every route as an ASGI application; see `starlette_app.application`. Imports starlette."""
    from flashmesh.gateway.api.starlette_app import application as make

    return make(
        calls=calls,
        registry=registry,
        logbook=logbook,
        complete=complete,
        metrics=metrics,
        limits=limits,
        more=more,
        faces=faces,
    )
