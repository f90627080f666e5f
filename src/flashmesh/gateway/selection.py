"""Which of several callables a body means: a FunctionRequest's `function_name`, or Flash's `method` key. Pure."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import MalformedRequest
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.frames import JSON, MSGPACK

_REQUEST_FIELDS: Final = frozenset(
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


def given_input(body: bytes, content_type: str) -> dict[str, Any] | None:
    """The object in which a body may name a callable. Raises MalformedRequest."""
    if content_type != JSON:
        return None
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRequest(f"The body is not JSON: {error}.") from error
    given = document.get("input", document) if isinstance(document, dict) else None
    return given if isinstance(given, dict) else None


def name_in(given: dict[str, Any] | None) -> str | None:
    """The callable's name that a body's input carries."""
    if given is None:
        return None
    name = given.get("function_name")
    if isinstance(given.get("class_name"), str):
        name = f"{given['class_name']}.{given.get('method_name', '__call__')}"
    if name is None:
        name = given.get("method")
    return name if isinstance(name, str) else None


def pick(functions: Iterable[str], name: str) -> str | None:
    """The one callable id that `name` means: the id itself, a bare name, a method alone or with its class."""
    ends = [function for function in functions if function == name or function.endswith("." + name)]
    return ends[0] if len(ends) == 1 else None


def body_without_name(given: dict[str, Any]) -> tuple[bytes, str]:
    """The body a callable is to get, without what selected it, and its media type. Raises MalformedRequest."""
    if ("function_name" in given or "class_name" in given) and given.keys() <= _REQUEST_FIELDS and len(given) > 1:
        return _arguments(given), MSGPACK
    rest = {key: value for key, value in given.items() if key not in ("function_name", "method")}
    return msgspec.json.encode({"input": rest}), JSON


def _arguments(given: dict[str, Any]) -> bytes:
    """Flash's own form, not just a `function_name` among arguments."""
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
