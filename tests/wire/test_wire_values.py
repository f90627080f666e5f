"""Values through both media: what arrives as itself, what degrades, what is refused and how it is named."""

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import pathlib
import uuid
import zoneinfo
from typing import Any

import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmesh.functions.errors import (
    FlashmeshError,
    MalformedRequest,
    NotEncodable,
    UntrustedPayload,
    ValidationError,
)
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.wire.json_values import check_json
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.wire.values import decode, encode, media_type

SIGNER = Signer(b"k" * 32, "dev")
PURPOSE = Purpose("m.f", "call", "e1")

zones = st.sampled_from([None, dt.UTC, dt.timezone(dt.timedelta(hours=-3)), zoneinfo.ZoneInfo("Europe/Rome")])
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.binary(),
    st.complex_numbers(allow_nan=False),
    st.decimals(allow_nan=False),
    st.uuids(),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.datetimes(timezones=zones),
)
keys = st.one_of(st.text(), st.integers(), st.dates(), st.tuples(st.integers(), st.text()))
anything = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(keys, inner, max_size=4),
        st.sets(st.one_of(st.uuids(), st.dates())),
    ),
    max_leaves=12,
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str]


class Model(pydantic.BaseModel):
    when: dt.datetime
    price: decimal.Decimal
    count: int = pydantic.Field(0, alias="Count")


class Tagged(msgspec.Struct, tag="t", rename="camel"):
    some_day: dt.date


class Opaque:
    pass


def there_and_back(value: Any, **options: Any) -> Any:
    return decode(encode(value, MSGPACK, **options), MSGPACK, **options)


@settings(max_examples=300, deadline=None)
@given(anything)
def test_python_values_arrive_as_themselves(value: Any) -> None:
    """Any mix of numbers, text, bytes, moments, decimals, UUIDs, sets and dicts of any keys; zones are kept."""
    back = there_and_back(value)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | dict | list)


@settings(max_examples=200, deadline=None)
@given(plain)
def test_json_values_arrive_as_themselves(value: Any) -> None:
    """What JSON has comes back equal, whatever the nesting and text."""
    assert decode(encode(value, JSON), JSON) == value


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float16).reshape(2, 3),
        np.arange(12).reshape(3, 4)[::2, ::-1],
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.zeros((0, 3), np.int8),
        np.array(7, np.uint16),
        np.array([1 + 2j]),
        np.array(["a", "long"]),
        np.array(["2020-01-01"], "datetime64[ns]"),
        np.array([(1, (2.5, [1, 2]))], dtype=[("a", ">i4"), ("b", [("c", "f8"), ("d", "u1", (2,))])]),
        np.array([True, False]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_keep_dtype_shape_and_order_and_can_be_written(array: Any) -> None:
    """An array comes back with its dtype, shape and values, in memory of its own."""
    back = there_and_back({"a": [array]})["a"][0]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable
    assert back.flags.f_contiguous == np.asfortranarray(array).flags.f_contiguous or not array.flags.f_contiguous


def test_numpy_scalars_keep_their_type() -> None:
    """float32 stays float32; JSON gets the plain number."""
    for scalar in (np.float32(1.5), np.float64(2.5), np.int8(-3), np.bool_(True), np.datetime64("2020-01-01")):
        back = there_and_back([scalar])[0]
        assert (back, type(back)) == (scalar, type(scalar))
    assert encode([np.float32(1.5), np.int8(-3), np.bool_(True), np.datetime64("2020-01-01")], JSON) == (
        b'[1.5,-3,true,"2020-01-01"]'
    )


def test_what_degrades_is_what_we_say() -> None:
    """Tuples become lists, Enum members their values, objects with fields dicts; everything inside keeps its type."""
    day = dt.date(2020, 1, 2)
    assert there_and_back((1, (2,))) == [1, [2]]
    assert there_and_back({Colour.RED: Colour.RED}) == {"red": "red"}
    assert there_and_back(Point(1, {"a"})) == {"x": 1, "tags": {"a"}}
    assert there_and_back(Tagged(day)) == {"type": "t", "someDay": day}
    moment = dt.datetime(2020, 1, 2, tzinfo=dt.UTC)
    assert there_and_back([Model(when=moment, price=decimal.Decimal("1.10"), Count=3)]) == [
        {"when": moment, "price": decimal.Decimal("1.10"), "Count": 3}
    ]


def test_paths_zones_and_folds_survive() -> None:
    """A Path is a Path again, and the second 2:30 of the night the clocks go back is the second."""
    rome = dt.datetime(2020, 10, 25, 2, 30, tzinfo=zoneinfo.ZoneInfo("Europe/Rome"), fold=1)
    back = there_and_back([pathlib.Path("/a/b"), rome])
    assert back[0] == pathlib.Path("/a/b")
    assert (back[1], back[1].fold, str(back[1].tzinfo)) == (rome, 1, "Europe/Rome")


def test_json_forms() -> None:
    """bytes are base64, moments RFC 3339, arrays nested lists, sets lists, models and dataclasses objects."""
    value = {
        "b": b"ab",
        "t": dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
        "a": np.arange(4).reshape(2, 2),
        "p": Point(1, {"a"}),
        "m": Model(when=dt.datetime(2020, 1, 2, tzinfo=dt.UTC), price=decimal.Decimal("1.10"), Count=3),
        "d": decimal.Decimal("1.10"),
        "u": uuid.UUID(int=0),
        "e": Colour.RED,
        "f": pathlib.Path("/x"),
        "q": collections.deque([1]),
        "r": range(2),
        1: None,
    }
    assert decode(encode(value, JSON), JSON) == {
        "b": "YWI=",
        "t": "2020-01-02T00:00:00Z",
        "a": [[0, 1], [2, 3]],
        "p": {"x": 1, "tags": ["a"]},
        "m": {"when": "2020-01-02T00:00:00Z", "price": "1.10", "Count": 3},
        "d": "1.10",
        "u": "00000000-0000-0000-0000-000000000000",
        "e": "red",
        "f": "/x",
        "q": [1],
        "r": [0, 1],
        "1": None,
    }


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "`result`"),
        ({"a": [1, {"b c": float("inf")}]}, "`result.a[1]['b c']`"),
        (Point(float("nan"), set()), "`result.x`"),
        ([None, np.array([[1.0, np.nan]])], "`result[1][0][1]`"),
        ([np.float32("nan")], "`result[0]`"),
    ],
)
def test_nan_in_a_json_result_is_an_error_that_names_its_path(value: Any, path: str) -> None:
    """Never null: NotEncodable says where it stands. MessagePack carries it."""
    with pytest.raises(NotEncodable, match="NaN") as caught:
        encode(value, JSON, name="result")
    assert path in str(caught.value)
    encode(value, MSGPACK)


