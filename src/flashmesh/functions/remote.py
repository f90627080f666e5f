"""`@remote(resource)`: the function or class runs on that resource's workers."""

from __future__ import annotations

from flashmesh.functions import checks
from flashmesh.functions.declarations import Body, Declaration
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.nearest import reject_unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Literal

    from flashmesh.functions.declarations import Declarable
    from flashmesh.functions.signatures import Decorator, Exceptions

__all__ = ["Declaration", "remote"]

HTTP_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
RESERVED_PATHS = ("/execute", "/ping")
"""Paths that workers answer themselves."""

OVERRIDES = {
    "execution_timeout_ms": checks.integer(0),
    "gpu_share": checks.flag,
    "max_concurrency": checks.integer(1),
    "mode": checks.mode,
    "preload": checks.flag,
    "queue_size": checks.integer(0),
    "retries": checks.integer(0),
    "retry_on": checks.exceptions,
}
"""Settings that a function may give for itself; what it does not give is its resource's."""


def remote(
    resource_config: Declarable,
    dependencies: Iterable[str] | None = None,
    system_dependencies: Iterable[str] | None = None,
    accelerate_downloads: bool = True,
    local: bool = False,
    method: str | None = None,
    path: str | None = None,
    *,
    retries: int | None = None,
    retry_on: Exceptions | None = None,
    mode: str | None = None,
    queue_size: int | None = None,
    max_concurrency: int | None = None,
    execution_timeout_ms: int | None = None,
    preload: bool | None = None,
    gpu_share: bool | None = None,
    **unknown: Any,
) -> Decorator:
    """Declare that a function or class runs on `resource_config`'s workers.

    `await f(x)` calls it from anywhere; `f.call(x)` blocks; `f.local(x)` runs the body in this process; `f.spawn(x)`
    gives a job; `f.map(xs)` fans out. A class's public methods can be called in the same ways.

    Args:
        resource_config: a resource such as `LiveServerless(name=…)`, or an `Endpoint`.
        dependencies: packages it needs, as pip takes them.
        system_dependencies: system packages it needs; they are checked, never installed.
        accelerate_downloads: whether the installer may use the fast path.
        local: never leave the process; calls run the body where they are made.
        method, path: the HTTP route. Required on a load-balanced resource, without meaning elsewhere.
        retries: extra attempts after one of `retry_on` (exception classes; every Exception when not given), after the
            run-time limit, and of a call that waits when its worker is lost.
        mode: WARM (a worker takes many calls) or JOB (a fresh process for each).
        queue_size: calls that may wait; one more is refused with QueueFull.
        max_concurrency: calls of an async function that one worker runs at the same time.
        execution_timeout_ms: run-time limit of one call; 0 = none.
        preload: False if the module must not be imported before a worker is forked.
        gpu_share: whether several workers may use one GPU.
    Raises:
        TypeError: an unknown keyword; the message names the nearest.
        DeclarationError: values that cannot work together.
    """
    reject_unknown("remote", unknown, _KNOWN)
    if isinstance(resource_config, type) or not callable(getattr(resource_config, "to_config", None)):
        raise TypeError(
            f"remote() takes a resource such as LiveServerless(name=…), got {resource_config!r}. "
            "Make the resource first and write @remote(resource)."
        )
    route = route_of(resource_config, method, path)
    given = {
        "retries": retries,
        "retry_on": retry_on,
        "mode": mode,
        "queue_size": queue_size,
        "max_concurrency": max_concurrency,
        "execution_timeout_ms": execution_timeout_ms,
        "preload": preload,
        "gpu_share": gpu_share,
    }
    decorator: Decorator = declare(
        resource_config,
        decorated_by="remote",
        route=route,
        dependencies=dependencies,
        system_dependencies=system_dependencies,
        accelerate_downloads=accelerate_downloads,
        local=local,
        overrides={name: OVERRIDES[name](name, value) for name, value in given.items() if value is not None},
    )
    return decorator


_KNOWN = remote.__code__.co_varnames[: remote.__code__.co_argcount + remote.__code__.co_kwonlyargcount]


def route_of(resource: Declarable, method: str | None, path: str | None) -> tuple[str | None, str | None]:
    """The checked HTTP route of a function on this resource. Raises DeclarationError."""
    if not resource.is_load_balanced:
        if method or path:
            import warnings

            warnings.warn(
                f"method={method!r} and path={path!r} are ignored: {type(resource).__name__} is queue-based. "
                "Use a load-balanced resource such as LiveLoadBalancer for HTTP routes.",
                stacklevel=3,
            )
        return (None, None)
    if not method or not path:
        raise DeclarationError(
            f"A function on {type(resource).__name__} is an HTTP route and needs both method and path, "
            f'got method={method!r}, path={path!r}. Example: @remote(resource, method="POST", path="/process")'
        )
    return check_route(method, path)


def check_route(method: str, path: str) -> tuple[str, str]:
    """The method in capitals and the path. Raises DeclarationError."""
    if method.upper() not in HTTP_METHODS:
        raise DeclarationError(f"method must be one of {', '.join(HTTP_METHODS)}, got {method!r}.")
    if not path.startswith("/"):
        raise DeclarationError(f"path must start with '/', got {path!r}. Write '/{path}'.")
    if path in RESERVED_PATHS:
        raise DeclarationError(f"path {path!r} is reserved: workers answer it themselves. Choose another.")
    return (method.upper(), path)


def declare(
    resource: Declarable,
    *,
    decorated_by: Literal["remote", "endpoint", "route"],
    route: tuple[str | None, str | None] = (None, None),
    dependencies: Iterable[str] | None = None,
    system_dependencies: Iterable[str] | None = None,
    accelerate_downloads: bool = True,
    local: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """A decorator that writes a Declaration down and puts a handle in the target's place (a route's stays)."""
    packages = tuple(checks.texts("dependencies", dependencies or ()))
    system_packages = tuple(checks.texts("system_dependencies", system_dependencies or ()))

    def decorate(target: Callable[..., Any]) -> Any:
        declaration = Declaration(
            target,
            resource,
            decorated_by=decorated_by,
            method=route[0],
            path=route[1],
            dependencies=packages,
            system_dependencies=system_packages,
            accelerate_downloads=accelerate_downloads,
            local=local,
            overrides=overrides,
        )
        return _stamped(target if decorated_by == "route" else _handle(declaration), declaration)

    return decorate


def _handle(declaration: Declaration) -> Any:
    if declaration.kind == "class":
        from flashmesh.functions.classes import class_handle  # only programs with class workers need it

        return class_handle(declaration)
    from flashmesh.functions.handles import Callee, handle_of

    return handle_of(Callee(declaration, Body(declaration.name, declaration.target)), declaration.target)


def _stamped(handle: Any, declaration: Declaration) -> Any:
    """Leave the declaration on the handle, also under the names by which Flash's own tools look for it."""
    stamp: dict[str, Any] = {
        "resource_config": declaration.resource,
        "method": declaration.method,
        "path": declaration.path,
        "dependencies": list(declaration.dependencies) or None,
        "system_dependencies": list(declaration.system_dependencies) or None,
    }
    if declaration.method is not None:
        stamp["is_lb_route_handler"] = True
        handle.__is_lb_route_handler__ = True
    if declaration.local:
        handle.__flash_local__ = True
    handle.__flash__ = declaration
    handle.__remote_config__ = stamp
    return handle
