"""Python values as MessagePack and back, types included.

Between Python processes a value arrives as the type it was: sets, dates, decimals, UUIDs, paths, complex and large
numbers, NumPy arrays and scalars travel as extension types. Three things degrade, and typed conversion by the
function's annotations brings them back: a tuple becomes a list, an Enum member its value, an object with fields
(dataclass, pydantic model, Struct) a dict. What none of this covers is pickled and signed, when there is a signer.
"""

import dataclasses
import datetime as dt
import decimal
import enum
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.msgpack import Decoder, Encoder, Ext

from flashmesh.functions.errors import FlashmeshError, NotEncodable, UntrustedPayload, ValidationError
from flashmesh.wire import foreign
from flashmesh.wire.lending import Borrowed
from flashmesh.wire.parts import Buffer, Parts
from flashmesh.wire.paths import not_encodable
from flashmesh.wire.signature import Purpose, Signer

SET, FROZENSET, DATETIME, DATE, TIME, TIMEDELTA, DECIMAL, UUID, COMPLEX, BIGINT, PATH = range(1, 12)
NDARRAY, NUMPY_SCALAR, PICKLED, PAIRS = 12, 13, 14, 15

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_SEQUENCES: Final = (list, tuple)
_are_atoms: Final = _ATOMS.issuperset
_MANY: Final = 100_000
LARGE_ARRAY_BYTES: Final = 256 * 1024
"""From here an array's bytes are not copied to where the encoder writes the rest."""
_MOST_EXT_BYTES: Final = 2**32 - 1
_MARK: Final = os.urandom(24)
"""Stands for a large array while the rest is encoded. Known to nobody else, so that no value contains it."""
_CAREFUL: Final = (
    set, frozenset, dt.date, dt.time, dt.timedelta, decimal.Decimal, uuid.UUID, pathlib.PurePath, msgspec.Struct,
)  # fmt: skip
"""Types msgspec writes by itself in a form that does not come back as the same type (datetime is a date)."""


class _LargeArray(Exception):
    """An array that is better left where it is."""


class _Pickled(UntrustedPayload):
    """There is a pickled value, and no key to check it."""


class _Unknown(Exception):
    """An object nothing here can write."""

    def __init__(self, value: object) -> None:
        self.value = value


def encode(value: Any, signer: Signer | None = None, purpose: Purpose | None = None, *, name: str = "value") -> bytes:
    """MessagePack of any value. Raises NotEncodable naming the part's path below `name`, and its type."""
    return bytes(encode_parts(value, signer, purpose, name=name))


def encode_parts(
    value: Any, signer: Signer | None = None, purpose: Purpose | None = None, *, name: str = "value"
) -> bytes | Parts:
    """The same, in parts that refer to the value's own memory where it has large arrays. Raises as `encode`."""
    try:
        try:
            return _written(value if _is_plain(value) else _transform(value, _encode_plain))
        except OverflowError:  # an int of more than 64 bits
            return _written(_transform(value, _encode_plain))
        except _Unknown:
            if signer is None:
                raise
            return _encode_pickling(value, signer, purpose or Purpose(), name)
    except _Unknown as unknown:
        raise not_encodable(value, unknown.value, name) from unknown
    except RecursionError as error:
        raise NotEncodable("The value contains itself, or is nested too deeply. Send a flatter one.") from error
    except UnicodeEncodeError as error:
        raise not_encodable(value, error.object, name, "text that is not valid Unicode") from error


def decode(data: Buffer | Borrowed, signer: Signer | None = None, purpose: Purpose | None = None) -> Any:
    """The value, which refers to nothing of `data`.

    Raises ValidationError for bytes that are not MessagePack, UntrustedPayload for a pickle unsigned.
    """
    whole = data.view() if isinstance(data, Borrowed) else data
    try:
        try:
            return _decoder.decode(whole)
        except _Pickled:
            if signer is None:
                raise
            # Only now: a decoder of one's own costs more than most values do.
            return Decoder(ext_hook=_opener(signer, purpose or Purpose())).decode(whole)
    except FlashmeshError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:  # also from what extensions hold
        raise ValidationError(
            f"The payload is not valid MessagePack: {error}. Send JSON, or encode it again."
        ) from error


def _is_plain(value: Any) -> bool:
    """Whether msgspec writes it as it is to come back (or asks the hook). Looks at types, a container at a time."""
    waiting = [value]
    for part in waiting:
        kind = type(part)
        if kind in _ATOMS:
            continue
        if isinstance(part, dict):
            if not _are_atoms(map(type, part)):
                return False
            part = part.values()
        elif not isinstance(part, _SEQUENCES):
            if isinstance(part, _CAREFUL) or dataclasses.is_dataclass(part) or isinstance(part, enum.Enum):
                return False
            continue
        if not _are_atoms(map(type, part)):
            if len(waiting) > _MANY:
                return False  # perhaps it contains itself, which the transformation finds out
            waiting += part
    return True


