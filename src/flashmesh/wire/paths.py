"""Where in a value something stands, in the words a reader of the value would use: `result.users[2].price`."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from flashmesh.functions.errors import NotEncodable
from flashmesh.wire import foreign

SENDABLE: Final = (
    "Convert it to one of: JSON types, bytes, datetime, dataclass, TypedDict, pydantic model, NumPy array."
)
_DEPTH: Final = 200


def type_name(value: object) -> str:
    """`module.Name` of the value's type; builtins without the module."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def find(value: Any, wanted: Callable[[Any], bool], path: str = "value") -> str | None:
    """The path of the first part that is wanted, keys included; None when there is none."""
    return _find(value, wanted, path, 0)


def _find(value: Any, wanted: Callable[[Any], bool], path: str, depth: int) -> str | None:
    if wanted(value):
        return path
    if depth < _DEPTH:
        for step, part in _parts(value):
            found = _find(part, wanted, path + step, depth + 1)
            if found is not None:
                return found
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, str | bytes | bytearray | memoryview):
        return
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield _key_step(key), part
            yield f" (the key {key!r})", key
    elif isinstance(value, list | tuple | set | frozenset):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
    elif foreign.is_model(value):
        for name in type(value).model_fields:
            yield f".{name}", getattr(value, name)
    elif hasattr(type(value), "__struct_fields__"):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name, None)
    elif foreign.is_array(value) and value.dtype.kind in "fc":
        yield from _array_parts(value)


def _array_parts(array: Any) -> Iterator[tuple[str, Any]]:
    """Only what a search can be for: the first element that is no number."""
    import numpy as np  # only reached with an array in hand

    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        index = tuple(int(part) for part in bad[0])
        yield "".join(f"[{part}]" for part in index), array[index].item()


def _key_step(key: Any) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def is_not_finite(value: Any) -> bool:
    """NaN or an infinity, of Python or NumPy."""
    if foreign.is_scalar(value) and value.dtype.kind == "f":
        value = value.item()
    return isinstance(value, float) and not math.isfinite(value)


def not_encodable(whole: Any, part: Any, name: str, what: str = "") -> NotEncodable:
    """The error that names where in `whole`, known as `name`, the `part` stands that cannot be sent, and its type."""
    path = find(whole, lambda value: value is part, name)
    where = f"`{path}`" if path else "A value"
    return NotEncodable(f"{where} is {what or f'of type {type_name(part)}'}, which cannot be sent. {SENDABLE}")
