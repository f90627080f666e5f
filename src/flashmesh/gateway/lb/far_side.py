"""The endpoint's side of a passage: a bare socket, so that connecting and sending take no turn of the loop."""

import asyncio
import socket
from typing import Final, Protocol

CONNECT_S: Final = 2.0
"""How long a socket that is not there is looked for: its keeper may be making it again."""
_PAUSE_S: Final = 0.05
_READ_BYTES: Final = 256 * 1024
_MOST_UNSENT: Final = 256 * 1024
"""Of a request that its endpoint does not read; from here on its client is not read."""
_FEW_UNSENT: Final = 64 * 1024


class NearSide(Protocol):
    """Who is told."""

    def endpoint_said(self, data: bytes) -> None:
        """Something came."""
        ...

    def endpoint_gone(self) -> None:
        """It ended the connection; nothing comes any more."""
        ...

    def endpoint_deaf(self) -> None:
        """It reads no more. What it said before may still come."""
        ...

    def endpoint_has_room(self) -> None:
        """Most of what was to be sent is sent."""
        ...

    def endpoint_not_reached(self, error: OSError) -> None:
        """Nobody could be connected to; BlockingIOError: too many wait for it."""
        ...


class FarSide:
    """One connection. `close` ends it; nothing is told afterwards."""

    def __init__(self, near: NearSide, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._near = near
        self._path = path
        self._loop = loop
        self._socket: socket.socket | None = None
        self._out = bytearray()
        """Not sent yet."""
        self._writing = self._reading = False
        self._give_up_at = loop.time() + CONNECT_S
        self._retrying: asyncio.TimerHandle | None = None

    @property
    def is_full(self) -> bool:
        """It has much to read."""
        return len(self._out) > _MOST_UNSENT

    def connect(self) -> None:
        """What is to be sent leaves as soon as there is a connection."""
        self._retrying = None
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.connect(self._path)
        except OSError as error:
            made.close()
            if isinstance(error, BlockingIOError) or self._loop.time() >= self._give_up_at:
                self._near.endpoint_not_reached(error)
            else:
                self._retrying = self._loop.call_later(_PAUSE_S, self.connect)
            return
        self._socket = made
        self.read_on()
        self._flush()

    def send(self, data: bytes) -> None:
        self._out += data
        if not self._writing:
            self._flush()

    def read_on(self) -> None:
        """Tell what comes."""
        if self._socket is not None and not self._reading:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._readable)

    def look_away(self) -> None:
        """Tell nothing until `read_on`."""
        if self._reading and self._socket is not None:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def close(self) -> None:
        """Let go of it."""
        if self._retrying is not None:
            self._retrying.cancel()
        if self._socket is not None:
            self.look_away()
            self._stop_writing()
            self._socket.close()
            self._socket = None

    def _flush(self) -> None:
        if self._socket is None:
            return
        out = self._out
        try:
            sent = self._socket.send(out) if out else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            out.clear()
            self._stop_writing()
            self._near.endpoint_deaf()
            return
        del out[:sent]
        if not out:
            self._stop_writing()
        elif not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._flush)
        if len(out) <= _FEW_UNSENT:
            self._near.endpoint_has_room()

    def _stop_writing(self) -> None:
        if self._writing and self._socket is not None:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._near.endpoint_said(data)
        else:
            self._near.endpoint_gone()
