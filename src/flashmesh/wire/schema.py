"""JSON schemas of parameters and results, for documentation pages: what cannot be described is any value."""

import inspect
import pathlib
import typing
from typing import Any, Final

import msgspec

from flashmesh.wire import foreign, json_values
from flashmesh.wire.annotations import EMPTY
from flashmesh.wire.body import Shape

_TEMPLATE: Final = "#/$defs/{name}"


def parameters_schema(shape: Shape) -> dict[str, Any]:
    """An object schema with a property per parameter; definitions of named types under `$defs`."""
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for parameter in shape.parameters:
        if parameter.name == shape.more:
            continue
        described = schema_of(shape.annotations[parameter.name])
        definitions.update(described.pop("$defs", {}))
        if parameter.name == shape.rest:
            described = {"type": "array", "items": described}
        properties[parameter.name] = _with_default(described, parameter.default)
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": list(shape.required)}
    if shape.more is None:
        schema["additionalProperties"] = False
    if definitions:
        schema["$defs"] = definitions
    return schema


def schema_of(annotation: Any) -> dict[str, Any]:
    """The schema of one type, `{}` when it cannot be described."""
    if annotation is Any or annotation is EMPTY:
        return {}
    if foreign.is_model_type(annotation):
        return dict(annotation.model_json_schema(ref_template="#/$defs/{model}"))
    try:
        (schema,), definitions = msgspec.json.schema_components(
            (annotation,), schema_hook=_hook, ref_template=_TEMPLATE
        )
    except (TypeError, NameError, NotImplementedError, AttributeError, ValueError):
        return _by_pydantic(annotation)
    used: dict[str, Any] = {}
    _lift(schema, used)
    for name, definition in definitions.items():
        _lift(definition, used)
        used[name] = definition
    return {**schema, "$defs": used} if used else schema


def _hook(kind: Any) -> dict[str, Any]:
    """msgspec's question about a type it does not know."""
    plain = typing.get_origin(kind) or kind
    if foreign.is_model_type(plain):
        return dict(plain.model_json_schema(ref_template="#/$defs/{model}"))
    if plain.__module__ == "numpy":
        return {"type": "array", "items": {}} if plain.__name__ == "ndarray" else {"type": "number"}
    if issubclass(plain, pathlib.PurePath):
        return {"type": "string", "format": "path"}
    return {}


def _lift(schema: Any, found: dict[str, Any]) -> None:
    """Move the `$defs` of nested schemas to `found`, where their references point."""
    if isinstance(schema, dict):
        found.update(schema.pop("$defs", {}))
        for part in list(schema.values()):
            _lift(part, found)
    elif isinstance(schema, list):
        for part in schema:
            _lift(part, found)


def _by_pydantic(annotation: Any) -> dict[str, Any]:
    try:
        from pydantic import TypeAdapter  # heavy: only for what msgspec cannot describe

        return dict(TypeAdapter(annotation).json_schema(ref_template="#/$defs/{model}"))
    except Exception:  # pydantic raises many kinds for what it cannot describe, or is not installed
        return {}


def _with_default(schema: dict[str, Any], default: Any) -> dict[str, Any]:
    if default is inspect.Parameter.empty:
        return schema
    try:
        return {**schema, "default": json_values.decode(json_values.encode(default))}
    except (TypeError, ValueError):
        return schema
