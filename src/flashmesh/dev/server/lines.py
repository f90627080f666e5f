"""JSON lines on a Unix socket between the session, the dev template and its children; a line may bring a descriptor."""

import json
import socket
from typing import Any

Message = dict[str, Any]


class Lines:
    """One end of such a socket, non-blocking. `closed` once the other end is gone."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end
        self._received = b""
        self.descriptors: list[int] = []
        """Descriptors received and not yet taken, oldest first."""
        self.closed = False

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send one line. The lines are few and short, so the socket's buffer takes them; a lost end sets `closed`."""
        data = json.dumps(message).encode() + b"\n"
        try:
            if descriptor is None:
                self._end.sendall(data)
            else:
                socket.send_fds(self._end, [data], [descriptor])
        except OSError:
            self.closed = True

    def receive(self) -> list[Message]:
        """Every whole line that has arrived."""
        messages: list[Message] = []
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._end, 65536, 8)
            except (BlockingIOError, InterruptedError):
                return messages
            except OSError:
                data, descriptors = b"", []
            self.descriptors.extend(descriptors)
            if not data:
                self.closed = True
                return messages
            *lines, self._received = (self._received + data).split(b"\n")
            messages.extend(json.loads(line) for line in lines if line.strip())

    def close(self) -> None:
        self._end.close()
