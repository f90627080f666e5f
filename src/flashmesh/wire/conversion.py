"""A decoded value as the type an annotation asks for: typed arguments and results.

JSON and MessagePack bring numbers, text, lists and dicts; annotations say dataclass, model, datetime, set, array.
msgspec converts what it knows; pydantic models and NumPy arrays, wherever they stand inside, come through its hook;
unions msgspec cannot tell apart are tried member by member; the rest is pydantic's, or stays as it came.
"""

import collections.abc
import dataclasses
import functools
import inspect
import pathlib
import re
import types
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import ValidationError
from flashmesh.wire import foreign
from flashmesh.wire.paths import type_name

Converter = Callable[[Any], Any]

_AS_THEY_COME: Final = (
    collections.abc.Callable, type, collections.abc.Iterator, collections.abc.AsyncIterator, collections.abc.Generator,
    collections.abc.AsyncGenerator, collections.abc.AsyncIterable, collections.abc.Awaitable, collections.abc.Coroutine,
)  # fmt: skip
_EXACT: Final = (str, int, float, bool, bytes, list, dict)
_PATH: Final = re.compile(r"(?P<what>.*?)(?: - at `(?P<key>key` in `)?\$(?P<path>.*)`)?$", re.DOTALL)
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")


class Mismatch(ValueError):
    """A value does not fit. `path` is where inside it: `[2].price`, empty for the whole."""

    def __init__(self, what: str, path: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.path = path


def convert(value: Any, annotation: Any) -> Any:
    """The value as the annotation's type. Raises ValidationError whose `field` is the path of what does not fit."""
    change = converter(annotation)
    if change is None:
        return value
    try:
        return change(value)
    except Mismatch as error:
        raise mismatch_error(error, "value") from error


def mismatch_error(error: Mismatch, name: str) -> ValidationError:
    """The ValidationError that says at which path below `name` what was wrong."""
    field = name + error.path
    return ValidationError(f"`{field}`: {error.what}. Send a value of the type the function declares.", field=field)


def converter(annotation: Any) -> Converter | None:
    """A function that converts or raises Mismatch; None when every value is right as it comes."""
    try:
        return _cached(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return _build(annotation)


@functools.lru_cache(maxsize=4096)
def _cached(annotation: Any) -> Converter | None:
    return _build(annotation)


def _build(annotation: Any) -> Converter | None:
    annotation = _strip(annotation)
    origin = typing.get_origin(annotation)
    if annotation in (Any, object, inspect.Parameter.empty, None, type(None)) or isinstance(annotation, typing.TypeVar):
        return None
    if (origin or annotation) in _AS_THEY_COME or isinstance(annotation, str | typing.ForwardRef):
        return None
    if _is_array_type(annotation):
        return _array_converter(annotation)
    if foreign.is_model_type(annotation):
        return functools.partial(_to_model, annotation)
    if annotation in _EXACT:
        return functools.partial(_exact_or, annotation)
    if not _has_constraints(annotation) and _msgspec_knows(annotation):
        return functools.partial(_by_msgspec, annotation)
    if origin in (typing.Union, types.UnionType) and not _has_constraints(annotation):
        return _union_converter(typing.get_args(annotation))
    return _by_pydantic(annotation)


def _strip(annotation: Any) -> Any:
    """Without what says nothing about values: Final, ClassVar, Annotated comments, a `type X = …` alias."""
    while True:
        origin = typing.get_origin(annotation)
        plain = origin is typing.Annotated and not _has_constraints(annotation)
        if plain or origin in (typing.Final, typing.ClassVar):
            annotation = typing.get_args(annotation)[0]
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def _has_constraints(annotation: Any) -> bool:
    """Whether marks that only pydantic obeys (`Field(gt=0)`, annotated_types), or its dataclasses, stand in it."""
    if "__is_pydantic_dataclass__" in getattr(annotation, "__dict__", ()):
        return True
    if typing.get_origin(annotation) is typing.Annotated:
        for mark in typing.get_args(annotation)[1:]:
            if type(mark).__module__.partition(".")[0] in ("pydantic", "annotated_types", "pydantic_core"):
                return True
    return any(_has_constraints(part) for part in typing.get_args(annotation))


def _msgspec_knows(annotation: Any) -> bool:
    try:
        msgspec.msgpack.Decoder(annotation, dec_hook=_hook)
    except (TypeError, NameError, AttributeError, ValueError, msgspec.MsgspecError):
        return False
    return True


def _exact_or(annotation: Any, value: Any) -> Any:
    return value if type(value) is annotation else _by_msgspec(annotation, value)


def _by_msgspec(annotation: Any, value: Any) -> Any:
    try:
        return msgspec.convert(value, annotation, dec_hook=_hook, str_keys=_has_text_keys(value))
    except msgspec.ValidationError as error:
        raise _translated(error) from error
    except RecursionError as error:
        raise Mismatch("is nested too deeply") from error
    except TypeError:
        return value  # a protocol inside: whether a value follows it shows when it is used


def _has_text_keys(value: Any) -> bool:
    """Whether the value may come from JSON, where a dict's int keys are text."""
    if isinstance(value, dict):
        return all(type(key) is str for key in value)
    return isinstance(value, list)


def _translated(error: msgspec.ValidationError) -> Mismatch:
    found = _PATH.fullmatch(str(error))
    assert found is not None  # the pattern matches any text
    what, path = found["what"], found["path"] or ""
    cause = error.__cause__
    if isinstance(cause, Mismatch):
        return Mismatch(cause.what, path + cause.path)
    missing = _MISSING.search(what)
    if missing is not None:
        return Mismatch("is missing", f"{path}.{missing[1]}")
    return Mismatch(f"a key is wrong: {what}" if found["key"] else what, path)


def _hook(wanted: Any, value: Any) -> Any:
    """msgspec's question about a type it does not know."""
    if _is_array_type(wanted):
        return _array_converter(wanted)(value)
    if foreign.is_model_type(wanted):
        return _to_model(wanted, value)
    plain = typing.get_origin(wanted) or wanted
    try:
        if plain is object or isinstance(value, plain):
            return value
    except TypeError:
        return value  # a protocol; msgspec asks the same afterwards and gives up
    if issubclass(plain, pathlib.PurePath) and isinstance(value, str):
        return plain(value)
    if issubclass(plain, complex) and isinstance(value, int | float):
        return plain(value)
    if plain.__module__ == "numpy" and isinstance(value, int | float | str | bool):
        return plain(value)
    raise Mismatch(f"Expected `{plain.__qualname__}`, got `{type_name(value)}`")


def _is_array_type(annotation: Any) -> bool:
    origin = typing.get_origin(annotation) or annotation
    return getattr(origin, "__module__", "") == "numpy" and getattr(origin, "__name__", "") == "ndarray"


def _array_converter(annotation: Any) -> Converter:
    """`numpy.ndarray`, or `NDArray[dtype]`: arrays as they come, cast to the dtype that is asked for; nested lists."""
    dtype = None
    arguments = typing.get_args(annotation)
    if len(arguments) == 2 and (marks := typing.get_args(arguments[1])) and isinstance(marks[0], type):
        dtype = marks[0]

    def change(value: Any) -> Any:
        import numpy as np  # the annotation is NumPy's: the user's module has imported it

        wanted = None if dtype is None or dtype.__name__ in _ABSTRACT_DTYPES else dtype
        if not isinstance(value, np.ndarray | np.generic | list | tuple | int | float | complex):
            raise Mismatch(f"Expected an array as nested lists, got `{type_name(value)}`")
        try:
            array = np.asarray(value, dtype=wanted)
        except (ValueError, TypeError, OverflowError) as error:
            raise Mismatch(f"Not an array of {getattr(wanted, '__name__', 'numbers')}: {error}") from error
        if array.dtype.hasobject and not isinstance(value, np.ndarray):
            raise Mismatch("Not an array: its parts are not numbers, or rows differ in length")
        return array

    return change


_ABSTRACT_DTYPES: Final = frozenset(
    {"generic", "number", "integer", "signedinteger", "unsignedinteger", "inexact", "floating", "complexfloating",
     "flexible", "character"}
)  # fmt: skip


def _to_model(model: Any, value: Any) -> Any:
    """A pydantic model's own validation, its first complaint as a Mismatch."""
    from pydantic import ValidationError as ModelError  # the annotation is pydantic's: it is imported

    if isinstance(value, model):
        return value
    try:
        return model.model_validate(value)
    except ModelError as error:
        raise _first_complaint(error) from error


def _first_complaint(error: Any) -> Mismatch:
    complaint = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in complaint["loc"])
    return Mismatch(complaint["msg"], path)


def _union_converter(members: tuple[Any, ...]) -> Converter | None:
    """The first member that fits, exact types first, then objects by how many of the value's keys they declare."""
    exact = tuple(kind for kind in map(_class_of, members) if kind is not None and kind is not dict)
    changes = [(member, converter(member)) for member in members]
    if any(change is None and member is not type(None) for member, change in changes):
        return None
    optional = type(None) in members

    def change(value: Any) -> Any:
        if (optional and value is None) or type(value) in exact:
            return value
        keys = value.keys() if isinstance(value, dict) else ()
        complaint: Mismatch | None = None
        for _, attempt in sorted(changes, key=lambda pair: -len(_fields(pair[0]) & set(keys))):
            try:
                if attempt is not None:
                    return attempt(value)
            except Mismatch as error:
                complaint = complaint or error
        names = " | ".join(getattr(member, "__name__", str(member)) for member in members)
        raise Mismatch(
            f"Expected `{names}`; {complaint.what if complaint else ''}", complaint.path if complaint else ""
        )

    return change


def _class_of(member: Any) -> type | None:
    return member if isinstance(member, type) else None


def _fields(member: Any) -> set[str]:
    if dataclasses.is_dataclass(member):
        return {field.name for field in dataclasses.fields(member)}
    for listed in ("model_fields", "__annotations__"):
        if isinstance(member, type) and hasattr(member, listed):
            return set(getattr(member, listed))
    return set()


def _by_pydantic(annotation: Any) -> Converter | None:
    """What only pydantic can express; None where it is not installed, or cannot either."""
    try:
        from pydantic import ConfigDict, PydanticUserError, TypeAdapter  # heavy: only for what nothing else can handle
        from pydantic import ValidationError as ModelError
    except ImportError:
        return None
    adapter: Any = None
    for config in (ConfigDict(arbitrary_types_allowed=True), None):
        try:
            adapter = TypeAdapter(annotation, config=config)
            break
        except Exception:  # pydantic raises many kinds for annotations it cannot express
            continue
    if adapter is None:
        return None

    def change(value: Any) -> Any:
        try:
            return adapter.validate_python(value)
        except ModelError as error:
            raise _first_complaint(error) from error
        except PydanticUserError:
            return value  # it names a type that this process cannot resolve

    return change
