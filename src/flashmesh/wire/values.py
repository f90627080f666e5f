"""One value as bytes of a media type, and back; and a value as the type an annotation asks for."""

from typing import Any, Final

from flashmesh.functions.errors import NotEncodable
from flashmesh.wire import json_values, msgpack_values
from flashmesh.wire.conversion import convert
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.wire.paths import type_name
from flashmesh.wire.signature import Purpose, Signer

__all__ = ["convert", "decode", "encode", "media_type"]


_EXACT: Final = {JSON: JSON, MSGPACK: MSGPACK, BINARY: BINARY}


def media_type(header: str) -> str:
    """JSON, MSGPACK or BINARY for a Content-Type or Accept value; what is neither of the others is JSON."""
    if header in _EXACT:
        return header
    kind = header.partition(";")[0].strip().lower()
    if kind in (MSGPACK, "application/msgpack", "application/vnd.msgpack"):
        return MSGPACK
    return BINARY if kind == BINARY else JSON


def encode(
    value: Any, media: str, *, signer: Signer | None = None, context: Purpose | None = None, name: str = "value"
) -> bytes:
    """The bytes of a value.

    Args:
        media: JSON, MSGPACK, or BINARY (the value must be bytes).
        signer: signs what only pickle can carry (MSGPACK only); without one such values are refused.
        context: what the signature is for.
        name: what errors call the value.
    Raises:
        NotEncodable: names the path and type of the part that cannot be sent.
    """
    if media == MSGPACK:
        return msgpack_values.encode(value, signer, context, name=name)
    if media != BINARY:
        return json_values.encode(value, name=name)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise NotEncodable(f"`{name}` is of type {type_name(value)}, not bytes. Ask for {JSON} or {MSGPACK}.")


def decode(data: bytes, media: str, *, signer: Signer | None = None, context: Purpose | None = None) -> Any:
    """The value of the bytes.

    Raises MalformedRequest (JSON syntax), ValidationError (NaN, or not MessagePack), UntrustedPayload (a pickled value
    without a valid signature for `context`, or without a signer to check it).
    """
    if media == MSGPACK:
        return msgpack_values.decode(data, signer, context)
    return data if media == BINARY else json_values.decode(data)