def test_null_beside_numbers_is_fine() -> None:
    """None stays null when nothing is NaN."""
    assert encode({"a": None, "b": 1.5, "c": "null"}, JSON) == b'{"a":null,"b":1.5,"c":"null"}'


@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_what_cannot_be_sent_is_named(media: str) -> None:
    """The path, the type and what can be sent instead."""
    for user in (Opaque(), {Opaque()}, Point(Opaque(), set())):
        value = {"users": [1, user]}
        with pytest.raises(NotEncodable) as caught:
            encode(value, media, name="result")
        assert "`result.users[1]" in str(caught.value)
        assert "Opaque" in str(caught.value)
        assert "Convert it" in str(caught.value)


@pytest.mark.parametrize("media", [JSON, MSGPACK])
def test_odd_values_end_in_not_encodable(media: str) -> None:
    """Values that contain themselves, invalid text, generators and functions raise NotEncodable, nothing else."""
    loop: list[Any] = []
    loop.append(loop)
    wide: list[Any] = [{"a": loop}]
    for value in (loop, wide, {"a": "\ud800"}, (n for n in range(3)), len, {"k": type}, np.array([Opaque()])):
        with pytest.raises(NotEncodable):
            encode(value, media)


def test_keys_json_cannot_have_are_named() -> None:
    """The dict's path is told; MessagePack carries such keys."""
    with pytest.raises(NotEncodable, match=r"`result\.a"):
        encode({"a": {(1, 2): 3}}, JSON, name="result")
    assert there_and_back({"a": {(1, 2): 3, None: 4}}) == {"a": {(1, 2): 3, None: 4}}


def test_subclasses_of_plain_types_are_sent_as_these() -> None:
    """str, int, float, dict and list subclasses need no special care."""

    class Text(str):
        pass

    class Number(int):
        pass

    value = {"t": Text("x"), "n": Number(3), "d": collections.OrderedDict(a=1), "c": collections.Counter("aa")}
    expected = {"t": "x", "n": 3, "d": {"a": 1}, "c": {"a": 2}}
    assert decode(encode(value, JSON), JSON) == expected
    assert there_and_back(value) == expected


