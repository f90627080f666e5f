"""One request out of bytes. The grammar is httptools' (llhttp, strict); what is refused beyond it stands here.

llhttp does not say where in the bytes a message ended, and the connection must know: what follows may belong to
another server (see handover.py). So a request is fed in pieces that cannot reach beyond its end: the head, up to its
empty line; a body of known length, exactly; a chunked one, up to each place where it could end. Only the commonest
case, a read that holds one request and nothing else, is fed at once, and given up when the head shows it was not so.
"""

from collections.abc import Mapping
from typing import Any, Final

import httptools

from flashmesh.gateway.front.limits import FrontLimits, Refusal, body_too_large, not_http
from flashmesh.gateway.http import Headers

END: Final = b"\r\n\r\n"
_SINGLE: Final = frozenset({b"host", b"content-length", b"content-type", b"transfer-encoding", b"expect"})
_TELLING: Final = frozenset({b"connection", b"transfer-encoding", b"upgrade", b"expect"})
_FRAMING_SLACK: Final = 64 * 1024
_FRAMING_SHARE: Final = 16
"""A chunked body of n bytes may take this times n and the slack in all: small chunks are wasteful, not endless."""


class MoreFollows(Exception):
    """The bytes fed at once hold more than this request. The parser is of no use any more; feed the pieces."""


