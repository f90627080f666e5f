"""Answers as bytes."""

from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from flashmesh.gateway.http import Answer, Header

CLOSE: Final = b"connection: close\r\n"
KEEP_ALIVE: Final = b"connection: keep-alive\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
WITHOUT_LENGTH: Final = frozenset({204, 304})
_MOST_KNOWN: Final = 256
_SHORT: Final = 100
_MOST_LENGTHS: Final = 2048
_lengths: dict[int, bytes] = {}
"""The last line and the empty one, for short bodies."""
_known: dict[Header, bytes] = {}
"""Lines of headers that were found good; few differ from answer to answer."""


class BadAnswer(ValueError):
    """A header of the answer would have ended its line, or the head."""


def date_line(now: float) -> bytes:
    """The date header of the second `now` (seconds since the epoch)."""
    return f"date: {formatdate(now, usegmt=True)}\r\n".encode()


def encode_head(answer: Answer, date: bytes, connection: bytes) -> bytes:
    """Status line and headers. `date` and `connection` are whole lines, or empty. Raises BadAnswer."""
    status, headers, body, lines = answer
    head = (_LINES.get(status) or b"HTTP/1.1 %d Unknown\r\n" % status) + date
    for header in headers:
        head += _known.get(header) or _header_line(header)
    head += lines
    head += connection
    if status in WITHOUT_LENGTH:
        return head + b"\r\n"
    return head + (_lengths.get(len(body)) or _length_line(len(body)))


def _length_line(length: int) -> bytes:
    line = b"content-length: %d\r\n\r\n" % length
    if length < _MOST_LENGTHS:
        _lengths[length] = line
    return line


def _header_line(header: Header) -> bytes:
    name, value = header
    line = name + b": " + value + b"\r\n"
    if line.count(b"\n") != 1 or line.count(b"\r") != 1 or b"\0" in line:
        raise BadAnswer(f"header {name.decode('latin-1')!r} of the answer holds a line break or a zero byte")
    if len(_known) < _MOST_KNOWN and len(line) < _SHORT:
        _known[header] = line
    return line
