"""Arguments of a call: the body mapping row by row, Python callers, bytes, and what is said when they do not fit."""

import dataclasses
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, TypedDict

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.functions.errors import MalformedRequest, NotEncodable, UntrustedPayload, ValidationError
from flashmesh.wire.arguments import Binder, encode_arguments
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.wire.values import encode


class Model(pydantic.BaseModel):
    price: float


@dataclasses.dataclass
class Order:
    items: list[Model]


class Movie(TypedDict):
    title: str


def nothing() -> None: ...
def one(x: int) -> None: ...
def optional(x: int = 1) -> None: ...
def implicit(x: int = None) -> None: ...  # noqa: RUF013 - people write it so
def two(name: str, count: int = 1) -> None: ...
def takes_dict(data: dict[str, Any]) -> None: ...
def takes_movie(movie: Movie) -> None: ...
def takes_model(item: Model) -> None: ...
def takes_order(order: Order | None) -> None: ...
def untyped(data): ...
def dict_and_more(data: dict[str, Any], n: int = 0) -> None: ...
def keyword(*, x: int, y: int = 2) -> None: ...
def rest(*values: int) -> None: ...
def first_and_rest(a: int, *values: int) -> None: ...
def more(**options: int) -> None: ...
def first_and_more(a: int, **options: Any) -> None: ...
def optional_and_more(a: int = 0, **options: Any) -> None: ...
def position_only(a: int, /, b: int = 0) -> None: ...
def named_input(input: dict[str, Any]) -> None: ...
def items(items: list[Model]) -> None: ...
def moment(at: dt.datetime) -> None: ...
def data(data: bytes, name: str = "") -> None: ...
def maybe_data(name: str = "", data: bytes | None = None) -> None: ...
def array(a: np.ndarray) -> None: ...


def bind(fn: Callable[..., Any], body: Any) -> tuple[list[Any], dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    bound = Binder(fn).bind(raw, JSON)
    return bound.args, bound.kwargs


TABLE: list[tuple[Callable[..., Any], Any, list[Any], dict[str, Any]]] = [
    # all keys are parameter names: keyword arguments
    (one, {"x": 1}, [], {"x": 1}),
    (two, {"name": "n", "count": 2}, [], {"name": "n", "count": 2}),
    (two, {"name": "n"}, [], {"name": "n"}),
    (keyword, {"x": 1}, [], {"x": 1}),
    (takes_dict, {"data": {"a": 1}}, [], {"data": {"a": 1}}),
    (position_only, {"a": 1, "b": 2}, [1], {"b": 2}),
    # none is: the whole value to the first parameter
    (takes_dict, {"a": 1}, [{"a": 1}], {}),
    (takes_movie, {"title": "t"}, [{"title": "t"}], {}),
    (takes_model, {"price": 1}, [Model(price=1)], {}),
    (takes_order, {"items": [{"price": 1}]}, [Order([Model(price=1)])], {}),
    (untyped, {"a": 1}, [{"a": 1}], {}),
    (dict_and_more, {"a": 1}, [{"a": 1}], {}),
    (untyped, [1, 2], [[1, 2]], {}),
    (untyped, "text", ["text"], {}),
    (one, 5, [5], {}),
    (keyword, 5, [], {"x": 5}),
    # {} too when one is required
    (takes_dict, {}, [{}], {}),
    (untyped, {"input": {}}, [{}], {}),
    (optional, {}, [], {}),
    # some are: the whole value, if the only parameter takes an object
    (takes_dict, {"data": 1, "other": 2}, [{"data": 1, "other": 2}], {}),
    (untyped, {"data": 1, "other": 2}, [{"data": 1, "other": 2}], {}),
    # the envelope, and what is not one
    (one, {"input": {"x": 1}}, [], {"x": 1}),
    (one, {"input": 5}, [5], {}),
    (one, {"input": {"x": 1}, "webhook": "w", "policy": {}, "s3Config": {}, "id": "i", "metadata": {}}, [], {"x": 1}),
    (untyped, {"input": 1, "other": 2}, [{"input": 1, "other": 2}], {}),
    (named_input, {"input": {"input": {"a": 1}}}, [], {"input": {"a": 1}}),
    (named_input, {"input": {"a": 1}}, [{"a": 1}], {}),
    # null, nothing, Flash's empty marker
    (nothing, {}, [], {}),
    (nothing, None, [], {}),
    (nothing, b"", [], {}),
    (nothing, b" \n", [], {}),
    (nothing, {"input": None}, [], {}),
    (nothing, {"input": {}}, [], {}),
    (nothing, {"input": {"__empty": True}}, [], {}),
    (optional, {"input": None}, [], {}),
    (one, {"input": {"__empty": True, "x": 1}}, [], {"x": 1}),
    # *args and **kwargs
    (rest, [1, 2], [1, 2], {}),
    (rest, 1, [1], {}),
    (rest, {"values": [1, 2]}, [1, 2], {}),
    (rest, {}, [], {}),
    (first_and_rest, {"a": 1, "values": [2, 3]}, [1, 2, 3], {}),
    (first_and_rest, {"a": 1}, [], {"a": 1}),
    (more, {"a": 1, "b": 2}, [], {"a": 1, "b": 2}),
    (more, {}, [], {}),
    (first_and_more, {"a": 1, "b": 2}, [], {"a": 1, "b": 2}),
    (optional_and_more, {"b": 2}, [], {"b": 2}),
    # types
    (implicit, {"x": None}, [], {"x": None}),
    (moment, {"at": "2020-01-02T00:00:00Z"}, [], {"at": dt.datetime(2020, 1, 2, tzinfo=dt.UTC)}),
    (data, {"data": "YWI="}, [], {"data": b"ab"}),
    # Flash's request object
    (two, {"input": {"function_name": "two", "args": ["n"], "kwargs": {"count": 2}, "serialization_format": "json"}},
     ["n"], {"count": 2}),
    (nothing, {"input": {"function_name": "nothing", "args": []}}, [], {}),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "body", "args", "kwargs"), TABLE, ids=lambda part: getattr(part, "__name__", str(part)))
