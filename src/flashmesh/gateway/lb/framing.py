"""Where the body of a message ends, told from its bytes, which pass unchanged. Pure.

Both ends of a passage parse the same bytes by themselves; what stands here must agree with them, so it is as strict as
they are: a chunk's size is hexadecimal digits, lines end in CRLF.
"""

import re
from typing import Final, Protocol

_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[^\r\n\0]*)?\r\n")
_LONGEST_LINE: Final = 4096
_MOST_TRAILERS: Final = 16 * 1024
_SLACK: Final = 64 * 1024
_SHARE: Final = 16
"""A chunked body of n bytes may take this times n and the slack in all: small chunks are wasteful, not endless."""


class Malformed(Exception):
    """These bytes are not a body."""


class Body(Protocol):
    """`complete` once its last byte was taken; `size`: bytes of content taken so far."""

    complete: bool
    size: int

    def take(self, data: bytes) -> int:
        """How many of these bytes belong to it. Raises Malformed."""
        ...


class KnownLength:
    """Content-Length, 0 for none."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.size = 0
        self.complete = length == 0

    def take(self, data: bytes) -> int:
        taken = min(self._left, len(data))
        self._left -= taken
        self.size += taken
        self.complete = self._left == 0
        return taken


class UntilClose:
    """Whatever comes, until the connection ends."""

    def __init__(self) -> None:
        self.size = 0
        self.complete = False

    def take(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)


class Chunked:
    """Transfer-Encoding: chunked, trailers included.

    `content` holds what was taken without its framing, if `decode` was asked for, until somebody clears it.
    """

    def __init__(self, *, decode: bool = False) -> None:
        self.size = self._raw = 0
        self.complete = False
        self.content = bytearray()
        self._decode = decode
        self._line = b""
        """A line whose end has not come."""
        self._left = 0
        """Of the chunk under way, with the line end behind it."""
        self._trailers = 0
        """Bytes of the lines behind the last chunk; 0: it has not come."""

    def take(self, data: bytes) -> int:
        at = 0
        while at < len(data) and not self.complete:
            at = self._take_chunk(data, at) if self._left else self._take_line(data, at)
        self._raw += at
        if self._raw > _SLACK + _SHARE * self.size:
            raise Malformed("its chunks are all framing and no body; send larger ones")
        return at

    def _take_chunk(self, data: bytes, at: int) -> int:
        end = min(len(data), at + self._left)
        content = max(0, min(end - at, self._left - 2))
        behind = data[at + content : end]
        if behind and behind != b"\r\n"[2 - self._left + content :][: len(behind)]:
            raise Malformed("a chunk does not end where it says")
        self.size += content
        if self._decode:
            self.content += data[at : at + content]
        self._left -= end - at
        return end

    def _take_line(self, data: bytes, at: int) -> int:
        found = data.find(b"\n", at)
        end = found + 1 if found >= 0 else len(data)
        self._line += data[at:end]
        if len(self._line) > _LONGEST_LINE:
            raise Malformed("a line of its chunks is too long")
        if found >= 0:
            line, self._line = self._line, b""
            self._read_line(line)
        return end

    def _read_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n"):
            raise Malformed("a line of its chunks does not end in CRLF")
        if self._trailers:
            self._trailers += len(line)
            self.complete = line == b"\r\n"
            if self._trailers > _MOST_TRAILERS:
                raise Malformed("its trailers are too long")
            return
        size = _SIZE.fullmatch(line)
        if size is None:
            raise Malformed("a chunk's size is not a hexadecimal number")
        length = int(size[1], 16)
        if length:
            self._left = length + 2
        else:
            self._trailers = len(line)
