"""A request on its way in: what can be said of a head that is not whole, what a whole one asks for, and the body.

Nothing here answers, or reads: the connection does (connection.py), and decides what the next byte belongs to.
"""

import re
from enum import Enum
from typing import Final, NamedTuple

from flashmesh.gateway.front.exchange import Front
from flashmesh.gateway.front.limits import FrontLimits, Refusal, head_too_large, not_http
from flashmesh.gateway.front.parser import END, RequestParser
from flashmesh.gateway.http import Answer, Handler, Request

_LONE_LF: Final = re.compile(rb"(?<!\r)\n|\0")
_UPGRADE_LINE: Final = re.compile(rb"(?<=\r\n)upgrade:[^\r\n]*\r\n", re.IGNORECASE)


def flaw_of_part(head: bytearray, known: int, limits: FrontLimits) -> Refusal | None:
    """Why a part of a head cannot become one. `known`: up to there it was looked at before."""
    if len(head) > limits.max_head:
        return head_too_large(limits)
    if _LONE_LF.search(head, known):
        return not_http("its lines must end in CRLF")
    return None


def is_too_large(data: bytes, start: int, end: int, limits: FrontLimits) -> bool:
    """Whether the head between those places has too many bytes or lines."""
    return end - start > limits.max_head or data.count(b"\r\n", start, end) > limits.max_headers + 2


def without_upgrade(data: bytes, start: int) -> bytes:
    """The request that begins at `start`, and what follows it, not asking for another protocol any more.

    RFC 9110, 7.8: a server may ignore an upgrade. Java's client offers HTTP/2 so with every first request. llhttp would
    take the body for the other protocol's bytes.
    """
    end = data.find(END, start) + 2
    return _UPGRADE_LINE.sub(b"", data[start:end]) + data[end:]


class Way(Enum):
    """Where a request goes that is neither served here nor refused."""

    ELSEWHERE = "to the application, with its connection"
    WITHOUT_UPGRADE = "back, to be read without its upgrade"


class Arriving(NamedTuple):
    """A request that is admitted, and whose body may still be coming."""

    parser: RequestParser
    handler: Handler
    request: Request
    """As far as it came when its head was read."""

    @property
    def awaits_continue(self) -> bool:
        """Its client sends the body when it is told to."""
        parser = self.parser
        return b"expect" in parser.headers and parser.version == "1.1" and parser.missing == parser.length

    def whole(self) -> Request:
        """The request with its body, which came in pieces. The parser is of no use any more."""
        return self.request._replace(body=self.parser.finish())


def admit(parser: RequestParser, front: Front) -> Refusal | Way | Answer | Arriving:
    """What becomes of the request whose head `parser` has read.

    Refusal: it breaks a limit or a rule of HTTP. Answer: its sender may not do that.
    """
    refusal = parser.check() if parser.odd else None
    if refusal is not None:
        return refusal
    if parser.upgrade and parser.headers[b"upgrade"].lower() != b"websocket":
        return Way.WITHOUT_UPGRADE
    method, path, query = parser.method, parser.url, b""
    if b"?" in path:
        path, _, query = path.partition(b"?")
    handler = None if parser.upgrade or parser.elsewhere else front.find(method, path)
    if handler is None:
        return Way.ELSEWHERE
    verdict = front.check(method, path, query, parser.headers)
    if not isinstance(verdict, str):
        return verdict
    return Arriving(parser, handler, Request(method, path, query, parser.headers, parser.body, verdict))
