"""HTTP/1.1 as a worker's face speaks it: one request per connection, read under limits; answers as bytes.

Parsing is httptools' (llhttp). Beyond its own strictness: at most 64 headers and 32 KiB of head, a body limit, never
both a length and chunks, no upgrade, no CONNECT.
"""

import os
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import httptools
import msgspec

from flashmesh.functions.errors import PayloadTooLarge, SettingsError

MAX_HEADERS: Final = 64
MAX_HEAD_BYTES: Final = 32 * 1024
DEFAULT_MAX_BODY_BYTES: Final = 64 * 1024 * 1024

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_NAMES: Final[dict[bytes, str]] = {
    name.encode(): name.lower()
    for name in (
        "Host", "Content-Type", "Content-Length", "Accept", "X-Execution-Id", "X-Flash-Chain", "X-Flash-Parent",
        "X-Flash-Deadline-Ms", "traceparent",
    )
}  # fmt: skip
"""As our own callers write them, and as they are looked up: two conversions less for each."""


def max_body_bytes(environ: Mapping[str, str] = os.environ) -> int:
    """The body limit: FLASH_MAX_BODY_BYTES, else 64 MiB. Raises SettingsError for a value that is no size."""
    text = environ.get("FLASH_MAX_BODY_BYTES", "")
    if not text:
        return DEFAULT_MAX_BODY_BYTES
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"FLASH_MAX_BODY_BYTES={text!r} is not a number of bytes. Set it to e.g. 67108864.")
    return int(text)


class RequestRefused(Exception):
    """The request breaks a limit or a rule of HTTP; answer `status` with `message` and close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class RequestReader:
    """Collects one request from bytes.

    Attributes:
        head_done, complete: how far it has come.
        method: upper case. path: still percent-encoded, without query. headers: lower-case names; the last one wins.
    """

    __slots__ = (
        "_body",
        "_body_bytes",
        "_head_bytes",
        "_max_body",
        "_parser",
        "_refused",
        "_url",
        "complete",
        "head_done",
        "headers",
        "method",
        "path",
    )

    def __init__(self, *, max_body: int = DEFAULT_MAX_BODY_BYTES) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._max_body = max_body
        self._url = b""
        self._head_bytes = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refused: RequestRefused | None = None
        self.headers: dict[str, str] = {}
        self.method = ""
        self.path = ""
        self.head_done = False
        self.complete = False

    @property
    def body(self) -> bytes:
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def forget_body(self) -> None:
        """Its bytes are somebody else's now."""
        self._body = []

    def feed(self, data: bytes) -> None:
        """Take what came. Raises RequestRefused; the reader is of no use after that."""
        if not self.head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise RequestRefused(400, "This address does not upgrade connections. Send a plain request.") from error
        except httptools.HttpParserError as error:
            raise self._refused or RequestRefused(400, f"This is not a valid HTTP request: {error}.") from error
        if self._refused is not None:
            raise self._refused
        if not self.head_done and self._head_bytes > MAX_HEAD_BYTES:
            raise _head_too_large()

    # --- what httptools calls; an exception here would lose its type, so refusals are kept ---

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(self.headers) >= MAX_HEADERS:
            self._refuse(RequestRefused(431, f"More than {MAX_HEADERS} headers. Send fewer."))
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        if key in ("content-length", "host", "content-type") and key in self.headers:
            self._refuse(RequestRefused(400, f"Header {key} was sent twice. Send it once."))
        self.headers[key] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.head_done = True
        headers = self.headers
        self.method = self._parser.get_method().decode("latin-1")
        self.path = self._url.partition(b"?")[0].decode("latin-1")
        # Looked at closely only where what came so far, of which the head is a part, is larger.
        if self._head_bytes > MAX_HEAD_BYTES and _head_bytes(self._url, headers) > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        length = headers.get("content-length")
        if length is not None and "transfer-encoding" in headers:
            self._refuse(RequestRefused(400, "Both Content-Length and Transfer-Encoding were sent. Send one of them."))
        if length is not None and length.isdecimal() and int(length) > self._max_body:
            self._refuse(_body_too_large(self._max_body))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._max_body:
            self._refuse(_body_too_large(self._max_body))
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True

    def _refuse(self, refusal: RequestRefused) -> None:
        self._refused = self._refused or refusal
        raise refusal


def answer(status: int, body: bytes, content_type: str, more: str = "") -> bytes:
    """A whole response that ends its connection. `more`: further lines of its head."""
    head = (
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


def stream_head(content_type: str, more: str = "") -> bytes:
    """The head of a response of unknown length, ended by the close of its connection."""
    return f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\n{more}Connection: close\r\n\r\n".encode("latin-1")


def json_body(value: Any) -> bytes:
    """Our own answers as JSON; never a user's value."""
    return msgspec.json.encode(value)


def _head_bytes(url: bytes, headers: Mapping[str, str]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers.items())


def _head_too_large() -> RequestRefused:
    return RequestRefused(
        431, f"The request's head is larger than {MAX_HEAD_BYTES} bytes. Send fewer or shorter headers."
    )


def _body_too_large(limit: int) -> RequestRefused:
    refusal = PayloadTooLarge(f"The body is larger than {limit} bytes. Send less, or raise FLASH_MAX_BODY_BYTES.")
    return RequestRefused(413, str(refusal))
