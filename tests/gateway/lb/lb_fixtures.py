"""A server's port with one load-balanced endpoint behind it, whose part the test plays byte for byte."""

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from access_fixtures import Door
from front_fixtures import Client, Served, serving

from flashmesh.gateway.front import FrontLimits
from flashmesh.gateway.lb.directory import LbServed, LbTable
from flashmesh.gateway.lb.passages import Passages
from flashmesh.kit.ids import EndpointName

WEB = LbServed(endpoint=EndpointName("web"), resource="web", declared="shop window")
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Far:
    """The endpoint: whoever connects waits until the test takes the call."""

    def __init__(self, path: Path, *, backlog: int = 100) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(backlog)
        self._listener.settimeout(20)
        self._accepted: list[socket.socket] = []

    def take(self) -> Client:
        """The next connection."""
        connection, _ = self._listener.accept()
        connection.settimeout(20)
        self._accepted.append(connection)
        return Client(connection)

    def head(self, call: Client) -> tuple[str, dict[str, str]]:
        """The request line and the headers of the next request on it; what lies behind stays in `call.rest`."""
        while b"\r\n\r\n" not in call.rest:
            call._read()
        head, _, call.rest = call.rest.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        return first, {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}

    def answer(self, data: bytes = OK) -> tuple[str, dict[str, str]]:
        """Take a call, answer it, and hang up; what was asked."""
        call = self.take()
        told = self.head(call)
        call.send(data).close()
        return told

    def close(self) -> None:
        for one in (*self._accepted, self._listener):
            one.close()


class Port:
    """The server, its endpoint, and the tokens of its machine."""

    def __init__(self, served: Served, far: Far, door: Door, table: LbTable, passages: Passages) -> None:
        self.served, self.far, self.door, self.table, self.passages = served, far, door, table, passages
        self.closed: Any = None

    def connect(self) -> Client:
        return self.served.connect()

    def settled(self) -> None:
        """Wait until nothing is on its way."""
        self.served.wait_until(lambda: not self.passages.open)


@contextlib.contextmanager
def port(
    *listed: LbServed,
    limits: FrontLimits | None = None,
    host: str = "127.0.0.1",
    backlog: int = 100,
    lean: bool = True,
    **rules: Any,
) -> Iterator[Port]:
    """One whose endpoints (`web`, unless others are listed) are all at one socket."""
    with tempfile.TemporaryDirectory(prefix="lb-") as folder:
        (Path(folder) / "host").mkdir()
        far = Far(Path(folder) / "web.sock", backlog=backlog)
        door = Door(Path(folder) / "host", host=host, **rules)
        table = LbTable(lambda endpoint: str(far.path))
        table.serve("project", listed or (WEB,))
        made: list[Port] = []
        passages = Passages(table, door.gate, closed=lambda: made[0].closed)
        try:
            with serving(limits, lean=lean, passages=passages) as served:
                made.append(Port(served, far, door, table, passages))
                yield made[0]
        finally:
            far.close()