class RequestParser:
    """Parses one request after the other, as long as they keep the connection alive and their bodies come at once.

    Attributes, valid once `head_done`:
        method: upper case. url: as it came. headers: lower-case names, repeated ones joined by `, `.
        length: of the body, 0 when chunked; missing: what of it has not come yet.
        odd: `check` has something to look at. keep_alive, version: what the answer's connection header depends on.
        upgrade: it asks for another protocol. complete: its body is there too.
        elsewhere: see `is_elsewhere`.
    """

    __slots__ = (
        "_after",
        "_feed",
        "_limits",
        "_more",
        "_parser",
        "_raw",
        "_repeated",
        "_tail",
        "body",
        "chunked",
        "complete",
        "elsewhere",
        "head_done",
        "headers",
        "keep_alive",
        "length",
        "method",
        "missing",
        "odd",
        "upgrade",
        "url",
        "version",
    )

    def __init__(self, limits: FrontLimits) -> None:
        self._limits = limits
        self._parser: Any = httptools.HttpRequestParser(self)
        self._feed: Any = self._parser.feed_data
        self._more: list[bytes] = []
        self._tail = b""
        self._raw = self.length = self.missing = 0
        self.method = b""
        self.odd = self.keep_alive = True

    def start(self, data: bytes, after: int) -> None:
        """Take a head, of which `after` bytes in `data` lie behind. Raises Refusal, MoreFollows.

        The head must be whole; behind it may lie as much as belongs to its body.
        """
        if self.odd:  # seldom: what the last request set and most leave as it is
            self.chunked = self.upgrade = self.elsewhere = False
            self.version, self._repeated = "1.1", b""
        self.url = self.body = b""
        self.headers = Headers()
        self.odd = self.head_done = self.complete = False
        self._after = after
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade:
            self.upgrade = self.odd = True
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, MoreFollows):
                raise error.__context__ from None
            raise _refusal(error, data) from error

    def take(self, data: bytes, start: int) -> int:
        """Feed more of the body from `data[start:]`; returns where it ended, or `len(data)`. Raises Refusal."""
        try:
            if self.chunked:
                return self._take_chunks(data, start)
            piece = data[start : start + self.missing] if start or len(data) > self.missing else data
            self.missing -= len(piece)
            self._feed(piece)
            return start + len(piece)
        except httptools.HttpParserError as error:
            raise not_http(error) from error

    def _take_chunks(self, data: bytes, start: int) -> int:
        while start < len(data) and not self.complete:
            end = self._possible_end(data, start)
            self._feed(data[start:end])
            self._raw += end - start
            self._tail = (self._tail + data[max(start, end - 3) : end])[-3:]
            start = end
        if self.missing < -self._limits.max_body:  # of a chunked body, `missing` counts down from 0
            raise body_too_large(self._limits)
        if self._raw > _FRAMING_SLACK - _FRAMING_SHARE * self.missing:
            raise not_http("its chunks are all framing and no body; send larger ones")
        return start

    def _possible_end(self, data: bytes, start: int) -> int:
        """Just behind the next empty line, which may have begun in what was fed before."""
        if self._tail:
            seam = (self._tail + data[start : start + 3]).find(END)
            if seam >= 0:
                return start + seam + 4 - len(self._tail)
        end = data.find(END, start)
        return end + 4 if end >= 0 else len(data)

    def finish(self) -> bytes:
        """The whole body of a request that came in pieces. The parser is of no use any more."""
        body = b"".join((self.body, *self._more)) if self._more else self.body
        self.discard()
        return body

    def discard(self) -> None:
        """Part from httptools' object, which refers back here: no work for the garbage collector."""
        self._parser = self._feed = None

    def check(self) -> Refusal | None:
        """Whether the head breaks a rule that llhttp does not know. Nothing to look at unless `odd`."""
        headers, limits = self.headers, self._limits
        if self.length > limits.max_body and not limits.is_upload(self.url):
            return body_too_large(limits)
        if self.chunked:
            if headers[b"transfer-encoding"].lower() != b"chunked":
                return Refusal(501, "Only the transfer encoding `chunked` is understood. Send a Content-Length.")
            if b"content-length" in headers or self.version == "1.0":
                return not_http("Transfer-Encoding goes with neither Content-Length nor HTTP/1.0; send one of them")
        if self._repeated:
            return not_http(f"header {self._repeated.decode('latin-1')} came twice; send it once")
        if b"host" not in headers and self.version == "1.1":
            return not_http("it has no Host header")
        if self.version not in ("1.1", "1.0"):
            return Refusal(505, f"HTTP/{self.version} is not spoken here. Use HTTP/1.1.")
        if self.method == b"CONNECT":
            return Refusal(501, "This is not a proxy: CONNECT is not understood.")
        if b"expect" in headers and headers[b"expect"].lower() != b"100-continue" and self.version == "1.1":
            return Refusal(417, "Only `Expect: 100-continue` is understood. Leave the header out.")
        return None

    # --- what httptools calls ---

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head_done:
            return  # a trailer: nothing here reads them
        name = name.lower()
        headers = self.headers
        if name in headers:
            if name in _SINGLE:
                self._repeated, self.odd = name, True
            headers[name] += b", " + value
        else:
            headers[name] = value

    def on_headers_complete(self) -> None:
        parser, headers = self._parser, self.headers
        self.head_done = True
        self.method = method = parser.get_method()
        self.length = length = int(headers.get(b"content-length", 0))
        self.missing = length - self._after
        self.keep_alive = keep_alive = parser.should_keep_alive()
        if is_elsewhere(headers):
            self.odd = self.elsewhere = True
        if (
            not keep_alive
            or not _TELLING.isdisjoint(headers)
            or b"host" not in headers
            or length > self._limits.max_body
            or method == b"CONNECT"
        ):
            self.odd = True
            self.version = parser.get_http_version()
            self.upgrade = b"upgrade" in headers
            if b"transfer-encoding" in headers:
                self.chunked = True
                self._raw, self._tail = 0, b""
        if self._after > length:
            raise MoreFollows  # or it is chunked, which needs care as well

    def on_body(self, body: bytes) -> None:
        if self.chunked:
            self.missing -= len(body)
        if self.body:
            self._more.append(body)
        else:
            self.body = body

    def on_message_complete(self) -> None:
        self.complete = True


def is_elsewhere(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request is not a hot route's, whatever its path.

    It bears an Origin, whose answer needs headers of its own, or asks for events as they come, or its host may be an
    endpoint's name.
    """
    return (
        b"origin" in headers
        or (b"accept" in headers and b"event-stream" in headers[b"accept"])
        or (b"host" in headers and b".localhost" in headers[b"host"].lower())
    )


def _refusal(error: Exception, data: bytes) -> Refusal:
    """What to answer to bytes that llhttp refuses."""
    word, _, rest = data.partition(b" ")
    if isinstance(error, httptools.HttpParserInvalidMethodError) and word.isalpha() and word.isupper() and rest:
        return Refusal(501, f"The method {word[:40].decode('ascii', 'replace')} is not understood.")
    return not_http(error)
