"""One HTTP request and its answer, as every face of the control plane sees them, whichever server read the bytes."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

Header = tuple[bytes, bytes]
JSON_TYPE: Header = (b"content-type", b"application/json")


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
