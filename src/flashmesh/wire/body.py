"""The body mapping: how the value of an HTTP body becomes a function's arguments.

Envelope: an object with `input` and otherwise only RunPod's other keys. Inside it (or in a bare body): when all keys
are parameter names they are keyword arguments; when none is, the whole value goes to the first parameter (`{}` too when
that one is required); when only some are, the whole value if the only parameter takes an object, else an error that
names the unknown key. Nothing, null and `{}` are the same.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flashmesh.functions.errors import UntrustedPayload, ValidationError
from flashmesh.wire import foreign
from flashmesh.wire.annotations import EMPTY

ENVELOPE_KEYS: Final = frozenset({"input", "webhook", "policy", "s3Config", "id", "metadata"})
EMPTY_KEY: Final = "__empty"
"""Flash's clients send it to say that an object has no keys."""
REQUEST_KEYS: Final = frozenset(
    {
        "function_name", "function_code", "args", "kwargs", "dependencies", "system_dependencies", "modules",
        "execution_type", "class_name", "class_code", "constructor_args", "constructor_kwargs", "method_name",
        "instance_id", "create_new_instance", "accelerate_downloads", "serialization_format",
    }
)  # fmt: skip
"""Fields of Flash's FunctionRequest."""

Placed = tuple[list[Any], dict[str, Any]]


class Shape:
    """A callable's parameters as the mapping sees them.

    Attributes:
        positional: names that may be given by position, in order; keyword_only: the others.
        rest, more: the names of `*args` and `**kwargs`, or None.
        first: the parameter a whole value goes to. known: the keys that name a parameter.
    """

    def __init__(
        self, name: str, bound: bool, parameters: Sequence[inspect.Parameter], annotations: Mapping[str, Any]
    ) -> None:
        kinds = inspect.Parameter
        self.name = name
        self.parameters = parameters
        self.annotations = annotations
        self.is_method = bound
        self.positional = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
        self.keyword_only = [p.name for p in parameters if p.kind is kinds.KEYWORD_ONLY]
        self.rest = next((p.name for p in parameters if p.kind is kinds.VAR_POSITIONAL), None)
        self.more = next((p.name for p in parameters if p.kind is kinds.VAR_KEYWORD), None)
        self.named = frozenset(self.positional + self.keyword_only)
        self.first = next(iter(self.positional + self.keyword_only), None)
        self.known = self.named if self.rest is None else self.named | {self.rest}
        self._position_only = sum(p.kind is kinds.POSITIONAL_ONLY for p in parameters)
        self._index = {name: index for index, name in enumerate(self.positional)}
        self._plain = self.rest is None and self.more is None and not bound
        self.required = [p.name for p in parameters if p.name in self.named and p.default is EMPTY]
        self._required = frozenset(self.required)

    def is_exactly(self, values: dict[str, Any]) -> bool:
        """Whether these are arguments by name with nothing missing and nothing else: most calls, and no more to do."""
        return self._plain and self._position_only == 0 and self._required <= values.keys() <= self.named

    def check(self, given: int, kwargs: Mapping[str, Any]) -> None:
        """Raises ValidationError naming what is wrong unless `given` positional arguments and `kwargs` make a call."""
        if given > len(self.positional) and self.rest is None:
            takes = "no arguments" if not self.positional else f"at most {len(self.positional)} arguments"
            raise ValidationError(f"{self.name} takes {takes} by position; {given} were given. Leave out the others.")
        for name in kwargs:
            index = self._index.get(name)
            if index is None:
                if name not in self.named and self.more is None:
                    raise self._misplaced(name) if name == self.rest else self.unknown(name)
            elif index < given:
                raise ValidationError(f"{self.name} got `{name}` twice. Send it once.", field=name)
            elif index < self._position_only and self.more is None:
                raise ValidationError(f"{self.name} takes `{name}` by position only. Send it so.", field=name)
        for name in self.required:
            if name not in kwargs and self._index.get(name, given) >= given:
                raise self.missing(name)

    def missing(self, name: str) -> ValidationError:
        """The error for a parameter that was not given."""
        known = ", ".join(f"`{required}`" for required in self.required)
        return ValidationError(f"{self.name} needs `{name}`. Send a value for each of {known}.", field=name)

    def _misplaced(self, name: str) -> ValidationError:
        before = ", ".join(f"`{positional}`" for positional in self.positional)
        what = f"a list, with {before} beside it" if before else "a list"
        return ValidationError(f"{self.name} takes `{name}` as {what}. Send it so.", field=name)

    def unknown(self, key: str) -> ValidationError:
        """The error for a key that is no parameter, with the nearest that is."""
        if not self.named:
            return ValidationError(f"{self.name} takes no arguments, so `{key}` cannot be given. Send {{}}.", field=key)
        near = difflib.get_close_matches(key, self.named, n=1, cutoff=0.5)
        names = ", ".join(f"`{name}`" for name in self.positional + self.keyword_only)
        advice = f"Did you mean `{near[0]}`?" if near else f"Its parameters are {names}."
        return ValidationError(f"{self.name} has no parameter `{key}`. {advice}", field=key)

    def place(self, values: dict[str, Any]) -> Placed:
        """Values by name as args and kwargs: what cannot be passed by name stands in args."""
        tail = values.get(self.rest) if self.rest is not None else None
        by_position = self.positional if isinstance(tail, list) else self.positional[: self._position_only]
        args: list[Any] = []
        kwargs = dict(values)
        for name in by_position:
            if name not in kwargs:
                return args, kwargs
            args.append(kwargs.pop(name))
        if self.rest is not None and isinstance(tail, list):
            args += kwargs.pop(self.rest)
        return args, kwargs

    def takes_object(self) -> bool:
        """Whether there is one parameter, and a whole JSON object may be its value."""
        only = self.positional + self.keyword_only
        return len(only) == 1 and self.more is None and _takes_object(self.annotations[only[0]])


