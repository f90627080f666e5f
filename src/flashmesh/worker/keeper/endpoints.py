"""What the keeper knows of one endpoint: its sockets, what to start, what runs. Standard library only."""

from __future__ import annotations

import errno
import os
import socket
import time

from flashmesh.worker.groups import GroupTable

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is 6 ms, a third of the keeper's start
    from collections.abc import Callable
    from typing import Any

    from flashmesh.worker.eventloop import Timer

SILENT_S = 10
"""How long a TCP connection may say nothing before a worker is bothered with it."""

PORTS = (20_000, 32_768)
"""Where a port is chosen that is to be kept: not among those that Linux gives to outgoing connections, one of which
could have it when the endpoint returns."""


class Template:
    """One running template process."""

    def __init__(self, pid: int, control: socket.socket) -> None:
        self.pid = pid
        self.control = control
        self.started_at = time.monotonic()
        self.stopping = False


class Endpoint:
    """Its listening sockets, what to start, and how the last starts went."""

    def __init__(self, name: str, path: str, again_path: str, *, backlog: int) -> None:
        self.name = name
        self.paths = (path, again_path)
        self.peer = _listen(path, backlog)
        try:
            self.again = _listen(again_path, backlog)
        except OSError:
            self.peer.close()
            raise
        self.tcp: socket.socket | None = None
        self.groups = GroupTable.create()
        self.spec: dict[str, Any] | None = None
        self.template: Template | None = None
        self.failures = 0
        self.wanted = False
        """A peer waits, and there is no spec to start for it."""
        self.not_before = 0.0
        self.pause: Timer | None = None
        self.waiting: list[Callable[[], None]] = []
        """Start commands that came during a pause."""
        self.on_gone: list[Callable[[], None]] = []
        """Stop commands that wait for the template's end."""

    def listen_tcp(self, host: str, port: int, *, backlog: int) -> None:
        """Open its TCP socket as well; `port` 0: any. Raises OSError, for example when the port is taken."""
        self.tcp = _listen_tcp(host, port, backlog) if port else _listen_anywhere(host, backlog)

    @property
    def listeners(self) -> list[socket.socket]:
        """Where somebody who wants it may wait."""
        return [self.peer] if self.tcp is None else [self.peer, self.tcp]

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of its TCP socket."""
        return None if self.tcp is None else self.tcp.getsockname()[:2]

    def close(self) -> None:
        if self.tcp is not None:
            self.tcp.close()
        for listener, path in zip((self.peer, self.again), self.paths, strict=True):
            try:
                os.unlink(path)  # noqa: PTH108 - pathlib is 8 ms of imports
            except OSError:
                pass
            listener.close()
        self.groups.close()


def _listen(path: str, backlog: int) -> socket.socket:
    """A listening Unix socket at `path`; one that a dead session left there is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):  # noqa: PTH110
            os.unlink(path)  # noqa: PTH108
        listener.bind(path)
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"cannot listen on {path} ({error}); set XDG_RUNTIME_DIR to a short, writable folder"
        ) from error
    listener.setblocking(False)
    return listener


def _listen_anywhere(host: str, backlog: int) -> socket.socket:
    for _ in range(20):
        port = PORTS[0] + int.from_bytes(os.urandom(4)) % (PORTS[1] - PORTS[0])
        try:
            return _listen_tcp(host, port, backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _listen_tcp(host, 0, backlog)


def _listen_tcp(host: str, port: int, backlog: int) -> socket.socket:
    """A listening TCP socket; a connection shows once it has sent something, where the system can wait."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted ones inherit it
        if hasattr(socket, "TCP_DEFER_ACCEPT"):
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENT_S)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
