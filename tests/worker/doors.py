"""Doors: TCP ports, with TLS if wanted, in front of a worker's socket. What passes is looked at and not changed."""

import contextlib
import selectors
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flashmesh.gateway.access.certificates import own_certificate, server_ssl_context


class Door:
    """Passes every connection on to a Unix socket. `heads`: the head of each request, as it came."""

    def __init__(self, path: str, context: ssl.SSLContext | None) -> None:
        self._path = path
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.heads: list[str] = []
        self.connections = 0
        self.moved = 0
        """How many requests are to be answered with 404 by the door itself."""
        scheme = "https" if context is not None else "http"
        self.url = f"{scheme}://localhost:{self._listener.getsockname()[1]}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join(10)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.callback(client.close)
            if self._context is not None:
                client = stack.enter_context(self._context.wrap_socket(client, server_side=True))
            begun = client.recv(262144)
            if not begun:
                return
            self.heads.append(begun.partition(b"\r\n\r\n")[0].decode("latin-1"))
            if self.moved:
                self.moved -= 1
                client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\nConnection: close\r\n\r\nno such")
                return
            peer = stack.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(self._path)
            peer.sendall(begun)
            _pass_on(client, peer)


def _pass_on(client: socket.socket, peer: socket.socket) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, peer)
        selector.register(peer, selectors.EVENT_READ, client)
        while True:
            for key, _ in selector.select(20):
                data = key.fileobj.recv(262144)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)


@contextmanager
def door(path: str, folder: Path | None = None) -> Iterator[Door]:
    """A door to the socket at `path`; with TLS if there is a `folder` for its certificate."""
    context = None
    if folder is not None:
        certificate = own_certificate(folder, ["localhost", "127.0.0.1"])
        context = server_ssl_context(certificate.cert, certificate.key)
    opened = Door(path, context)
    try:
        yield opened
    finally:
        opened.close()
