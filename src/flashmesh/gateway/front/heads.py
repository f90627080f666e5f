"""Heads that came before: a program that calls again and again sends the same bytes, which need no second parsing.

Only plain heads are kept, those of a request that the parser found nothing odd about and whose headers hardly vary.
What may change meanwhile (routes, tokens) is asked again for every request; what follows from the bytes alone is not.
"""

from typing import Final, NamedTuple

from flashmesh.gateway.http import Headers

MOST_HEADS: Final = 1024
LONGEST_HEAD: Final = 1024
"""Bytes. Both together bound the memory to about a megabyte."""
_STEADY: Final = frozenset(
    {
        b"accept", b"accept-encoding", b"accept-language", b"authorization", b"content-length", b"content-type",
        b"host", b"user-agent", b"x-timeout-ms",
    }
)  # fmt: skip


class KnownHead(NamedTuple):
    """What the parser found in a head."""

    method: bytes
    path: bytes
    query: bytes
    headers: Headers
    length: int
    """Of the body."""


class Heads:
    """By their bytes, the empty line included. When there are too many, all are forgotten.

    Of calls only: paths of single executions hardly come twice.
    """

    __slots__ = ("_by_bytes", "get")

    def __init__(self) -> None:
        self._by_bytes: dict[bytes, KnownHead] = {}
        self.get = self._by_bytes.get

    def __len__(self) -> int:
        return len(self._by_bytes)

    def remember(self, data: bytes, known: KnownHead) -> None:
        """Keep it if it is worth it. Its request was whole, plain and hot."""
        if len(data) > LONGEST_HEAD or known.method != b"POST" or not _STEADY.issuperset(known.headers):
            return
        if len(self._by_bytes) >= MOST_HEADS:
            self._by_bytes.clear()
        self._by_bytes[data] = known
