"""A bound port, or the reason why it cannot be had."""

import contextlib
import dataclasses
import os
import socket
from pathlib import Path

from flashmesh.functions.errors import FlashmeshError

BACKLOG = 2048
_LISTEN = "0A"


class PortTaken(FlashmeshError):
    """The port given is in use. Name another one with `--port`."""

    code = "PORT_TAKEN"


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """A bound, listening TCP socket. `instead_of` is the default port that was taken, else None."""

    socket: socket.socket
    host: str
    port: int
    instead_of: int | None = None
    scheme: str = "http"

    @property
    def url(self) -> str:
        """What to open in a browser. The unspecified addresses are shown as localhost."""
        shown = "localhost" if self.host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "") else self.host
        return f"{self.scheme}://[{shown}]:{self.port}" if ":" in shown else f"{self.scheme}://{shown}:{self.port}"


def bind(
    host: str,
    port: int,
    *,
    scheme: str = "http",
    advice: str = "Name another one with `--port`.",
    name_owner: bool = True,
) -> Listener:
    """Listen on `port` of `host`; 0 = any free one.

    Args:
        name_owner: whether it is worth a look through all processes who has the port.
    Raises:
        PortTaken: it is in use; the message names by whom, as far as this user may know.
        FlashmeshError: the host is no address of this machine, or the port may not be opened.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise FlashmeshError(
            f"`--host {host}` is not an address: {error.strerror}. Use 127.0.0.1 or 0.0.0.0."
        ) from error
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except PermissionError as error:
        made.close()
        raise FlashmeshError(
            f"Port {port} may not be opened by this user. Choose one above 1023 with `--port`."
        ) from error
    except OSError as error:
        made.close()
        if _in_use(error):
            owner = who_listens(port) if name_owner else ""
            by = f" by {owner}" if owner else ""
            raise PortTaken(f"Port {port} on {host} is in use{by}. {advice}") from error
        raise FlashmeshError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Use an address of this machine."
        ) from error
    return Listener(made, host, made.getsockname()[1], scheme=scheme)


def _in_use(error: OSError) -> bool:
    import errno

    return error.errno == errno.EADDRINUSE


def who_listens(port: int, proc: Path = Path("/proc")) -> str:
    """`name (pid 123)` of the process that listens on a port; empty when that cannot be seen."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for folder in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError), os.scandir(folder / "fd") as descriptors:
            for entry in descriptors:
                if os.readlink(entry.path) in inodes:  # noqa: PTH115 - a Path per descriptor is slow
                    return f"{(folder / 'comm').read_text().strip()} (pid {folder.name})"
    return ""