class _Opaque:
    """A value that must not be taken apart: what comes back could not be put together."""

    def __init__(self, value: object) -> None:
        self.value = value


Write = Callable[[Any], bytes]


def _transform(value: Any, write: Write) -> Any:
    """The same value in what msgspec writes faithfully: extension types, made by `write`, for what it would flatten."""
    kind = type(value)
    if kind is int:
        return value if -(2**63) <= value < 2**64 else _ext(BIGINT, hex(value))
    if kind in _ATOMS:
        return value
    if isinstance(value, _SEQUENCES):
        return [_transform(item, write) for item in value]
    if isinstance(value, dict):
        return _transform_dict(value, write)
    if isinstance(value, enum.Enum):
        return _transform(value.value, write)
    if isinstance(value, msgspec.Struct):
        return _transform(_struct_fields(value), write)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: _transform(getattr(value, name), write) for name in names if hasattr(value, name)}
    if isinstance(value, set | frozenset):
        items = [_transform(item, write) for item in value]
        if any(isinstance(item, dict) for item in items):
            return _Opaque(value)  # an object with fields would arrive as a dict, which no set can hold
        return Ext(SET if isinstance(value, set) else FROZENSET, write(items))
    return _transform_atom(value)


def _transform_dict(value: dict[Any, Any], write: Write) -> Any:
    pairs = [(_transform(key, write), _transform(item, write)) for key, item in value.items()]
    if _are_atoms(type(key) for key, _ in pairs):
        return dict(pairs)
    if any(isinstance(key, dict) for key, _ in pairs):
        return _Opaque(value)
    return Ext(PAIRS, write(pairs))


