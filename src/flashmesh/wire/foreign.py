"""Values of NumPy and pydantic, recognised without importing either: a value of theirs means they are imported."""

import sys
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import FlashmeshError, ValidationError

_HEADER: Final = 4
"""Bytes of the length that stands before an array's description."""


def is_array(value: object) -> bool:
    """A numpy.ndarray (or subclass)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def is_scalar(value: object) -> bool:
    """A NumPy scalar such as numpy.float32(1)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def is_model(value: object) -> bool:
    """An instance of a pydantic model."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def is_model_type(annotation: object) -> bool:
    """A pydantic model class."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel)


def has_bytes(array: Any) -> bool:
    """Whether an array or scalar is all in its bytes: no Python objects inside, no mask beside."""
    numpy = sys.modules["numpy"]
    return not array.dtype.hasobject and not isinstance(array, numpy.ma.MaskedArray)


def pack_array(array: Any) -> bytes:
    """dtype, shape, memory order and bytes of an array that `has_bytes`, copied once."""
    return b"".join(array_buffers(array))


def array_buffers(array: Any) -> tuple[bytes, Any]:
    """The same in two buffers; the second is the array's own memory where that is in order."""
    import numpy as np  # only reached with an array in hand

    array = np.asarray(array)
    fortran = array.flags.f_contiguous and not array.flags.c_contiguous
    described = msgspec.msgpack.encode([np.lib.format.dtype_to_descr(array.dtype), array.shape, fortran])
    flat = (array.T if fortran else np.ascontiguousarray(array)).reshape(-1)
    content = flat.view(np.uint8).data if flat.nbytes else b""
    return len(described).to_bytes(_HEADER, "big") + described, content


def unpack_array(data: memoryview) -> Any:
    """The array, writable. Raises ValidationError for bytes that are none, FlashmeshError where NumPy is missing."""
    try:
        import numpy as np  # the sender had it; this process may not
    except ImportError as error:
        raise FlashmeshError("The value is a NumPy array. Add numpy to this function's dependencies.") from error
    try:
        start = _HEADER + int.from_bytes(data[:_HEADER], "big")
        described, shape, fortran = msgspec.msgpack.decode(data[_HEADER:start])
        dtype = np.lib.format.descr_to_dtype(_tuples(described))
        if dtype.hasobject:
            raise ValueError("object dtype")
        flat = np.frombuffer(data[start:], dtype=dtype) if len(data) > start else np.empty(0, dtype)
        return flat.reshape(shape, order="F" if fortran else "C").copy(order="K")
    except (ValueError, TypeError, SyntaxError, msgspec.MsgspecError) as error:
        raise ValidationError(f"Not an array: {error}. Send it as nested lists.") from error


def _tuples(described: Any) -> Any:
    """A structured dtype's description with the tuples that MessagePack made lists: (name, dtype[, shape]) each."""
    if not isinstance(described, list):
        return described
    return [
        (tuple(name) if isinstance(name, list) else name, _tuples(inner), *map(tuple, shape))
        for name, inner, *shape in described
    ]


def plain_array(array: Any) -> Any:
    """Nested lists of Python values, as JSON shows an array; moments as ISO text."""
    return array.astype(str).tolist() if array.dtype.kind in "mM" else array.tolist()


def plain_scalar(scalar: Any) -> Any:
    """The Python value of a NumPy scalar; moments as ISO text."""
    return str(scalar) if scalar.dtype.kind in "mM" else scalar.item()


def model_fields(model: Any) -> dict[str, Any]:
    """A pydantic model's fields as its own validation takes them back: under their input names, values unconverted."""
    fields: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        alias = field.validation_alias
        alias = getattr(alias, "choices", [alias])[0]
        fields[alias if isinstance(alias, str) else name] = getattr(model, name)
    if type(model).__pydantic_root_model__:
        return fields["root"]  # type: ignore[no-any-return]
    return {**fields, **(model.model_extra or {})}
