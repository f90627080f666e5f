"""Reading a request: its headers, what it wants back, and its body within limits."""

from typing import Final

from flashmesh.dev.server.access import Receive, Scope
from flashmesh.functions.errors import MalformedRequest, ValidationError
from flashmesh.wire.media import EVENT_STREAM, UnsupportedMedia, body_media, wanted_media
from flashmesh.worker.lb.reading import BodyTooSlow, ClientGone, limited, read_whole, too_large

__all__ = [
    "EVENT_STREAM", "TIMEOUT_MS", "WAIT_MS", "BodyTooSlow", "ClientGone", "UnsupportedMedia", "body_media",
    "check_length", "header", "limited", "not_json", "read_body", "too_large", "wait_ms", "wanted_media",
]  # fmt: skip
WAIT_MS: Final = range(1000, 300_001)
TIMEOUT_MS: Final = range(1, 300_001)


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return None


def wait_ms(query: bytes, timeout_header: str | None, default: int) -> int:
    """How long the client waits: `?wait=` (1000…300000), else `X-Timeout-Ms` (1…300000), else `default`.

    Raises:
        ValidationError: out of range or not a number; names which.
    """
    if b"wait=" in query:
        for pair in query.split(b"&"):
            if pair.startswith(b"wait="):
                return _within(pair[5:].decode("latin-1"), WAIT_MS, "wait")
    if timeout_header is not None:
        return _within(timeout_header, TIMEOUT_MS, "X-Timeout-Ms")
    return default


def _within(text: str, allowed: range, name: str) -> int:
    if text.isascii() and text.isdigit() and int(text) in allowed:
        return int(text)
    raise ValidationError(
        f"`{name}` is {text!r}; it must be a number of milliseconds from {allowed[0]} to {allowed[-1]}.", field=name
    )


def check_length(scope: Scope, limit_bytes: int) -> None:
    """Refuse a body by its announced length, before any of it is read. Raises PayloadTooLarge."""
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length) > limit_bytes:
        raise too_large(limit_bytes)


async def read_body(scope: Scope, receive: Receive, *, limit_bytes: int, limit_s: float) -> bytes:
    """The whole body.

    Raises:
        PayloadTooLarge, BodyTooSlow: a limit was passed.
        ClientGone: it will not come any more.
    """
    check_length(scope, limit_bytes)
    return await read_whole(receive, limit_bytes=limit_bytes, limit_s=limit_s)


def not_json(body: bytes) -> MalformedRequest:
    shown = body[:40].decode("utf-8", "replace")
    return MalformedRequest(f'The body is not JSON: it begins {shown!r}. Send an object such as {{"input": {{…}}}}.')
