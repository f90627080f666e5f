"""One request under way, and what a connection uses of its server."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from flashmesh.gateway.front.crowd import Crowd
from flashmesh.gateway.front.heads import Heads
from flashmesh.gateway.front.limits import FrontLimits, Refusal
from flashmesh.gateway.front.parser import RequestParser
from flashmesh.gateway.http import Answer, Handler

if TYPE_CHECKING:
    from flashmesh.gateway.front.connection import Connection

log = logging.getLogger(__name__)

LAST: Final = 1
"""The connection closes after this answer."""
HEADLESS: Final = 2
"""Without the body: HEAD."""
OLD: Final = 4
"""HTTP/1.0: that the connection is kept must be said."""


def kind_of(parser: RequestParser) -> int:
    """What the answer to that request has to be, of the three."""
    kind = 0 if parser.keep_alive and parser.complete else LAST
    if parser.method == b"HEAD":
        kind |= HEADLESS
    if parser.odd and parser.version == "1.0":
        kind |= OLD
    return kind


class Front(Protocol):
    """What a connection uses of its server."""

    limits: FrontLimits
    loop: asyncio.AbstractEventLoop
    now: float
    """Monotonic seconds, as fresh as the last sweep."""
    date: bytes
    """The date header's line."""
    draining: bool
    parser: RequestParser
    """For the next request of any connection: it is between two requests whenever the loop runs."""
    heads: Heads
    crowd: Crowd
    gathered: "list[Connection] | None"
    """Those whose answers leave together in a moment; None: answers leave at once."""
    find: Callable[[bytes, bytes], Handler | None]
    check: Callable[[bytes, bytes, bytes, Mapping[bytes, bytes]], Answer | str]
    requests: int
    refused: int
    dropped: int

    small_head: int
    """Up to so many bytes a head cannot have too many headers."""

    def new_parser(self) -> None:
        """`parser` is taken, or broken: the next request has another."""
        ...

    def joined(self, connection: "Connection") -> Refusal | None:
        """It was accepted; the refusal when there are too many."""
        ...

    def left(self, connection: "Connection") -> None: ...

    def hand_over(self, transport: asyncio.Transport, data: bytes) -> None:
        """The connection is uvicorn's from here, with the bytes received so far."""
        ...


class Exchange:
    """One request that waits for its answer; `respond` is what its handler gets."""

    __slots__ = ("answer", "cancel", "connection", "kind")

    def __init__(self, connection: "Connection", kind: int) -> None:
        self.connection: Connection | None = connection
        """None once it has its answer or nobody waits for it."""
        self.kind = kind
        """Of LAST, HEADLESS and OLD; most are none of them."""
        self.answer: Answer | None = None
        """While those before it have none."""
        self.cancel: Callable[[], None] | None = None

    def respond(self, answer: Answer) -> None:
        connection = self.connection
        if connection is not None:
            self.connection = self.cancel = None
            if connection.first is self:
                connection.answered(self, answer)
            else:
                self.answer = answer

    def abandon(self) -> None:
        """The client is gone."""
        cancel = self.cancel
        self.connection = self.cancel = None
        if cancel is not None:
            try:
                cancel()
            except Exception:
                log.exception("giving up a request failed")
