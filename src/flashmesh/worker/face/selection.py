"""Which of an endpoint's callables a request means: by path, by the body's own words, or because there is only one."""

from collections.abc import Callable
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import AmbiguousFunction
from flashmesh.wire.body import REQUEST_KEYS
from flashmesh.wire.frames import JSON
from flashmesh.worker.callables import BoundCallable, Callables

_METHOD: Final = "method"
_FUNCTION: Final = "function_name"
_ARGUMENTS: Final = frozenset({"args", "kwargs"})
"""Where a FunctionRequest has its arguments: then all of it is needed to bind them."""
_NAMES: Final = b'"function_name"'


def select(
    callables: Callables,
    name: str | None,
    payload: bytes,
    content_type: str,
    *,
    passed_on: Callable[[], BoundCallable] | None = None,
) -> tuple[BoundCallable, bytes]:
    """The callable a request is for, and the payload to bind to it.

    Args:
        name: what the path says: an id, a bare name, a class (then the body's `method` selects), or None.
        passed_on: what is called with a FunctionRequest that names a function nobody here serves; None: such a request
            is not looked for.
    Returns:
        The payload is the one given, but for a `method` or `function_name` key that selected and is taken out of
        `input`.
    Raises:
        FunctionNotFound: nothing of that name.
        AmbiguousFunction: nothing says which; lists the ids.
    """
    if name is None and len(callables) == 1 and (passed_on is None or _NAMES not in payload):
        return callables.only(), payload
    if name is not None and name in callables:
        return callables[name], payload
    chosen = _chosen_by_body(callables, name, payload) if content_type == JSON else None
    if chosen is not None:
        return chosen
    if passed_on is not None and name is None and content_type == JSON:
        request = _request_for_others(payload)
        if request is not None:
            return passed_on(), msgspec.json.encode({"request": request})
    return (callables.only() if name is None else callables.find(name)), payload


def _chosen_by_body(callables: Callables, name: str | None, payload: bytes) -> tuple[BoundCallable, bytes] | None:
    try:
        body = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # binding will say what is wrong with it
    given = body.get("input") if isinstance(body, dict) else None
    if not isinstance(given, dict):
        return None
    for key in (_FUNCTION, _METHOD):
        word = given.get(key)
        if not isinstance(word, str):
            continue
        found = _named(callables, f"{name}.{word}" if name and key == _METHOD else word)
        if found is not None:
            whole = key == _FUNCTION and not given.keys().isdisjoint(_ARGUMENTS) and given.keys() <= REQUEST_KEYS
            return found, payload if whole else _without(body, given, key)
    return None


def _request_for_others(payload: bytes) -> dict[str, Any] | None:
    """The FunctionRequest in a body that names a function, none of ours having been found in it."""
    try:
        body = msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    given = body.get("input") if isinstance(body, dict) else None
    if isinstance(given, dict) and isinstance(given.get(_FUNCTION), str) and given.keys() <= REQUEST_KEYS:
        return given
    return None


def _named(callables: Callables, word: str) -> BoundCallable | None:
    try:
        return callables.find(word)
    except AmbiguousFunction:
        raise
    except LookupError:
        return None


def _without(body: dict[str, Any], given: dict[str, Any], key: str) -> bytes:
    rest = {other: value for other, value in given.items() if other != key}
    return msgspec.json.encode({**body, "input": rest})