def test_a_body_becomes_these_arguments(
    fn: Callable[..., Any], body: Any, args: list[Any], kwargs: dict[str, Any]
) -> None:
    """The body mapping, row by row."""
    assert bind(fn, body) == (args, kwargs)


REFUSED: list[tuple[Callable[..., Any], Any, str, str]] = [
    (one, {}, "x", "needs `x`"),
    (one, {"input": None}, "x", "needs `x`"),
    (one, b"", "x", "needs `x`"),
    (two, {"count": 1}, "name", "needs `name`"),
    (keyword, {"y": 1}, "x", "needs `x`"),
    (two, {"nam": "n"}, "nam", "Did you mean `name`?"),
    (two, {"name": "n", "cuont": 1}, "cuont", "Did you mean `count`?"),
    (two, {"name": "n", "zzzz": 1}, "zzzz", "Its parameters are `name`, `count`."),
    (dict_and_more, {"data": {}, "m": 1}, "m", "has no parameter `m`"),
    (one, {"x": "1"}, "x", "Expected `int`"),
    (one, [1], "x", "Expected `int`"),
    (one, {"input": {"x": 1}, "other": 2}, "other", "has no parameter `other`"),
    (items, {"items": [{"price": 1}, {}, {"price": 2}]}, "items[1].price", "required"),
    (items, {"items": [{"price": 1}, {"price": 1}, {"price": "x"}]}, "items[2].price", "number"),
    (items, [{"price": "x"}], "items[0].price", "number"),
    (takes_order, {"items": [{"price": "x"}]}, "order.items[0].price", "number"),
    (rest, [1, "a"], "values[1]", "Expected `int`"),
    (rest, {"values": 1}, "values", "as a list"),
    (first_and_rest, {"values": [1]}, "values", "with `a` beside it"),
    (more, {"a": "b"}, "a", "Expected `int`"),
    (nothing, {"a": 1}, "a", "takes no arguments"),
]


