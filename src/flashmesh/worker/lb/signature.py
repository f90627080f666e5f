"""How a declared HTTP route's parameters are filled: which FastAPI reads, and which come from the body by our rules.

FastAPI alone would read `def f(a: int, b: str)` from the query; what the SDK promises is that the keys of a JSON body
are the parameters (and the other forms of a body that `wire.arguments` knows). So parameters that are neither in the
path nor of FastAPI's own kinds are taken from the body, from a form's fields, or by their names from the query.
A function that uses FastAPI's own body parameters (`Body`, `Form`, `File`, `Depends` on them) is left to FastAPI whole.
"""

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final

from fastapi import BackgroundTasks, Request, Response, UploadFile, WebSocket, params
from fastapi.security import SecurityScopes
from starlette.datastructures import UploadFile as StarletteUpload
from starlette.requests import HTTPConnection

Parameter = inspect.Parameter
REQUEST_NAME: Final = "flash_request"
"""Name under which FastAPI hands the request to our wrapper; not one a user would choose."""
_SPECIAL: Final = (HTTPConnection, Request, Response, WebSocket, BackgroundTasks, SecurityScopes)
_EXPLICIT: Final = (params.Param, params.Body, params.Depends)
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_VARIADIC: Final = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@dataclasses.dataclass(frozen=True, slots=True)
class RouteSignature:
    """A function's parameters, split by who fills them."""

    native: tuple[Parameter, ...]
    """FastAPI: path, query, headers, dependencies, Request and the like. Annotations are resolved."""
    body: tuple[Parameter, ...]
    """We: from the body (or, by name, from the query)."""
    request_name: str | None
    """The user's own parameter for the request; FastAPI fills only one."""
    response_name: str | None
    """The parameter that is FastAPI's Response, whose status and headers the answer takes over."""
    is_websocket: bool
    takes_files: bool
    """Some body parameter is bytes or an upload, so forms are the natural way to send it."""


def split(function: Callable[..., Any], method: str, path: str) -> RouteSignature:
    """Decide for every parameter. Raises NameError for an annotation that cannot be resolved."""
    signature = inspect.signature(function)
    annotations = resolved_annotations(function)
    in_path = set(re.findall(r"\{([^{}:]+)(?::[^{}]+)?\}", path))
    native: list[Parameter] = []
    open_to_us: list[Parameter] = []
    left_to_fastapi = method in _BODILESS
    request_name = response_name = None
    is_websocket = False
    for parameter in signature.parameters.values():
        annotation = annotations.get(parameter.name, parameter.annotation)
        parameter = parameter.replace(annotation=annotation)
        special = _special(annotation)
        explicit = _explicit(parameter)
        if special is not None:
            native.append(parameter)
            is_websocket = is_websocket or issubclass(special, WebSocket)
            request_name = parameter.name if special is Request else request_name
            response_name = parameter.name if issubclass(special, Response) else response_name
        elif explicit is not None or parameter.name in in_path:
            native.append(parameter)
            left_to_fastapi = left_to_fastapi or isinstance(explicit, params.Body)
        else:
            open_to_us.append(parameter)
    if left_to_fastapi:
        native += [parameter for parameter in open_to_us if parameter.kind not in _VARIADIC]
        open_to_us = []
    return RouteSignature(
        native=tuple(native),
        body=tuple(open_to_us),
        request_name=request_name,
        response_name=response_name,
        is_websocket=is_websocket,
        takes_files=any(is_file(parameter.annotation) for parameter in open_to_us),
    )


def resolved_annotations(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Annotations as objects, `Annotated` kept; those that cannot be resolved stay as they are written."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):
        return {}


def fastapi_signature(split_up: RouteSignature) -> inspect.Signature:
    """What FastAPI is shown: its own parameters, and the request, which we need to read the body and to answer."""
    shown = [
        parameter.replace(kind=Parameter.KEYWORD_ONLY)
        for parameter in split_up.native
        if parameter.kind not in _VARIADIC
    ]
    if split_up.request_name is None:
        shown.append(Parameter(REQUEST_NAME, Parameter.KEYWORD_ONLY, annotation=Request))
    return inspect.Signature(shown)


def with_parameters(parameters: tuple[Parameter, ...], name: str) -> Callable[..., Any]:
    """A function that has these parameters and does nothing, for whoever reads signatures."""

    def shape(*_args: Any, **_kwargs: Any) -> None:
        return None

    shape.__name__ = shape.__qualname__ = name
    shape.__signature__ = inspect.Signature(list(parameters))  # type: ignore[attr-defined]
    shape.__annotations__ = {
        parameter.name: parameter.annotation for parameter in parameters if parameter.annotation is not Parameter.empty
    }
    return shape


def is_file(annotation: Any) -> bool:
    """bytes, an upload, or a list of them, optional or not."""
    return is_upload(annotation) or _contains(annotation, lambda kind: kind is bytes)


def is_upload(annotation: Any) -> bool:
    """FastAPI's UploadFile, a list of it, optional or not."""
    return _contains(annotation, lambda kind: isinstance(kind, type) and issubclass(kind, StarletteUpload | UploadFile))


def is_list(annotation: Any) -> bool:
    """`list[…]`, optional or not: a form field that may be repeated."""
    return typing.get_origin(annotation) is list or any(
        typing.get_origin(argument) is list for argument in typing.get_args(annotation)
    )


def _contains(annotation: Any, wanted: Callable[[Any], bool]) -> bool:
    if wanted(annotation):
        return True
    return any(_contains(argument, wanted) for argument in typing.get_args(annotation) if argument is not annotation)


def _special(annotation: Any) -> type | None:
    """The annotation's class, if FastAPI fills it by its type."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, _SPECIAL):
        return annotation
    return None


def _explicit(parameter: Parameter) -> Any:
    """FastAPI's own description of the parameter (`Query(…)`, `Annotated[…, Form()]`), or None."""
    if isinstance(parameter.default, _EXPLICIT):
        return parameter.default
    if typing.get_origin(parameter.annotation) is typing.Annotated:
        for extra in typing.get_args(parameter.annotation)[1:]:
            if isinstance(extra, _EXPLICIT):
                return extra
    return None
