"""The annotations of a callable as types, whatever way they were written and whether or not they can be resolved."""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

EMPTY = inspect.Parameter.empty


class _Annotated:
    """What typing.get_type_hints reads, for one annotation at a time."""

    def __init__(self, name: str, annotation: Any) -> None:
        self.__annotations__ = {name: annotation}


def signature_of(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature, annotations as written. A callable that tells nothing takes anything."""
    try:
        if sys.version_info >= (3, 14):  # reading annotations evaluates them there, unless asked not to
            import annotationlib

            return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
        return inspect.signature(fn)
    except (ValueError, TypeError):
        kinds = inspect.Parameter
        return inspect.Signature([kinds("args", kinds.VAR_POSITIONAL), kinds("kwargs", kinds.VAR_KEYWORD)])


def resolve(fn: Callable[..., Any], signature: inspect.Signature) -> Mapping[str, Any]:
    """Parameter name (and "return") to type. What has no annotation, or one that cannot be resolved here, is Any.

    Each is resolved by itself, with the function's globals and closure, so that one name imported under
    `if TYPE_CHECKING` does not cost the others their types.
    """
    target = inspect.unwrap(fn)
    target = getattr(target, "func", target)  # functools.partial
    target = getattr(target, "__func__", target)
    if not isinstance(target, types.FunctionType):
        target = getattr(type(target), "__call__", target)  # noqa: B004 - the method is wanted, not whether it is there
    namespace = dict(getattr(target, "__globals__", {}))
    namespace.update(_closure(target))
    raw = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    raw["return"] = signature.return_annotation
    return {name: _resolve_one(name, annotation, namespace) for name, annotation in raw.items()}


def _closure(fn: Any) -> dict[str, Any]:
    """Names of enclosing functions that the body uses: a type defined there may be annotated."""
    found: dict[str, Any] = {}
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(fn, "__closure__", None) or (), strict=False):
        try:
            found[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return found


def _resolve_one(name: str, annotation: Any, namespace: dict[str, Any]) -> Any:
    if annotation is EMPTY:
        return Any
    try:
        return typing.get_type_hints(_Annotated(name, annotation), globalns=namespace, include_extras=True)[name]
    except Exception:  # an annotation is user code: whatever it raises, the function still runs
        return Any


def item_type(returned: Any) -> Any:
    """What a generator annotated to return `Iterator[T]`, `AsyncGenerator[T, …]` or the like yields; else Any."""
    arguments = typing.get_args(returned)
    origin = typing.get_origin(returned)
    name = getattr(origin, "__name__", "")
    return arguments[0] if arguments and name.endswith(("Iterator", "Iterable", "Generator")) else Any