def test_what_only_pickle_carries_travels_signed() -> None:
    """With the same key and purpose a function arrives; also inside sets, beside sets, and as a dict's key."""
    options = {"signer": SIGNER, "context": PURPOSE}
    back = there_and_back({"f": [lambda x: x + 1, {dt.date(2020, 1, 1)}], "n": 2**70}, **options)
    assert back["f"][0](1) == 2
    assert back["f"][1] == {dt.date(2020, 1, 1)}
    assert back["n"] == 2**70
    assert there_and_back({frozenset({len})}, **options) == {frozenset({len})}
    assert there_and_back([{len: 1}], **options) == [{len: 1}]
    colours = there_and_back([{dataclasses.make_dataclass("D", ["x"], frozen=True)(1)}], **options)
    assert [item.x for item in colours[0]] == [1]


def test_a_pickle_is_opened_only_with_the_right_signature() -> None:
    """Another key, environment, function, direction or execution, no key, or a changed byte: UntrustedPayload."""
    data = encode([len], MSGPACK, signer=SIGNER, context=PURPOSE)
    others = [
        (Signer(b"x" * 32, "dev"), PURPOSE),
        (Signer(b"k" * 32, "prod"), PURPOSE),
        (SIGNER, PURPOSE._replace(function="m.g")),
        (SIGNER, PURPOSE._replace(direction="result")),
        (SIGNER, PURPOSE._replace(execution="e2")),
        (None, None),
    ]
    for signer, purpose in others:
        with pytest.raises(UntrustedPayload):
            decode(data, MSGPACK, signer=signer, context=purpose)
    changed = bytearray(data)
    changed[-3] ^= 1
    with pytest.raises(UntrustedPayload):
        decode(bytes(changed), MSGPACK, signer=SIGNER, context=PURPOSE)


def test_a_value_that_cannot_be_pickled_is_named() -> None:
    """NotEncodable with the path, although there is a signer."""
    with pytest.raises(NotEncodable, match=r"`arg\[0\]`"):
        encode([(n for n in range(3))], MSGPACK, signer=SIGNER, context=PURPOSE, name="arg")


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_value_are_refused(data: bytes) -> None:
    """Decoding anything gives a value or one of our errors."""
    for media in (JSON, MSGPACK):
        try:
            decode(data, media, signer=SIGNER, context=PURPOSE)
        except FlashmeshError:
            pass


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 20), st.binary(max_size=30))
def test_extensions_with_wrong_content_are_refused(code: int, data: bytes) -> None:
    """An extension whose bytes are not its type's raises one of our errors, whoever wrote it."""
    message = msgspec.msgpack.encode([msgspec.msgpack.Ext(code, data)])
    for signer in (None, SIGNER):
        try:
            decode(message, MSGPACK, signer=signer, context=PURPOSE)
        except FlashmeshError:
            pass


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        (b'{"a":1', MalformedRequest, "not JSON"),
        (b"hello", MalformedRequest, "not JSON"),
        (b'"\xff"', MalformedRequest, "UTF-8"),
        (b"[" * 100_000, MalformedRequest, "deeply"),
        (b'{"input":{"a":[1,NaN]}}', ValidationError, "input.a[1]"),
        (b"[-Infinity]", ValidationError, "body[0]"),
        (b'{"a":NaN', MalformedRequest, "not JSON"),
    ],
)
def test_a_bad_body_is_refused_before_it_is_accepted(body: bytes, error: type[Exception], text: str) -> None:
    """Syntax errors are MalformedRequest; NaN and Infinity name their path."""
    for check in (check_json, lambda data: decode(data, JSON)):
        with pytest.raises(error) as caught:
            check(body)
        assert text in str(caught.value)


def test_a_number_beyond_a_double_names_its_path() -> None:
    """1e999 would be infinity."""
    with pytest.raises(ValidationError) as caught:
        decode(b'{"a":[1e999]}', JSON)
    assert caught.value.field == "a[0]"


def test_good_bodies_pass() -> None:
    """Nothing, blanks and any JSON are accepted."""
    for body in (b"", b"  ", b"{}", b"null", '{"ü":[1,"NaN"]}'.encode()):
        check_json(body)


def test_binary_is_bytes() -> None:
    """Bytes pass as they are, anything else says what to ask for."""
    assert encode(bytearray(b"ab"), BINARY) == b"ab"
    assert decode(b"ab", BINARY) == b"ab"
    with pytest.raises(NotEncodable, match="not bytes"):
        encode("ab", BINARY)


def test_media_types_are_recognised_with_parameters() -> None:
    """What is neither MessagePack nor octets is JSON, as curl's default is."""
    assert media_type("application/x-msgpack; v=1") == MSGPACK
    assert media_type("Application/MsgPack") == MSGPACK
    assert media_type("application/octet-stream") == BINARY
    assert media_type("application/x-www-form-urlencoded") == JSON
    assert media_type("") == JSON
