"""Which address `flash run` listens on. The socket is bound before anything heavy is imported."""

import dataclasses

from flashmesh.gateway.listening import Listener, PortTaken, bind

DEFAULT_PORT = 8888
_TRIES = 50
_ADVICE = "Leave out `--port` to get the next free one, or name another."


def listen(host: str, port: int | None) -> Listener:
    """Bind `port` of `host`; without one the first free port from 8888 up.

    Raises:
        PortTaken: `port` was given and is in use, or none of the ports tried is free.
        FlashmeshError: the host is no address of this machine.
    """
    if port is not None:
        return bind(host, port, advice=_ADVICE)
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + _TRIES):
        try:
            found = bind(host, candidate, name_owner=False)
        except PortTaken:
            continue
        return dataclasses.replace(found, instead_of=None if candidate == DEFAULT_PORT else DEFAULT_PORT)
    last = DEFAULT_PORT + _TRIES - 1
    raise PortTaken(f"All ports from {DEFAULT_PORT} to {last} are in use. Choose one with `--port`.")
