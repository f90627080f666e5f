"""A template that is started before anybody asks for one: it imports what every template needs, then waits.

Its interpreter's start and imports are most of what a first call waits for, and need nothing that the call says.
Standard library only, for the keeper.
"""

from __future__ import annotations

import json
import socket

from flashmesh.worker.launch import launch

MESSAGE_LIMIT = 4096
MOST_DESCRIPTORS = 16

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Spare:
    """A waiting template. It ends by itself when it is dropped, or with the process that started it."""

    def __init__(self, template_argv: Sequence[str]) -> None:
        self._socket, theirs = socket.socketpair()
        self.pid = launch([*template_argv, json.dumps({"ahead": theirs.fileno()})], keep=[theirs.fileno()])
        theirs.close()

    def become(self, fds: dict[str, int]) -> bool:
        """Hand over the descriptors of an endpoint, by which it is that endpoint's template. False: it has ended."""
        try:
            socket.send_fds(self._socket, [json.dumps(list(fds)).encode()], list(fds.values()))
        except OSError:
            return False
        finally:
            self._socket.close()
        return True

    def drop(self) -> None:
        """Nobody wants it."""
        self._socket.close()


def wait_to_become(fd: int) -> dict[str, int]:
    """In the waiting template: the descriptors by their names. Raises SystemExit when nobody wants it."""
    with socket.socket(fileno=fd) as asked:
        try:
            message, fds, _, _ = socket.recv_fds(asked, MESSAGE_LIMIT, MOST_DESCRIPTORS)
        except OSError:
            message = b""
    if not message:
        raise SystemExit(0)
    return dict(zip(json.loads(message), fds, strict=True))
