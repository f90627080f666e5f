"""Heads of requests and answers on their way through: parsed as far as needed, changed as little as possible. Pure."""

import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote

from flashmesh.gateway.access.gate import COOKIE
from flashmesh.gateway.lb.framing import Body, Chunked, KnownLength, UntilClose
from flashmesh.wire.tokens import is_token

END: Final = b"\r\n\r\n"
PREFIX: Final = b"/lb/"
LOCAL: Final = b".localhost"
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te"})
_OURS: Final = frozenset({b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix"})
_NOT_PASSED: Final = _HOP_BY_HOP | _OURS
_LASTING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect", b"trailer"})
"""A Connection header cannot take these away: both ends have to agree on them."""
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_WITHOUT_BODY: Final = frozenset({204, 304})

Line = tuple[bytes, bytes, bytes]
"""Name in lower case, value, and the line as it came."""


class BadHead(Exception):
    """These bytes are not the head of an HTTP/1 message."""


class RequestHead(NamedTuple):
    """Of a request that was found good by a parser before."""

    method: bytes
    target: bytes
    old: bool
    """HTTP/1.0."""
    lines: list[Line]
    headers: dict[bytes, bytes]
    """By name; of one that came twice the values are joined."""
    tokens: frozenset[bytes]
    """What its Connection header names."""

    def body(self) -> Body:
        """What reads its body."""
        if b"transfer-encoding" in self.headers:
            return Chunked()
        return KnownLength(int(self.headers.get(b"content-length", b"0")))

    @property
    def is_websocket(self) -> bool:
        return b"upgrade" in self.tokens and self.headers.get(b"upgrade", b"").lower() == b"websocket"

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to go on with this connection."""
        return b"keep-alive" in self.tokens if self.old else b"close" not in self.tokens


class Destination(NamedTuple):
    """Which endpoint a request names, and what of its target is the endpoint's."""

    name: str
    target: bytes
    prefix: bytes
    """What was taken off the target: `/lb/{name}`; empty for a request by host."""


class AnswerHead(NamedTuple):
    """Of an endpoint's answer."""

    status: int
    status_line: bytes
    lines: list[Line]
    headers: dict[bytes, bytes]
    """By name; of one that came twice the values are joined."""

    @property
    def is_final(self) -> bool:
        return self.status >= 200

    def body(self, *, method: bytes, decode: bool = False) -> Body:
        """What reads its body. Raises BadHead."""
        if method == b"HEAD" or self.status in _WITHOUT_BODY:
            return KnownLength(0)
        if self.headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            return Chunked(decode=decode)
        length = self.headers.get(b"content-length")
        if length is None:
            return UntilClose()
        if not length.isdigit():
            raise BadHead("its Content-Length is not a number")
        return KnownLength(int(length))


def request_head(head: bytes) -> RequestHead:
    """`head` ends with its empty line. Raises BadHead."""
    first, *rest = head[: -len(END)].split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3:
        raise BadHead("its first line is not a method, a target and a version")
    lines, headers = _lines(rest)
    return RequestHead(words[0], words[1], words[2] == b"HTTP/1.0", lines, headers, _tokens(headers))


def answer_head(head: bytes) -> AnswerHead:
    """`head` ends with its empty line. Raises BadHead."""
    first, *rest = head[: -len(END)].split(b"\r\n")
    found = _STATUS_LINE.fullmatch(first)
    if found is None:
        raise BadHead("its first line is not an HTTP/1 status")
    return AnswerHead(int(found[1]), first, *_lines(rest))


def destination(data: bytes) -> Destination | None:
    """Where a request goes, of which `data` holds the head; None: it names no endpoint by its path or host."""
    line = data[: data.find(b"\r\n")].split(b" ")
    target = line[1] if len(line) == 3 else b""
    if target.startswith(PREFIX):
        path, mark, query = target.partition(b"?")
        name, _, rest = path[len(PREFIX) :].partition(b"/")
        return Destination(unquote(name.decode("latin-1")), b"/" + rest + mark + query, PREFIX + name)
    head = data[: data.find(END) + 2]
    at = head.lower().find(b"\r\nhost:")
    if at < 0:
        return None
    host = head[at + 7 : head.find(b"\r\n", at + 7)].strip().lower().partition(b":")[0]
    if not host.endswith(LOCAL) or not target.startswith(b"/"):
        return None
    return Destination(host[: -len(LOCAL)].decode("latin-1"), target, b"")


def to_endpoint(head: RequestHead, where: Destination, *, client: str, scheme: str) -> bytes:
    """The head as the endpoint gets it: its own path, no token of ours, who asked and how in X-Forwarded-*."""
    headers, dropped = head.headers, _NOT_PASSED
    if not _HOP_BY_HOP.issuperset(head.tokens):
        dropped = dropped | (head.tokens - _LASTING)
    out = [b"%b %b HTTP/1.1\r\n" % (head.method, where.target)]
    out += [
        line + b"\r\n"
        for name, value, line in (_without_ours(one) for one in head.lines)
        if name not in dropped and line
    ]
    if b"host" not in headers:
        out.append(b"host: %b\r\n" % where.name.encode("latin-1", "replace"))
    before = headers.get(b"x-forwarded-for")
    forwarded = b", ".join(filter(None, (before, client.encode())))
    if forwarded:
        out.append(b"x-forwarded-for: %b\r\n" % forwarded)
    out.append(b"x-forwarded-proto: %b\r\n" % scheme.encode())
    if b"host" in headers:
        out.append(b"x-forwarded-host: %b\r\n" % headers[b"host"])
    if where.prefix:
        out.append(b"x-forwarded-prefix: %b\r\n" % where.prefix)
    if headers.get(b"te", b"").lower() == b"trailers":
        out.append(b"te: trailers\r\n")
    upgrade = b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"
    out.append(upgrade if head.is_websocket else b"connection: close\r\n\r\n")
    return b"".join(out)


def to_client(head: AnswerHead, *, connection: bytes, unframed: bool = False, more: Iterable[bytes] = ()) -> bytes:
    """The head as the client gets it.

    Args:
        connection: value of its Connection header; empty: none.
        unframed: the body goes without chunks, to a client of HTTP/1.0.
        more: whole lines to add.
    """
    dropped: frozenset[bytes] = _HOP_BY_HOP
    if b"connection" in head.headers:
        dropped = (dropped | (_tokens(head.headers) - _LASTING)) - ({b"upgrade"} if head.status == 101 else set())
    if unframed:
        dropped |= {b"transfer-encoding"}
    out = [head.status_line + b"\r\n"]
    out += [line + b"\r\n" for name, _, line in head.lines if name not in dropped]
    out += more
    if connection:
        out.append(b"connection: %b\r\n" % connection)
    out.append(b"\r\n")
    return b"".join(out)


def allows_origin(head: AnswerHead) -> bool:
    """Whether the endpoint itself says which pages may read its answer."""
    return b"access-control-allow-origin" in head.headers


def _without_ours(one: Line) -> Line:
    """A token for this server is not for user code, neither in its header nor in its cookie."""
    name, value, _ = one
    if name == b"authorization":
        kind, _, token = value.partition(b" ")
        return (name, b"", b"") if kind.lower() == b"bearer" and is_token(token.strip()) else one
    if name == b"cookie" and COOKIE.encode() in value:
        kept = [part for part in value.split(b";") if part.strip().partition(b"=")[0] != COOKIE.encode()]
        rest = b";".join(kept).strip()
        return name, rest, b"cookie: " + rest if rest else b""
    return one


def _lines(lines: Iterable[bytes]) -> tuple[list[Line], dict[bytes, bytes]]:
    found: list[Line] = []
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name[:1] in b" \t" or name[-1:] in b" \t":
            raise BadHead("one of its lines is not a header")
        name, value = name.lower(), value.strip(b" \t")
        headers[name] = headers[name] + b", " + value if name in headers else value
        found.append((name, value, line))
    return found, headers


def _tokens(headers: Mapping[bytes, bytes]) -> frozenset[bytes]:
    """What the Connection header names."""
    value = headers.get(b"connection")
    return frozenset(filter(None, (one.strip().lower() for one in value.split(b",")))) if value else frozenset()
