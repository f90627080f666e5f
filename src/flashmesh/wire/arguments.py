"""A call's arguments as bytes, and the bytes of a request as the arguments of a function.

Between Python processes arguments are MessagePack `[args, kwargs, init]` and arrive as they were given; annotations
bring back what MessagePack flattened, and a value they do not fit is passed on unchanged, as Python itself would. An
HTTP body is JSON; how its value becomes arguments is wire/body.py, and there the annotations are binding.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from flashmesh.functions.errors import NotEncodable, ValidationError
from flashmesh.wire import annotations, json_values, msgpack_values
from flashmesh.wire.annotations import EMPTY
from flashmesh.wire.body import Shape, arguments_of, unwrap
from flashmesh.wire.conversion import Converter, Mismatch, converter, mismatch_error
from flashmesh.wire.frames import BINARY, MSGPACK
from flashmesh.wire.json_values import check_json
from flashmesh.wire.parts import Parts
from flashmesh.wire.schema import parameters_schema, schema_of
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.wire.values import media_type

__all__ = ["Binder", "Bound", "argument_parts", "check_json", "encode_arguments"]

Init = tuple[tuple[Any, ...] | list[Any], dict[str, Any]]
_BYTES = (bytes, bytearray, memoryview)


def encode_arguments(
    args: tuple[Any, ...] | list[Any],
    kwargs: dict[str, Any],
    *,
    init: Init | None = None,
    signer: Signer | None = None,
    names: Sequence[str] | None = None,
    context: Purpose | None = None,
) -> bytes:
    """The MSGPACK payload of a call, as `argument_parts`, joined."""
    return bytes(argument_parts(args, kwargs, init=init, signer=signer, names=names, context=context))


def argument_parts(
    args: tuple[Any, ...] | list[Any],
    kwargs: dict[str, Any],
    *,
    init: Init | None = None,
    signer: Signer | None = None,
    names: Sequence[str] | None = None,
    context: Purpose | None = None,
) -> bytes | Parts:
    """The MSGPACK payload of a call, for a link that sends it at once: large arrays in it are still the caller's.

    Args:
        init: constructor arguments, for a method of a class.
        names: the function's parameter names, for errors.
    Raises:
        NotEncodable: a TypeError that names the argument and the path inside it.
    """
    call = (args, kwargs, init)
    try:
        return msgpack_values.encode_parts(call, signer, context)
    except NotEncodable:
        for name, value in _labelled(args, kwargs, init, names or ()):
            msgpack_values.encode(value, signer, context, name=name)
        raise


def _labelled(
    args: Sequence[Any], kwargs: Mapping[str, Any], init: Init | None, names: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    for index, value in enumerate(args):
        yield names[index] if index < len(names) else f"argument {index + 1}", value
    yield from kwargs.items()
    if init is not None:
        for name, value in _labelled(init[0], init[1], None, ()):
            yield f"constructor {name}", value


class Bound(NamedTuple):
    """Arguments ready for the call: `fn(*args, **kwargs)`, and `(args, kwargs)` of the constructor or None."""

    args: list[Any]
    kwargs: dict[str, Any]
    init: tuple[list[Any], dict[str, Any]] | None = None


class Binder:
    """What is known about a callable's parameters, worked out once; `bind` then costs no introspection.

    Args:
        fn: a function, method, class or any callable.
        bound: the first parameter (self, cls) is given by others and left out.
    """

    def __init__(self, fn: Callable[..., Any], *, bound: bool = False) -> None:
        signature = annotations.signature_of(fn)
        self._types = annotations.resolve(fn, signature)
        parameters = list(signature.parameters.values())[1 if bound else 0 :]
        self.name = getattr(fn, "__qualname__", type(fn).__qualname__)
        self._shape = shape = Shape(self.name, bound, parameters, self._types)
        self._converters = {
            parameter.name: change for parameter in parameters if (change := self._converter(parameter)) is not None
        }
        self._bytes_parameter = next(
            (name for name in shape.positional + shape.keyword_only if self._is_bytes(name)),
            next((name for name in shape.positional if self._types[name] is Any), None),
        )
        self._change_result = converter(self._types["return"])
        self._change_item = converter(annotations.item_type(self._types["return"]))

    def bind(
        self, payload: bytes, content_type: str, *, signer: Signer | None = None, context: Purpose | None = None
    ) -> Bound:
        """The arguments in a payload.

        Raises:
            MalformedRequest: not JSON.
            ValidationError: missing, unknown or mistyped; `field` is its path, such as `items[2].price`.
            UntrustedPayload: a pickled value without a valid signature for `context`.
        """
        media = media_type(content_type)
        if media == MSGPACK:
            value = msgpack_values.decode(payload, signer, context)
            if _is_arguments(value):
                args, kwargs, init = value
                return self.bind_python(args, kwargs, init)
            return self._bind_body(value)
        if media == BINARY:
            return self._bind_bytes(payload)
        return self._bind_body(json_values.decode(payload) if payload.strip() else None)

    def bind_python(self, args: Sequence[Any], kwargs: Mapping[str, Any], init: Any = None) -> Bound:
        """Arguments as a Python caller gave them, typed where possible. Raises ValidationError for a wrong number."""
        bound = Bound(list(args), dict(kwargs), None if init is None else (init[0], init[1]))
        self._shape.check(len(bound.args), bound.kwargs)
        if self._converters:
            self._convert(bound, lenient=True)
        return bound

    def convert_result(self, value: Any) -> Any:
        """A decoded result as the type the function declares to return, or as it came when it does not fit."""
        return _leniently(self._change_result, value)

    def convert_item(self, value: Any) -> Any:
        """The same for one item of a generator."""
        return _leniently(self._change_item, value)

    def parameters_schema(self) -> dict[str, Any]:
        """JSON schema of the object that holds the arguments by name."""
        return parameters_schema(self._shape)

    def returns_schema(self) -> dict[str, Any] | None:
        """JSON schema of the result, of an item for a generator; None when nothing is declared."""
        declared = self._types["return"]
        item = annotations.item_type(declared)
        return None if declared is Any else schema_of(declared if item is Any else item)

    def _converter(self, parameter: inspect.Parameter) -> Converter | None:
        wanted = self._types[parameter.name]
        change = converter(wanted)
        if change is None or parameter.default is not None or parameter.default is EMPTY:
            return change
        return lambda value: None if value is None else change(value)  # `x: int = None` takes None

    def _is_bytes(self, name: str) -> bool:
        wanted = self._types[name]
        return wanted in _BYTES or any(part in _BYTES for part in getattr(wanted, "__args__", ()) or ())

    def _bind_body(self, body: Any) -> Bound:
        if type(body) is dict and len(body) == 1:
            value = body.get("input")
            if type(value) is dict and value and self._shape.is_exactly(value):
                bound = Bound([], value)
                if self._converters:
                    self._convert(bound, lenient=False)
                return bound
        value, direct = unwrap(body, self._shape)
        bound = Bound(*(direct if direct is not None else arguments_of(value, self._shape)))
        try:
            self._shape.check(len(bound.args), bound.kwargs)
            self._convert(bound, lenient=False)
        except ValidationError as error:
            first = self._shape.positional[0] if self._shape.positional else None
            if (
                first is None
                or error.field != first
                or bound.args != [value or {}]
                or not isinstance(bound.args[0], dict)
            ):
                raise
            # A whole object that the first parameter cannot be: say which key was wrong, or that nothing was sent.
            key = next((key for key in value or () if key != "input"), "input")
            raise (self._shape.unknown(key) if value else self._shape.missing(first)) from error
        return bound

    def _bind_bytes(self, payload: bytes) -> Bound:
        name = self._bytes_parameter
        if name is None:
            raise ValidationError(f"{self.name} takes no bytes. Send JSON with Content-Type: application/json.")
        bound = self._shape.place({name: payload})
        self._shape.check(len(bound[0]), bound[1])
        return Bound(*bound)

    def _convert(self, bound: Bound, *, lenient: bool) -> None:
        shape, converters = self._shape, self._converters
        for index, value in enumerate(bound.args):
            name = shape.positional[index] if index < len(shape.positional) else shape.rest
            if name in converters:
                label = name if index < len(shape.positional) else f"{name}[{index - len(shape.positional)}]"
                bound.args[index] = _changed(converters[name], value, str(label), lenient)
        for name, value in bound.kwargs.items():
            change = converters.get(name if name in shape.named else shape.more or "")
            if change is not None:
                bound.kwargs[name] = _changed(change, value, name, lenient)


def _is_arguments(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], list) and isinstance(value[1], dict)


def _changed(change: Converter, value: Any, name: str, lenient: bool) -> Any:
    try:
        return change(value)
    except Mismatch as error:
        if lenient:
            return value
        raise mismatch_error(error, name) from error


def _leniently(change: Converter | None, value: Any) -> Any:
    return value if change is None else _changed(change, value, "value", True)
