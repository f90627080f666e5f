"""Which of a file's callables a body means: a FunctionRequest's `function_name`, or Flash's `method` key."""

import dataclasses
from typing import Any

import msgspec

from flashmesh.dev.server.route_book import ChoiceMatch, QueueRoute, select
from flashmesh.functions.errors import FunctionNotFound, MalformedRequest
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import JSON, MSGPACK

_REQUEST_FIELDS = frozenset(
    {
        "function_name",
        "function_code",
        "class_name",
        "class_code",
        "method_name",
        "args",
        "kwargs",
        "constructor_args",
        "constructor_kwargs",
        "dependencies",
        "system_dependencies",
        "modules",
        "execution_type",
        "instance_id",
        "create_new_instance",
        "accelerate_downloads",
        "serialization_format",
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class Selected:
    """A callable and the body it is to get, without what selected it."""

    route: QueueRoute
    body: bytes
    content_type: str


def choose(choice: ChoiceMatch, body: bytes, content_type: str) -> Selected:
    """The callable a body names.

    Raises:
        MalformedRequest: it names none, and the path names none either; lists the names.
        FunctionNotFound: the file has none of that name; lists the names.
    """
    if choice.wanted is not None:
        raise FunctionNotFound(f"{_file(choice)} has no function `{choice.wanted}`. It has: {_names(choice)}.")
    document = _parse(body) if content_type == JSON else None
    given = document.get("input", document) if isinstance(document, dict) else None
    named = _named(given)
    route = select(choice, named)
    if route is None:
        if named is not None:
            raise FunctionNotFound(f"{_file(choice)} has no function `{named}`. It has: {_names(choice)}.")
        first = choice.routes[0]
        raise MalformedRequest(
            f"{_file(choice)} has several functions: {_names(choice)}. "
            f"Send it to {first.prefix}/{choice.verb} or another of them."
        )
    assert isinstance(given, dict)
    if _is_function_request(given):
        return Selected(route, _arguments(given), MSGPACK)
    rest = {key: value for key, value in given.items() if key not in ("function_name", "method")}
    return Selected(route, msgspec.json.encode({"input": rest}), JSON)


def _named(given: Any) -> str | None:
    """The name that a body's input carries."""
    if not isinstance(given, dict):
        return None
    name = given.get("function_name")
    if isinstance(given.get("class_name"), str):
        name = f"{given['class_name']}.{given.get('method_name', '__call__')}"
    if name is None:
        name = given.get("method")
    return name if isinstance(name, str) else None


def _is_function_request(given: dict[str, Any]) -> bool:
    """Flash's own form, not just a `function_name` among arguments."""
    return ("function_name" in given or "class_name" in given) and given.keys() <= _REQUEST_FIELDS and len(given) > 1


def _arguments(given: dict[str, Any]) -> bytes:
    if given.get("function_code") or given.get("class_code"):
        raise MalformedRequest("Source that comes with a call is not run here. Call a function of the project by name.")
    if given.get("serialization_format", "json") != "json":
        raise MalformedRequest(
            'Pickled arguments are not opened. Send them as JSON with "serialization_format": "json".'
        )
    args, kwargs = given.get("args") or [], given.get("kwargs") or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise MalformedRequest("`args` must be a list and `kwargs` an object.")
    return encode_arguments(tuple(args), kwargs)


def _parse(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from error


def _file(choice: ChoiceMatch) -> str:
    return choice.routes[0].file


def _names(choice: ChoiceMatch) -> str:
    return ", ".join(route.prefix.rpartition("/")[2] for route in choice.routes)