@pytest.mark.parametrize(
    ("fn", "body", "field", "text"), REFUSED, ids=lambda part: getattr(part, "__name__", str(part))
)
def test_a_body_that_does_not_fit_names_the_field(fn: Callable[..., Any], body: Any, field: str, text: str) -> None:
    """Missing, unknown and mistyped arguments: ValidationError with the path, and the nearest name."""
    with pytest.raises(ValidationError) as caught:
        bind(fn, body)
    assert caught.value.field == field
    assert text in str(caught.value)


def test_other_refusals() -> None:
    """A scalar for a function without parameters, broken JSON, pickled request objects, bytes nobody takes."""
    with pytest.raises(ValidationError, match="takes no arguments"):
        bind(nothing, 5)
    with pytest.raises(MalformedRequest):
        bind(one, b"{")
    with pytest.raises(UntrustedPayload, match="serialization_format"):
        bind(one, {"input": {"function_name": "one", "args": ["gASVBA=="]}})
    with pytest.raises(ValidationError, match="takes no bytes"):
        Binder(one).bind(b"ab", BINARY)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-10, 10), st.text(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["x", "y", "data", "input", "id", "method", "__empty"]), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(st.sampled_from([row[0] for row in TABLE]), json_values)
def test_any_body_is_arguments_or_a_named_error(fn: Callable[..., Any], body: Any) -> None:
    """What binds can be called; what does not raises ValidationError (or UntrustedPayload), never anything else."""
    try:
        args, kwargs = bind(fn, body)
    except (ValidationError, UntrustedPayload):
        return
    fn(*args, **kwargs)


@given(json_values)
def test_an_envelope_changes_nothing(value: Any) -> None:
    """A value binds the same bare and inside `input`, unless it is an envelope itself."""
    if isinstance(value, dict) and "input" in value:
        return
    for fn in (untyped, takes_dict, optional):
        outcomes = []
        for body in (value, {"input": value}):
            try:
                outcomes.append(bind(fn, body))
            except ValidationError as error:
                outcomes.append((str(error), {}))
        assert outcomes[0] == outcomes[1]


def test_methods_leave_out_self_and_the_method_key() -> None:
    """Flash's `method` key chose the method; it is no argument unless the method has one of that name."""

    class Counter:
        def inc(self, by: int = 1) -> int:
            return by

        def call(self, method: str) -> None: ...

    assert Binder(Counter.inc, bound=True).bind(b'{"input":{"method":"inc","by":2}}', JSON).kwargs == {"by": 2}
    assert Binder(Counter.inc, bound=True).bind(b'{"input":{"method":"inc"}}', JSON).kwargs == {}
    assert Binder(Counter.call, bound=True).bind(b'{"method":"x"}', JSON).kwargs == {"method": "x"}
    assert Binder(Counter().inc).bind(b"3", JSON).args == [3]


def test_raw_bytes_are_the_first_bytes_parameter() -> None:
    """An octet-stream body is not parsed."""
    assert Binder(data).bind(b"\x00{", BINARY) == ([], {"data": b"\x00{"}, None)
    assert Binder(maybe_data).bind(b"ab", BINARY).kwargs == {"data": b"ab"}
    assert Binder(untyped).bind(b"ab", BINARY).kwargs == {"data": b"ab"}


def test_python_arguments_arrive_as_they_were_given() -> None:
    """Positional, keyword and constructor arguments; annotations bring models and tuples back."""

    def fn(item: Model, pair: tuple[int, int], *, when: dt.date, a: Any = None) -> None: ...

    payload = encode_arguments(
        [Model(price=1)], {"pair": (1, 2), "when": dt.date(2020, 1, 1), "a": np.arange(3)}, init=([1], {"k": {2}})
    )
    bound = Binder(fn).bind(payload, MSGPACK)
    assert bound.args == [Model(price=1)]
    assert bound.kwargs["pair"] == (1, 2)
    assert bound.kwargs["when"] == dt.date(2020, 1, 1)
    assert bound.kwargs["a"].dtype == np.arange(3).dtype
    assert bound.init == ([1], {"k": {2}})


