"""Server-sent events, cut from the bytes they come in."""

from collections.abc import Iterator
from typing import Final

EVENTS: Final = "text/event-stream"


class EventReader:
    """Cuts a stream of events. Comments (`:` keeps a connection alive) are passed over."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._name = ""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        """(name, data) of the events that are complete now. To be exhausted before the next piece is fed."""
        self._buffer += data
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        found = []
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif line.startswith(b"event:"):
                self._name = line[6:].strip().decode("utf-8", "replace")
            elif not line:
                if self._data:
                    found.append((self._name, b"\n".join(self._data)))
                self._name, self._data = "", []
        return iter(found)
