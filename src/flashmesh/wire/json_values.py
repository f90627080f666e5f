"""Python values as JSON: bytes as base64, moments as RFC 3339, arrays as nested lists; NaN is an error, never null."""

import collections
import json
import pathlib
import re
from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import MalformedRequest, NotEncodable, ValidationError
from flashmesh.wire import foreign, paths

_SEQUENCE_LIKE: Final = (range, collections.deque, KeysView, ValuesView, ItemsView)


class _Unknown(Exception):
    def __init__(self, value: object) -> None:
        self.value = value


def encode(value: Any, *, name: str = "value") -> bytes:
    """JSON of a value. Raises NotEncodable naming the path, below `name`, of a NaN or of what JSON cannot carry."""
    try:
        data = _encode(value)
    except _Unknown as unknown:
        raise paths.not_encodable(value, unknown.value, name) from unknown
    except RecursionError as error:
        raise NotEncodable("The value contains itself, or is nested too deeply. Send a flatter one.") from error
    except UnicodeEncodeError as error:
        raise paths.not_encodable(value, error.object, name, "text that is not valid Unicode") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise _bad_key(value, error, name) from error
    if b"null" in data:  # msgspec writes NaN and infinities as null
        _refuse_not_finite(value, name)
    return data


def _refuse_not_finite(value: Any, name: str) -> None:
    path = paths.find(value, paths.is_not_finite, name)
    if path is not None:
        raise NotEncodable(
            f"`{path}` is NaN or infinite, which JSON cannot carry. Use None or a number, or MessagePack."
        )


def _bad_key(value: Any, error: Exception, name: str) -> NotEncodable:
    def has_bad_key(part: Any) -> bool:
        return isinstance(part, dict) and any(not isinstance(key, str | int | float) for key in part)

    path = paths.find(value, has_bad_key, name)
    if path is None:
        return NotEncodable(f"The value cannot be JSON: {error}. {paths.SENDABLE}")
    return NotEncodable(f"The dict at `{path}` has keys that JSON cannot carry. Use strings or numbers.")


def _hook(value: Any) -> Any:
    """What msgspec does not know."""
    if foreign.is_model(value):
        return value.model_dump(mode="json", by_alias=True)
    if foreign.is_array(value):
        return foreign.plain_array(value)
    if foreign.is_scalar(value):
        return foreign.plain_scalar(value)
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool | int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, _SEQUENCE_LIKE):
        return list(value)
    raise _Unknown(value)


_encode = msgspec.json.Encoder(enc_hook=_hook).encode
_decode = msgspec.json.Decoder().decode
_skim = msgspec.json.Decoder(msgspec.Raw).decode


def decode(data: bytes) -> Any:
    """The value of a JSON text. Raises MalformedRequest (not JSON), ValidationError (NaN, Infinity, a huge number)."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(data, error) from error


def check_json(body: bytes) -> None:
    """Whether a request's body may be accepted, without building its value. An empty one may.

    Raises MalformedRequest with the position, or ValidationError naming the path of a NaN or Infinity.
    """
    if not body:
        return
    try:
        _skim(body)
        if not body.isascii():
            str(body, "utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        if body.strip():
            raise _explain(body, error) from error


def _explain(data: bytes, error: Exception) -> MalformedRequest | ValidationError:
    hint = 'Send an object such as {"input": {"name": "value"}}.'
    if isinstance(error, RecursionError):
        return MalformedRequest("The body is nested too deeply. Send a flatter one.")
    if isinstance(error, UnicodeDecodeError):
        return MalformedRequest(f"The body is not UTF-8 (byte {_bad_byte(data)}). {hint}")
    path = _path_of_constant(data)
    if path is not None:
        field = path.removeprefix("body").removeprefix(".")
        return ValidationError(f"`{path}` is not a finite number. JSON has no NaN or Infinity; send null.", field=field)
    return MalformedRequest(f"The body is not JSON: {error}. {hint}")


def _bad_byte(data: bytes) -> int:
    try:
        str(data, "utf-8")
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _path_of_constant(data: bytes) -> str | None:
    """Where a body that would else be JSON says NaN, Infinity or a number beyond a double; None when it is not that."""
    if not re.search(rb"NaN|Infinity|[eE]\+?\d{2}|\d{300}", data):
        return None
    try:
        value = json.loads(data)  # reads what msgspec rightly refuses
    except (ValueError, RecursionError):
        return None
    return paths.find(value, paths.is_not_finite, "body")
