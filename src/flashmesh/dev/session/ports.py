"""Which address `flash run` listens on. The socket is bound before anything heavy is imported."""

import dataclasses
import socket

from flashmesh.functions.errors import FlashmeshError

DEFAULT_PORT = 8888
_TRIES = 50


class PortTaken(FlashmeshError):
    """The port given is in use. Leave out `--port` to get the next free one."""

    code = "PORT_TAKEN"


@dataclasses.dataclass(frozen=True, slots=True)
class Listener:
    """A bound, listening TCP socket. `instead_of` is the default port that was taken, else None."""

    socket: socket.socket
    host: str
    port: int
    instead_of: int | None = None

    @property
    def url(self) -> str:
        """What to open in a browser. The unspecified addresses are shown as localhost."""
        shown = "localhost" if self.host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "") else self.host
        return f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"


def listen(host: str, port: int | None) -> Listener:
    """Bind `port` of `host`; without one the first free port from 8888 up.

    Raises:
        PortTaken: `port` was given and is in use, or none of the ports tried is free.
        FlashmeshError: the host is no address of this machine.
    """
    if port is not None:
        return _bind(host, port)
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + _TRIES):
        try:
            found = _bind(host, candidate)
        except PortTaken:
            continue
        return dataclasses.replace(found, instead_of=None if candidate == DEFAULT_PORT else DEFAULT_PORT)
    last = DEFAULT_PORT + _TRIES - 1
    raise PortTaken(f"All ports from {DEFAULT_PORT} to {last} are in use. Choose one with `--port`.")


def _bind(host: str, port: int) -> Listener:
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
        made.listen(2048)
    except PermissionError as error:
        made.close()
        raise FlashmeshError(
            f"Port {port} may not be opened by this user. Choose one above 1023 with `--port`."
        ) from error
    except OSError as error:
        made.close()
        if _in_use(error):
            message = f"Port {port} on {host} is in use. Leave out `--port` to get the next free one, or name another."
            raise PortTaken(message) from error
        raise FlashmeshError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Use an address of this machine."
        ) from error
    return Listener(made, host, made.getsockname()[1])


def _in_use(error: OSError) -> bool:
    import errno

    return error.errno == errno.EADDRINUSE
