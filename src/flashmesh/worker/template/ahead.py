"""A worker forked before anybody asked for it, so that the first call after a pause does not wait for a fork.

The zygote keeps one once it has been asked for a worker. It has shed what it must, and has what every worker needs; it
runs no user code, is no one's worker, holds no place and no record, until its assignment and output pipes come over a
socketpair. It dies with the zygote. Its price is its private memory, a few MB per endpoint that is in use.
"""

import json
import os
import socket
from typing import Any, NoReturn


class Ahead:
    """The zygote's side."""

    __slots__ = ("_socket", "pid")

    def __init__(self, pid: int, end: socket.socket) -> None:
        self.pid = pid
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def assign(self, assignment: dict[str, Any], stdout: int, stderr: int) -> bool:
        """Say which worker to be. False: it is gone, and the caller has to fork another."""
        try:
            socket.send_fds(self._socket, [json.dumps(assignment).encode()], [stdout, stderr])
        except OSError:
            return False
        finally:
            self._socket.close()
        return True


def wait_for_assignment(end: socket.socket) -> tuple[dict[str, Any], int, int]:
    """In the child. Ends the process when the zygote closes its side without a word."""
    data, fds, _, _ = socket.recv_fds(end, 1 << 16, 2)
    end.close()
    if len(fds) != 2:
        _leave()
    stdout, stderr = fds
    return json.loads(data), stdout, stderr


def _leave() -> NoReturn:
    os._exit(0)
