"""Typed conversion: what annotations make of decoded values, and how a value that does not fit is named."""

import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import typing
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Optional, TypedDict, Union

import msgspec
import numpy as np
import numpy.typing as npt
import pydantic
import pydantic.dataclasses
import pytest

from flashmesh.functions.errors import ValidationError
from flashmesh.wire.annotations import item_type, resolve, signature_of
from flashmesh.wire.values import convert

MOMENT = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Named:
    name: str
    point: Point | None = None


class Item(pydantic.BaseModel):
    price: float
    tags: list[str] = []


class Movie(TypedDict, total=False):
    title: typing.Required[str]
    year: int


class Ticket(msgspec.Struct):
    id: int


class Pair(NamedTuple):
    a: int
    b: str


class Colour(enum.Enum):
    RED = "red"


class Opaque:
    def __repr__(self) -> str:
        return "Opaque()"  # without an address: it stands in test ids


class Closable(typing.Protocol):
    def close(self) -> None: ...


@dataclasses.dataclass
class Unfinished:
    a: "OnlyForTypeCheckers"  # noqa: F821


@pydantic.dataclasses.dataclass
class Validated:
    x: Annotated[int, pydantic.Field(gt=0)]


OPAQUE = Opaque()


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, 1),
        (1, float, 1.0),
        ({"x": 1}, Point, Point(1)),
        (Point(1), Point, Point(1)),
        ([{"x": 1}], list[Point], [Point(1)]),
        ({"name": "n", "point": {"x": 1}}, Named, Named("n", Point(1))),
        ({"price": "1.5"}, Item, Item(price=1.5)),
        ({"k": [{"price": 1}]}, dict[str, list[Item]], {"k": [Item(price=1)]}),
        (None, Item | None, None),
        ({"price": 1}, Optional[Item], Item(price=1)),  # noqa: UP045 - people write it so
        ({"title": "t"}, Movie, {"title": "t"}),
        ({"id": 1}, Ticket, Ticket(1)),
        ([1, "b"], Pair, Pair(1, "b")),
        ("red", Colour, Colour.RED),
        ("a", Literal["a", "b"], "a"),
        ("YWI=", bytes, b"ab"),
        (b"ab", bytes, b"ab"),
        ("2020-01-02T00:00:00Z", dt.datetime, MOMENT),
        (MOMENT, dt.datetime, MOMENT),
        ("1.10", decimal.Decimal, decimal.Decimal("1.10")),
        ("00000000-0000-0000-0000-000000000001", uuid.UUID, uuid.UUID(int=1)),
        ([1, 1], set[int], {1}),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([1], Sequence[int], [1]),
        ({"1": "a"}, dict[int, str], {1: "a"}),
        ({1: "a"}, dict[int, str], {1: "a"}),
        ({"a": 1}, Mapping[str, int], {"a": 1}),
        ("/x", pathlib.Path, pathlib.Path("/x")),
        (2, complex, 2 + 0j),
        ({"x": 1}, Point | dict, Point(1)),
        ({"name": "n"}, Union[Point, Named], Named("n")),  # noqa: UP007 - people write it so
        ({"price": 2}, Item | Point, Item(price=2)),
        ("now", str | dt.datetime, "now"),
        ("x", int | str, "x"),
        (OPAQUE, Opaque, OPAQUE),
        (OPAQUE, Any, OPAQUE),
        (OPAQUE, object, OPAQUE),
        (len, Callable[[Any], int], len),
        (int, type[int], int),
        (3, Annotated[int, "a comment"], 3),
        (3, Annotated[int, pydantic.Field(gt=2)], 3),
        ([3], list[Annotated[int, pydantic.Field(gt=2)]], [3]),
        (3, typing.NewType("UserId", int), 3),
        (3, "SomethingUnresolved", 3),
        ([1], typing.TypeVar("T"), [1]),
    ],
    ids=str,
)
def test_a_value_becomes_what_the_annotation_says(value: Any, annotation: Any, expected: Any) -> None:
    """The expected value, of the expected type."""
    result = convert(value, annotation)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "annotation", "field"),
    [
        ("1", int, "value"),
        (1.0, int, "value"),
        (True, int, "value"),
        (1, str, "value"),
        ("!", bytes, "value"),
        ([{"x": 1}, {"x": "a"}], list[Point], "value[1].x"),
        ({}, Point, "value.x"),
        ({"name": "n", "point": {}}, Named, "value.point.x"),
        ([{"price": 1}, {"price": "a"}], list[Item], "value[1].price"),
        ({"k": {"price": 1, "tags": [1]}}, dict[str, Item], "value[...].tags[0]"),
        ({"a": 1}, dict[int, int], "value"),
        ("blue", Colour, "value"),
        ({"year": 1}, Movie, "value.title"),
        ({"z": 1}, Union[Point, Named], "value.x"),  # noqa: UP007
        ([1], Point | Named, "value"),
        (1, Annotated[int, pydantic.Field(gt=2)], "value"),
        ([3, 1], list[Annotated[int, pydantic.Field(gt=2)]], "value[1]"),
        (1, Opaque, "value"),
        ([[1], [2, 3]], npt.NDArray[np.float32], "value"),
        ("text", np.ndarray, "value"),
        ([["a"]], npt.NDArray[np.float32], "value"),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_is_named_by_its_path(value: Any, annotation: Any, field: str) -> None:
    """ValidationError whose field is the path, and whose text says it and what to do."""
    with pytest.raises(ValidationError) as caught:
        convert(value, annotation)
    assert caught.value.field == field
    assert f"`{field}`" in str(caught.value)
    assert str(caught.value).endswith("Send a value of the type the function declares.")


def test_annotations_that_nothing_can_check_let_every_value_pass() -> None:
    """Fields of a type that exists only for type checkers, and protocols, are no reason to refuse a call."""
    assert convert({"a": 1}, Unfinished) == {"a": 1}
    assert convert([OPAQUE], list[Closable]) == [OPAQUE]
    assert convert({"x": "3"}, Validated) == Validated(3)
    with pytest.raises(ValidationError):
        convert([{"x": -1}], list[Validated])


def test_arrays_come_from_nested_lists_and_keep_what_they_are() -> None:
    """A dtype that is asked for is cast to; arrays inside containers are arrays too."""
    assert convert([[1, 2]], np.ndarray).shape == (1, 2)
    assert convert([1, 2], npt.NDArray[np.float32]).dtype == np.float32
    assert convert(np.arange(2), np.ndarray).dtype == np.int64
    assert convert({"a": [[1]]}, dict[str, npt.NDArray[np.int8]])["a"].dtype == np.int8
    assert convert([1], npt.NDArray[np.number]).dtype == np.int64
    assert convert(1, np.float32) == np.float32(1)


def test_annotations_are_resolved_one_by_one() -> None:
    """A name that exists only for type checkers is Any; its neighbours, the closure's included, keep their types."""

    class Local:
        pass

    def function(a: "Missing", b: "int", c: "list[Point]", d: "Local", e, *, f: "typing.List[Missing]" = ()) -> "str":  # noqa: F821, UP006
        return str(Local)

    types = resolve(function, signature_of(function))
    assert dict(types) == {"a": Any, "b": int, "c": list[Point], "d": Local, "e": Any, "f": Any, "return": str}


def test_callables_of_every_kind_have_a_signature() -> None:
    """Builtins that tell nothing, partials, methods and callable objects."""
    import functools

    class Object:
        def __call__(self, x: "int") -> None: ...

        def method(self, x: "int") -> None: ...

    assert resolve(Object(), signature_of(Object()))["x"] is int
    assert resolve(Object().method, signature_of(Object().method))["x"] is int
    assert (
        resolve(functools.partial(Object.method, None), signature_of(functools.partial(Object.method, None)))["x"]
        is int
    )
    assert list(signature_of(dict).parameters) == ["args", "kwargs"]


def test_the_item_type_of_generators() -> None:
    """What an iterator, generator or their async kinds are annotated to yield."""
    assert item_type(Iterator[int]) is int
    assert item_type(AsyncIterator[Point]) is Point
    assert item_type(typing.Generator[str, None, None]) is str
    assert item_type(list[int]) is Any
    assert item_type(Any) is Any
