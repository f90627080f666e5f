"""A connection without a socket: fed bytes by a test, on a transport that remembers."""

import asyncio
from typing import Any

from front_fixtures import Site

from flashmesh.gateway.front import FrontServer
from flashmesh.gateway.front.connection import Connection
from flashmesh.gateway.http import Answer, Request


class Transport:
    """Takes everything at once; what is handed over is collected as bytes."""

    def __init__(self) -> None:
        self.written = b""
        self.writes = 0
        self.handed = b""
        self.is_handed = False
        self.closing = False

    def write(self, data: bytes) -> None:
        self.written += data
        self.writes += 1

    def writelines(self, pieces: list[bytes]) -> None:
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.closing = True

    close = abort = write_eof

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise AssertionError("nothing is held here")


class Lone(FrontServer):
    """A server that keeps what it would hand over."""

    def hand_over(self, transport: Any, data: bytes) -> None:
        transport.is_handed = True
        transport.handed += data


def fed(pieces: list[bytes], *, answer_held: bool = False) -> tuple[list[Request], Transport]:
    """What the hot routes saw and what became of the transport. Held requests are answered in one turn, in order."""
    site, transport = Site(), Transport()

    async def run() -> None:
        server = Lone(site, site, site.application)
        server.loop = asyncio.get_running_loop()
        connection = Connection(server)
        connection.connection_made(transport)  # type: ignore[arg-type]
        for piece in pieces:
            if transport.is_handed:
                transport.handed += piece
            else:
                connection.data_received(piece)
        if answer_held:
            for held in site.held:
                held.respond(Answer(200, [], b"late"))
            await asyncio.sleep(0)
        server.close()

    asyncio.run(run())
    return site.seen, transport
