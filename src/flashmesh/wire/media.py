"""Media types of bodies: what a client sends and what it wants back. Pure."""

from typing import Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire.frames import BINARY, JSON, MSGPACK

EVENT_STREAM: Final = "text/event-stream"
_MEDIA: Final = {
    "": JSON,
    "application/json": JSON,
    "text/json": JSON,
    "text/plain": JSON,
    "application/x-www-form-urlencoded": JSON,  # what `curl -d` says without -H
    "application/x-msgpack": MSGPACK,
    "application/msgpack": MSGPACK,
    "application/vnd.msgpack": MSGPACK,
    "application/octet-stream": BINARY,
}


class UnsupportedMedia(FlashmeshError):
    """The body has a form that cannot be read. Send JSON, MessagePack or application/octet-stream."""

    code = "UNSUPPORTED_MEDIA"
    status = 415


def body_media(content_type: str | None, encoding: str | None = None) -> str:
    """JSON, MSGPACK or BINARY. Raises UnsupportedMedia."""
    if encoding and encoding.lower() != "identity":
        raise UnsupportedMedia(f"Bodies with Content-Encoding {encoding} are not read. Send it uncompressed.")
    kind = (content_type or "").split(";", 1)[0].strip().lower()
    media = _MEDIA.get(kind)
    if media is not None:
        return media
    if kind.endswith("+json"):
        return JSON
    raise UnsupportedMedia(f"A body of type {kind} is not read here. Send application/json, or {BINARY} for bytes.")


def wanted_media(accept: str | None) -> str:
    """The form of the result the client likes best: JSON, MSGPACK, BINARY or EVENT_STREAM. JSON unless it says more."""
    if not accept or accept == "*/*":
        return JSON
    best, best_quality = JSON, 0.0
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        media = EVENT_STREAM if kind == EVENT_STREAM else _MEDIA.get(kind) if "/" in kind else None
        if media is None:
            continue
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if quality > best_quality:
            best, best_quality = media, quality
    return best
