"""What one request's headers ask for: read once, checked, in the words the dispatcher uses. Pure."""

import re
from typing import Any, Final

from flashmesh.gateway.api.failures import InvalidRequest
from flashmesh.gateway.http import Headers, Request
from flashmesh.wire.frames import JSON
from flashmesh.wire.media import body_media, wanted_media

MAX_KEY_CHARACTERS: Final = 255
MAX_WAIT_MS: Final = 300_000
WAIT_MS: Final = range(1000, MAX_WAIT_MS + 1)
HIGH_PRIORITY: Final = 1
NORMAL_PRIORITY: Final = 0
"""The dispatcher's two levels. Calls over HTTP are high, so that a job can ask to stand behind them (lowPriority)."""
_TRACEPARENT: Final = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_TRACE_ID: Final = re.compile(rb"[!-~]{1,128}")
_KEY: Final = re.compile(rb"[ -~]+")
_JSON: Final = JSON.encode()
_BLANK: Final = b" \t"
"""No part of a header's value (RFC 9110, 5.5), but the parser leaves it at its end."""


def wishes_of(request: Request) -> "Wishes":
    """What the request's head asks for; read once from heads that come again. Raises as `Wishes`."""
    headers = request.headers
    if type(headers) is not Headers:
        return Wishes(request)
    found: Wishes | None = headers.wishes
    if found is None:
        found = headers.wishes = Wishes(request)
    return found


class Wishes:
    """Not changed once made. Raises UnsupportedMedia, InvalidRequest."""

    __slots__ = ("accept", "content_type", "echoed", "idempotency_key", "timeout", "trace")

    def __init__(self, request: Request) -> None:
        headers = request.headers
        content_type = headers.get(b"content-type")
        if content_type == _JSON and b"content-encoding" not in headers:
            self.content_type = JSON
        else:
            self.content_type = body_media(_text(content_type), _text(headers.get(b"content-encoding")))
        accept = headers.get(b"accept")
        self.accept = JSON if accept is None or accept == b"*/*" or accept == _JSON else wanted_media(_text(accept))
        key = headers.get(b"idempotency-key")
        self.idempotency_key: str | None = None if key is None else _key(key)
        timeout = headers.get(b"x-timeout-ms")
        self.timeout = None if timeout is None else timeout.strip(_BLANK)
        self.trace = ""
        self.echoed = b""
        """Headers of the request that belong on its answer, as lines."""
        parent = headers.get(b"traceparent")
        if parent is not None and _TRACEPARENT.fullmatch(parent := parent.strip(_BLANK)):
            self.trace = parent.decode("ascii")
            self.echoed += b"traceparent: %b\r\n" % parent
        named = headers.get(b"x-trace-id")
        if named is not None and _TRACE_ID.fullmatch(named := named.strip(_BLANK)):
            self.trace = self.trace or named.decode("ascii")
            self.echoed += b"x-trace-id: %b\r\n" % named

    def meta(self, mode: str) -> dict[str, Any]:
        """The frame's meta as far as headers tell."""
        meta: dict[str, Any] = {"mode": mode, "priority": HIGH_PRIORITY}
        if self.trace:
            meta["trace"] = self.trace
        if self.idempotency_key is not None:
            meta["idempotency_key"] = self.idempotency_key
        return meta

    def wait_s(self, default_ms: int, longest_ms: int = MAX_WAIT_MS) -> float:
        """How long `X-Timeout-Ms` says to wait, in seconds. Raises InvalidRequest."""
        if self.timeout is None:
            return default_ms / 1000
        return milliseconds(self.timeout, range(1, longest_ms + 1), "X-Timeout-Ms") / 1000


def query_value(query: bytes, name: bytes) -> bytes | None:
    """The raw value of a query parameter; the first if it comes twice."""
    if name not in query:
        return None
    for pair in query.split(b"&"):
        key, found, value = pair.partition(b"=")
        if key == name and found:
            return value
    return None


def milliseconds(text: bytes, allowed: range, name: str) -> int:
    """Raises InvalidRequest naming `name` and what is allowed."""
    if text.isdigit() and len(text) < 12 and int(text) in allowed:
        return int(text)
    shown = text[:40].decode("latin-1")
    raise InvalidRequest(
        f"`{name}` is {shown!r}; it must be a number of milliseconds from {allowed[0]} to {allowed[-1]}.", field=name
    )


def _key(key: bytes) -> str:
    key = key.strip(_BLANK)
    if not _KEY.fullmatch(key) or len(key) > MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"`Idempotency-Key` must be 1 to {MAX_KEY_CHARACTERS} printable ASCII characters.", field="Idempotency-Key"
        )
    return key.decode("ascii")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