def test_a_python_caller_is_not_held_to_annotations() -> None:
    """As in Python itself, a value of another type is passed on; only the number and names of arguments must fit."""
    assert Binder(one).bind(encode_arguments(["text"], {}), MSGPACK).args == ["text"]
    for args, kwargs, field in (
        ([], {}, "x"),
        ([1], {"x": 1}, "x"),
        ([], {"y": 1}, "y"),
        ([1, 2], {}, None),
    ):
        with pytest.raises(ValidationError) as caught:
            Binder(one).bind(encode_arguments(args, kwargs), MSGPACK)
        assert caught.value.field == field
    with pytest.raises(ValidationError, match="by position"):
        Binder(position_only).bind(encode_arguments([], {"a": 1}), MSGPACK)


def test_a_messagepack_body_of_another_language_is_mapped_like_json() -> None:
    """A map is a body, not `[args, kwargs, init]`."""
    assert Binder(one).bind(encode({"input": {"x": 1}}, MSGPACK), MSGPACK).kwargs == {"x": 1}


def test_pickled_arguments_need_the_signature() -> None:
    """With signer and purpose a lambda arrives; without, UntrustedPayload."""
    signer, purpose = Signer(b"k" * 16, "dev"), Purpose("m.f", "call", "e")
    payload = encode_arguments([lambda: 5], {}, signer=signer, context=purpose)
    assert Binder(untyped).bind(payload, MSGPACK, signer=signer, context=purpose).args[0]() == 5
    with pytest.raises(UntrustedPayload):
        Binder(untyped).bind(payload, MSGPACK)


def test_an_argument_that_cannot_be_sent_is_named() -> None:
    """By its parameter's name, its keyword or its position, with the path inside."""
    bad = [object()]
    for call, name in (
        (lambda: encode_arguments([1, bad], {}, names=["a", "b"]), "`b[0]`"),
        (lambda: encode_arguments([bad], {}), "`argument 1[0]`"),
        (lambda: encode_arguments([], {"key": bad}), "`key[0]`"),
        (lambda: encode_arguments([], {}, init=([bad], {})), "`constructor argument 1[0]`"),
    ):
        with pytest.raises(NotEncodable) as caught:
            call()
        assert name in str(caught.value)
        assert isinstance(caught.value, TypeError)


def test_results_become_what_the_function_returns() -> None:
    """The caller converts by the return annotation; what does not fit stays as it came; items by the iterator's."""

    def returns() -> list[Model]: ...
    async def yields() -> AsyncIterator[Model]:
        yield Model(price=1)

    assert Binder(returns).convert_result([{"price": 1}]) == [Model(price=1)]
    assert Binder(returns).convert_result("other") == "other"
    assert Binder(yields).convert_item({"price": 1}) == Model(price=1)
    assert Binder(untyped).convert_result({"price": 1}) == {"price": 1}


def test_schemas_describe_parameters_and_results() -> None:
    """An object with required and default values, definitions where references point; the rest is open."""

    def fn(
        order: Order, model: Model, a: np.ndarray, o: object, n: int = 3, *rest: int, **more: Any
    ) -> list[Order]: ...

    schema = Binder(fn).parameters_schema()
    assert schema["required"] == ["order", "model", "a", "o"]
    assert schema["properties"]["n"] == {"type": "integer", "default": 3}
    assert schema["properties"]["order"] == {"$ref": "#/$defs/Order"}
    assert schema["properties"]["a"]["type"] == "array"
    assert schema["properties"]["rest"] == {"type": "array", "items": {"type": "integer"}}
    assert "Order" in schema["$defs"]
    assert "additionalProperties" not in schema
    assert Binder(one).parameters_schema()["additionalProperties"] is False
    returned = Binder(fn).returns_schema()
    assert returned is not None
    assert returned["items"] == {"$ref": "#/$defs/Order"}
    assert Binder(untyped).returns_schema() is None
    json.dumps([schema, returned])
