"""One HTTP request and its answer, as every face of the control plane sees them, whichever server read the bytes."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

Header = tuple[bytes, bytes]
JSON_TYPE: Header = (b"content-type", b"application/json")
AS_JSON: Final[list[Header]] = [JSON_TYPE]
"""Headers of an answer that has no others. Not to be changed."""


def pairs(lines: bytes) -> list[Header]:
    """Headers out of whole lines."""
    split = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in split]


class Headers(dict[bytes, bytes]):
    """The headers of a head that the lean server has parsed.

    Requests whose heads are the same bytes may share one, method, path and query included: whoever has worked something
    out of a head alone may leave it here for the next of them.
    """

    __slots__ = ("free", "wishes")

    def __init__(self) -> None:
        self.free = False
        """The gate lets it in without a token, whatever happens to tokens meanwhile."""
        self.wishes: Any = None
        """What a face has read in it."""


class Request(NamedTuple):
    """A whole request. `headers` has lower-case names; of a name that came twice the values are joined by `, `."""

    method: bytes
    path: bytes
    """As it came: percent-encoded, without the query."""
    query: bytes
    headers: Mapping[bytes, bytes]
    body: bytes
    principal: str = ""
    """Name of the token it bore; empty for the loopback without one."""


class Answer(NamedTuple):
    """A whole answer. `headers` has lower-case names, without content-length, date and connection."""

    status: int
    headers: list[Header]
    body: bytes
    lines: bytes = b""
    """More headers, as whole lines: of hot handlers, which know that no byte of theirs ends a line."""

    def all_headers(self) -> list[Header]:
        """`headers`, and those in `lines`."""
        return [*self.headers, *pairs(self.lines)]


Respond = Callable[[Answer], None]
"""Takes the one answer of a request, at once or later, on the event loop. The client may be gone: nothing happens."""

Handler = Callable[[Request, Respond], Callable[[], None] | None]
"""Serves one request without a task. Never raises. What it returns is called if the client leaves before the answer."""


class HotRoutes(Protocol):
    """The few routes worth a short way. What is not found here goes to the ASGI application."""

    def find(self, method: bytes, path: bytes) -> Handler | None:
        """A dictionary lookup or little more: it runs for every request."""
        ...


class Gate(Protocol):
    """Who may do what; see access/."""

    def check(self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes]) -> "Answer | str":
        """The refusal to send, or the name of the caller (empty: loopback without a token)."""
        ...