def _takes_object(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _takes_object(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_takes_object(member) for member in typing.get_args(annotation))
    kind = origin or annotation
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return True
    if not isinstance(kind, type):
        return False
    has_fields = dataclasses.is_dataclass(kind) or hasattr(kind, "__struct_fields__") or foreign.is_model_type(kind)
    return has_fields or issubclass(kind, Mapping)  # a TypedDict is a dict


def unwrap(body: Any, shape: Shape) -> tuple[Any, Placed | None]:
    """The value inside the envelope, if there is one; or the arguments themselves when it is a FunctionRequest.

    Raises UntrustedPayload for a FunctionRequest with pickled arguments.
    """
    value = body
    if isinstance(body, dict) and "input" in body and body.keys() <= ENVELOPE_KEYS:
        value = body["input"]
    if isinstance(value, dict):
        if EMPTY_KEY in value and EMPTY_KEY not in shape.named:
            value = {key: part for key, part in value.items() if key != EMPTY_KEY}
        if shape.is_method and "method" in value and "method" not in shape.named:
            value = {key: part for key, part in value.items() if key != "method"}  # it chose this method
        if _is_function_request(value, shape):
            return value, _request_arguments(value)
    return value, None


def _is_function_request(value: dict[str, Any], shape: Shape) -> bool:
    return (
        isinstance(value.get("function_name"), str)
        and "function_name" not in shape.named
        and shape.more is None
        and value.keys() <= REQUEST_KEYS
    )


def _request_arguments(request: dict[str, Any]) -> Placed:
    args, kwargs = request.get("args") or [], request.get("kwargs") or {}
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise ValidationError("`args` must be a list and `kwargs` an object. Send them so.", field="args")
    if (args or kwargs) and request.get("serialization_format", "cloudpickle") != "json":
        raise UntrustedPayload(
            'Pickled arguments are not opened. Send them as JSON with "serialization_format": "json".'
        )
    return list(args), dict(kwargs)


def arguments_of(value: Any, shape: Shape) -> Placed:
    """The mapping itself. Raises ValidationError for a key that is no parameter."""
    if value is None:
        value = {}
    first = shape.first
    if not isinstance(value, dict):
        return _whole(value, first, shape)
    if not value:
        return _whole(value, first, shape) if first is not None and first in shape.required else ([], {})
    if value.keys() <= shape.known:
        return shape.place(value)
    unknown = [key for key in value if key not in shape.known]
    if len(unknown) == len(value):
        if shape.more is not None and (first is None or first not in shape.required):
            return [], value
        return _whole(value, first, shape)
    if shape.more is not None:
        return shape.place(value)
    if shape.takes_object():
        return _whole(value, first, shape)
    raise shape.unknown(unknown[0])


def _whole(value: Any, first: str | None, shape: Shape) -> Placed:
    """The whole value as the first parameter."""
    if first is None:
        if shape.rest is not None:
            return (list(value) if isinstance(value, list) else [value]), {}
        if isinstance(value, dict) and value:
            raise shape.unknown(next(iter(value)))
        raise ValidationError(f"{shape.name} takes no arguments. Send {{}} or nothing.")
    return ([value], {}) if first in shape.positional else ([], {first: value})
