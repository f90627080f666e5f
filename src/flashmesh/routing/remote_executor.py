"""Requests that name a function (Flash's FunctionRequest), run where that function is.

A client may send such a request to any endpoint of its app. One with code in it (live mode) is for workers that run
sent code; one without (a deployed app) names a function of the manifest: it runs here when it is this endpoint's or
when nobody knows where it is, else it is passed on as it came, and its answer is passed back.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec

from flashmesh.functions.errors import EndpointUnreachable, ValidationError
from flashmesh.kit.ids import FunctionId
from flashmesh.routing.registry import ServiceRegistry
from flashmesh.routing.route import Local, Remote, Unresolved

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 300.0
"""How long a function on another endpoint is waited for (Flash's DEFAULT_ENDPOINT_TIMEOUT)."""
_CODE: Final = ("function_code", "class_code")

Request = Mapping[str, Any]
Mode = Literal["flash", "live"]


class FunctionResponse(msgspec.Struct, omit_defaults=True):
    """Flash's answer to a FunctionRequest. `error` ends with the remote traceback; `stdout` is not collected here."""

    success: bool
    json_result: Any = None
    error: str | None = None


class Passing(Protocol):
    """Sends a request to another endpoint."""

    async def __call__(self, route: Remote, request: Request, *, seconds: float) -> Any:
        """The function's value. Raises its exception as far as it is known here, or EndpointUnreachable (not run)."""
        ...


class RemoteExecutor:
    """See the module.

    Args:
        ask: makes the manifest known where nobody has asked for it yet; may wait.
        look_again: has the manifest looked at once more, after nobody answered at an address.
        run_local: runs a function of this endpoint. Raises FunctionNotFound for another one.
        pass_on: sends it to another endpoint.
        run_code: runs code that was sent; None: this worker was not started for that.
    """

    def __init__(
        self,
        *,
        registry: ServiceRegistry,
        ask: Callable[[], Awaitable[None]],
        look_again: Callable[[], Awaitable[None]],
        run_local: Callable[[Request], Awaitable[Any]],
        pass_on: Passing,
        run_code: Callable[[Request], Awaitable[Any]] | None = None,
    ) -> None:
        self._registry = registry
        self._ask = ask
        self._look_again = look_again
        self._run_local = run_local
        self._pass_on = pass_on
        self._run_code = run_code

    async def execute(self, request: Request) -> FunctionResponse:
        """Run it and answer, whatever happens. Never raises an Exception."""
        try:
            return FunctionResponse(True, await self.value(request))
        except Exception as error:  # the boundary: what went wrong is the answer
            log.debug("Function request failed", extra={"action": "request_failed", "error": type(error).__name__})
            return FunctionResponse(False, error=told(error))

    async def value(self, request: Request) -> Any:
        """The function's value. Raises what it raises, FunctionNotFound, EndpointUnreachable, ValidationError."""
        if mode_of(request) == "live":
            if self._run_code is None:
                raise ValidationError(
                    "This worker runs no code that is sent to it. Deploy the function, and leave function_code out."
                )
            return await self._run_code(request)
        return await self._routed(request, name_of(request), again=True)

    async def _routed(self, request: Request, name: str, *, again: bool) -> Any:
        await self._ask()
        match self._registry.route(FunctionId(name)):
            case Local():
                log.debug("Executing '%s' locally", name)
                return await self._run_local(request)
            case Unresolved(reason=reason):
                log.warning("Function lookup failed: %s. Executing '%s' locally", reason, name)
                return await self._run_local(request)
            case Remote() as route:
                log.debug("Routing '%s' to %s", name, route.url)
                try:
                    return await self._pass_on(route, request, seconds=TIMEOUT_S)
                except EndpointUnreachable:
                    if not again:
                        raise
                    await self._look_again()
                    return await self._routed(request, name, again=False)


def mode_of(request: Request) -> Mode:
    """`live` when the request brings the code along."""
    return "live" if any(request.get(field) for field in _CODE) else "flash"


def name_of(request: Request) -> str:
    """The function a request names: with its method, for a class. Raises ValidationError."""
    name = request.get("function_name") or request.get("class_name")
    if not isinstance(name, str) or not name:
        raise ValidationError("The request names no function. Send function_name.", field="function_name")
    return name


def told(error: Exception) -> str:
    """An exception in words: its type, its message, and the remote traceback where it has one."""
    kind = getattr(error, "type_name", "") or type(error).__name__
    message = str(error)
    first = f"{kind}: {message}" if message and not message.startswith(kind) else message or kind
    traceback = getattr(error, "remote_traceback", "")
    return f"{first}\n{traceback}".rstrip() if traceback else first
