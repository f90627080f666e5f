"""Calls of decorated functions through a session's link: the frame a call becomes, and what its outcome stands for.

Pure; shared by every Caller that has a session (the dev server's, a script's).
"""

import typing
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Literal

from flashmesh.dev.script.main_module import main_name
from flashmesh.functions.calls import Call
from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import ValidationError
from flashmesh.kit.ids import new_execution_id
from flashmesh.wire import failures, values
from flashmesh.wire.arguments import argument_parts
from flashmesh.wire.frames import MSGPACK, Error, Invoke, Result
from flashmesh.wire.parts import sendable
from flashmesh.wire.signature import Purpose, Signer

TRACE: Final[ContextVar[str]] = ContextVar("flash_trace", default="")
"""The traceparent of the request that runs here; calls made by it carry it on."""
_PRIVATE: Final = "__flash__."
"""Package under which the loader keeps project files whose name is taken; ids are written without it."""


def function_id(declaration: Declaration, method: str | None = None) -> str:
    """`module.qualname`, and the method's name for a class."""
    id = declaration.id.removeprefix(_PRIVATE)
    return f"{id}.{method}" if method else id


def frame_of(
    call: Call, *, signer: Signer | None, mode: Literal["sync", "async"] = "sync", stream: bool = False
) -> Invoke:
    """The INVOKE of a call. Raises NotEncodable, naming the argument."""
    execution = new_execution_id()
    function = function_id(call.declaration, call.method)
    payload = argument_parts(
        call.args, call.kwargs, init=call.init, signer=signer, context=Purpose(function, "call", execution)
    )
    meta: dict[str, Any] = {"mode": mode}
    if stream:
        meta["stream"] = True
    if trace := TRACE.get():
        meta["trace"] = trace
    return Invoke(
        execution=execution,
        function=function,
        content_type=MSGPACK,
        accept=MSGPACK,
        meta=meta,
        payload=sendable(payload),
    )


def value_of(outcome: Result | Error, call: Call, *, signer: Signer | None) -> Any:
    """What the function returned, as its annotation says. Raises what it raised."""
    function = function_id(call.declaration, call.method)
    if isinstance(outcome, Error):
        raise failures.restore(failures.of_frame(outcome), main_module=main_name())
    return decoded(outcome.payload, outcome.content_type, function, outcome.execution, signer, returned_type(call))


def decoded(
    payload: bytes, content_type: str, function: str, execution: str, signer: Signer | None, kind: Any = Any
) -> Any:
    """One result or item."""
    if not payload and content_type == MSGPACK:
        return None
    value = values.decode(payload, content_type, signer=signer, context=Purpose(function, "result", execution))
    if kind is Any:
        return value
    try:
        return values.convert(value, kind)
    except ValidationError:
        return value  # Python does not hold a function to its annotation either


def returned_type(call: Call) -> Any:
    """The return annotation of what is called, Any without one that can be used here."""
    target: Callable[..., Any] = call.declaration.target
    if call.method is not None:
        target = getattr(target, call.method, target)
    kind = getattr(target, "__annotations__", {}).get("return", Any)
    if isinstance(kind, str):
        try:
            kind = typing.get_type_hints(target).get("return", Any)
        except Exception:  # an annotation may be any expression of the user's
            return Any
    return Any if call.declaration.is_generator else kind
