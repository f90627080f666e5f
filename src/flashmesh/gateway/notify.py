"""What the server tells whoever started it: systemd (sd_notify(3)), or `flash server --detach` through a pipe."""

import contextlib
import json
import os
import socket
from typing import Any


def tell_systemd(state: str) -> None:
    """Send a state such as `READY=1` where systemd asked for it; nowhere else."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    place = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(state.encode(), place)


class Starter:
    """The command that waits for a detached server. Told once: where it answers, or why it does not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, **facts: Any) -> None:
        self._tell({"ready": True, **facts})

    def failed(self, reason: str) -> None:
        self._tell({"ready": False, "reason": reason})

    def _tell(self, message: dict[str, Any]) -> None:
        if self._fd is None:
            return
        with contextlib.suppress(OSError):
            os.write(self._fd, json.dumps(message).encode() + b"\n")
            os.close(self._fd)
        self._fd = None
