"""Answers for peers when no worker will: the import failed, or a call came back to an endpoint that is full.

Whoever waits in a backlog would otherwise wait for its whole time limit. Every answer says that the call was not run.
"""

import json
import socket
from collections.abc import Callable
from typing import Final

from flashmesh.worker.eventloop import EventLoop

HEAD_BYTES: Final = 32 * 1024
PATIENCE_S: Final = 10.0
_REASONS: Final = {503: "Service Unavailable", 508: "Loop Detected"}

Refusal = Callable[[dict[str, str]], tuple[int, dict[str, object]]]
"""Headers (lower-case names) → status and the error object {"code", "type", "message", …}."""


class Refuser:
    """Accepts from a listening socket and answers each connection with one error."""

    def __init__(self, loop: EventLoop, listener: socket.socket, refusal: Refusal) -> None:
        self._loop = loop
        self._listener = listener
        self._refusal = refusal
        self._open: set[_Conversation] = set()

    def accept(self) -> None:
        """Everybody who waits now."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # nobody is left, or a worker was faster
            self._open.add(_Conversation(self._loop, connection, self._refusal, self._open.discard))

    def close(self) -> None:
        for conversation in list(self._open):
            conversation.end()


class _Conversation:
    """Reads a head, answers, then swallows the body: closing over unread bytes would take the answer along."""

    def __init__(
        self,
        loop: EventLoop,
        connection: socket.socket,
        refusal: Refusal,
        on_end: Callable[["_Conversation"], None],
    ) -> None:
        connection.setblocking(False)
        self._loop = loop
        self._connection = connection
        self._refusal = refusal
        self._on_end = on_end
        self._head = b""
        self._answered = False
        self._limit = loop.later(PATIENCE_S, self.end)
        loop.watch(connection.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        try:
            data = self._connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.end()
            return
        if self._answered:
            return
        self._head += data
        head, found, _ = self._head.partition(b"\r\n\r\n")
        if found or len(self._head) > HEAD_BYTES:
            self._answer(_headers(head))

    def _answer(self, headers: dict[str, str]) -> None:
        self._answered = True
        status, error = self._refusal(headers)
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Flash-Not-Run: 1\r\nConnection: close\r\n\r\n"
        )
        try:
            self._connection.send(head.encode() + body)  # a fresh socket's buffer holds far more
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            self.end()

    def end(self) -> None:
        self._limit.cancel()
        self._loop.unwatch(self._connection.fileno())
        self._connection.close()
        self._on_end(self)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}
