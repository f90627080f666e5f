"""How the server and the starter speak to each other: a length (4 bytes, big-endian) and so much JSON."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def packed(message: Mapping[str, object]) -> bytes:
    """One message as bytes."""
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


class Unpacker:
    """Messages out of bytes as they come."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Those that are whole now."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= 4:
            end = 4 + int.from_bytes(buffer[:4], "big")
            if len(buffer) < end:
                break
            message = json.loads(buffer[4:end])
            del buffer[:end]
            yield message

    def clear(self) -> None:
        """Who was heard is gone; what it had begun to say is nothing any more."""
        self._buffer.clear()