def _transform_atom(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        zone = getattr(value.tzinfo, "key", None)
        return _ext(DATETIME, f"{value.isoformat()} {zone or ''}{' 1' if value.fold else ''}")
    if isinstance(value, dt.date):
        return _ext(DATE, value.isoformat())
    if isinstance(value, dt.time):
        return _ext(TIME, f"{value.isoformat()}{' 1' if value.fold else ''}")
    if isinstance(value, dt.timedelta):
        return _ext(TIMEDELTA, f"{value.days} {value.seconds} {value.microseconds}")
    if isinstance(value, decimal.Decimal):
        return _ext(DECIMAL, str(value))
    if isinstance(value, uuid.UUID):
        return Ext(UUID, value.bytes)
    if isinstance(value, pathlib.PurePath):
        return _ext(PATH, str(value))
    return value


def _struct_fields(value: msgspec.Struct) -> dict[str, Any]:
    """A Struct's fields under their encoded names, its tag included, so that `convert` takes them back."""
    config = value.__struct_config__
    fields = {
        field.encode_name: getattr(value, field.name)
        for field in msgspec.structs.fields(value)
        if hasattr(value, field.name)
    }
    return {config.tag_field: config.tag, **fields} if config.tag_field and config.tag is not None else fields


def _ext(code: int, text: str) -> Ext:
    return Ext(code, text.encode())


def _hook(value: Any) -> Any:
    """What msgspec does not know."""
    if foreign.is_array(value):
        if not foreign.has_bytes(value):
            raise _Unknown(value)
        return Ext(NDARRAY, foreign.pack_array(value))
    if foreign.is_scalar(value):
        if not foreign.has_bytes(value):
            raise _Unknown(value)
        return Ext(NUMPY_SCALAR, foreign.pack_array(value))
    if foreign.is_model(value):
        return _transform(foreign.model_fields(value), _encode_plain)
    if isinstance(value, complex):
        return _ext(COMPLEX, f"{value.real!r} {value.imag!r}")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return _transform(int(value), _encode_plain) if isinstance(value, int) else float(value)
    if isinstance(value, pathlib.PurePath):
        return _ext(PATH, str(value))
    if isinstance(value, bytes):
        return bytes(value)
    raise _Unknown(value.value if isinstance(value, _Opaque) else value)


def _hook_small(value: Any) -> Any:
    """The same, but for arrays that are to be left where they are."""
    if _is_large(value):
        raise _LargeArray
    return _hook(value)


def _is_large(value: Any) -> bool:
    return (
        foreign.is_array(value)
        and LARGE_ARRAY_BYTES <= value.nbytes <= _MOST_EXT_BYTES - LARGE_ARRAY_BYTES
        and foreign.has_bytes(value)
    )


def _written(value: Any) -> bytes | Parts:
    try:
        return _encode_small(value)
    except _LargeArray:
        return _in_parts(value)


def _in_parts(value: Any) -> Parts:
    """What msgspec writes around the large arrays, and between it their own bytes."""
    arrays: list[tuple[bytes, Any]] = []

    def hook(item: Any) -> Any:
        if not _is_large(item):
            return _hook(item)
        arrays.append(foreign.array_buffers(item))
        return msgspec.Raw(_MARK)

    first, *others = Encoder(enc_hook=hook).encode(value).split(_MARK)
    buffers: list[Buffer] = [first]
    for (description, content), other in zip(arrays, others, strict=True):
        size = len(description) + len(content)
        buffers += [b"\xc9" + size.to_bytes(4, "big") + bytes((NDARRAY,)) + description, content, other]
    return Parts(buffers)


def _encode_pickling(value: Any, signer: Signer, purpose: Purpose, name: str) -> bytes:
    def hook(item: Any) -> Any:
        if foreign.is_model(item):
            return _transform(foreign.model_fields(item), write)
        try:
            return _hook(item)
        except _Unknown as unknown:
            return Ext(PICKLED, signer.seal(_pickle(value, unknown.value, name), purpose))

    write = Encoder(enc_hook=hook).encode
    return write(_transform(value, write))


def _pickle(whole: Any, item: Any, name: str) -> bytes:
    import cloudpickle  # only values that nothing else can carry pay for it

    try:
        return bytes(cloudpickle.dumps(item))
    except Exception as error:  # pickling runs the value's own code
        raise not_encodable(whole, item, name, f"a value that cannot be pickled ({error})") from error


def _unpickle(data: bytes) -> Any:
    import cloudpickle  # see _pickle

    try:
        return cloudpickle.loads(data)
    except Exception as error:  # unpickling runs code of the value's class
        raise ValidationError(
            f"A pickled value cannot be opened here: {error}. Its module must be importable in this process as well."
        ) from error


def _opener(signer: Signer, purpose: Purpose) -> Callable[[int, memoryview], Any]:
    def hook(code: int, data: memoryview) -> Any:
        if code == PICKLED:
            return _unpickle(signer.open(bytes(data), purpose))
        if code in _COLLECTIONS:
            return _restore_collection(code, Decoder(ext_hook=hook).decode(data))
        return _restore(code, data)

    return hook


def _restore(code: int, data: memoryview) -> Any:
    if code == NDARRAY:
        return foreign.unpack_array(data)
    if code == NUMPY_SCALAR:
        return foreign.unpack_array(data)[()]
    if code in _COLLECTIONS:
        return _restore_collection(code, _decoder.decode(data))
    if code == UUID:
        return uuid.UUID(bytes=bytes(data))
    if code == PICKLED:
        raise _Pickled("The payload holds a pickled value, and this process has no key to check it. Send plain values.")
    return _restore_text(code, str(data, "utf-8"))


_COLLECTIONS: Final = (SET, FROZENSET, PAIRS)


def _restore_collection(code: int, items: list[Any]) -> Any:
    if code == PAIRS:
        return {_tuples(key): item for key, item in items}
    members = map(_tuples, items)
    return frozenset(members) if code == FROZENSET else set(members)


def _tuples(item: Any) -> Any:
    """A set's member or a dict's key again: what is a list now was a tuple."""
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def _restore_text(code: int, text: str) -> Any:
    if code == DATETIME:
        return _datetime(text)
    if code == DATE:
        return dt.date.fromisoformat(text)
    if code == TIME:
        moment, _, fold = text.partition(" ")
        return dt.time.fromisoformat(moment).replace(fold=int(fold or 0))
    if code == TIMEDELTA:
        days, seconds, microseconds = map(int, text.split())
        return dt.timedelta(days, seconds, microseconds)
    if code == DECIMAL:
        return decimal.Decimal(text)
    if code == COMPLEX:
        real, imag = map(float, text.split())
        return complex(real, imag)
    if code == BIGINT:
        return int(text, 16)
    if code == PATH:
        return pathlib.Path(text)
    raise ValidationError(f"MessagePack extension {code} is not one of ours. Both ends must run the same version.")


def _datetime(text: str) -> dt.datetime:
    moment, zone, *fold = text.split(" ")
    value = dt.datetime.fromisoformat(moment)
    if zone:
        import zoneinfo  # reads files: only for a value that names a zone

        try:
            value = value.replace(tzinfo=zoneinfo.ZoneInfo(zone))
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            pass  # this machine does not know the zone; the offset is right
    return value.replace(fold=1) if fold else value


_encode_plain = Encoder(enc_hook=_hook).encode
_encode_small = Encoder(enc_hook=_hook_small).encode
_decoder = Decoder(ext_hook=_restore)
