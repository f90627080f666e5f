"""Who is at the other end of a Unix socket, as the kernel knows it."""

import socket
import struct
import sys
from pathlib import Path
from typing import Any, NamedTuple

from flashmesh.functions.errors import LinkLost

_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEERPID = 0, 1, 2  # macOS, <sys/un.h>


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket; -1 where the system does not say."""

    pid: int
    uid: int


def peer_of(sock: Any) -> Peer:
    """The process and user that connected, as the kernel knows them."""
    try:
        if sys.platform == "darwin":
            credentials = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, 128)
            (pid,) = struct.unpack("i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERPID, 4))
            return Peer(pid, struct.unpack_from("II", credentials)[1])
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, struct.error, AttributeError):
        return Peer(-1, -1)
    return Peer(pid, uid)


def unreachable(path: str | Path, error: OSError) -> LinkLost:
    """What to raise when nobody listens at a session's socket."""
    return LinkLost(f"No session answers at {path}: {error.strerror or error}. Start one with `flash run`.")
