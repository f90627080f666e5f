"""What documentation shows of a function: a value that fits a schema, the first line of a docstring. Pure."""

from collections.abc import Mapping
from typing import Any, Final

_EXAMPLES: Final[Mapping[str, Any]] = {
    "string": "text",
    "integer": 1,
    "number": 1.0,
    "boolean": True,
    "array": [],
    "object": {},
    "null": None,
}


def example_of(schema: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0) -> Any:
    """A value that fits the schema."""
    if depth > 8:
        return None
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return example_of(definitions.get(reference.rpartition("/")[2], {}), definitions, depth + 1)
    for key in ("default", "const"):
        if key in schema:
            return schema[key]
    for key in ("examples", "enum"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if schema.get(key):
            return example_of(schema[key][0], definitions, depth + 1)
    if schema.get("properties"):
        return {name: example_of(inner, definitions, depth + 1) for name, inner in schema["properties"].items()}
    if schema.get("items"):
        return [example_of(schema["items"], definitions, depth + 1)]
    kind = schema.get("type", "object")
    return _EXAMPLES.get(kind[0] if isinstance(kind, list) else kind, {})


def first_line(doc: str | None) -> str:
    """The first line of a docstring, without its full stop."""
    lines = (doc or "").strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else ""
