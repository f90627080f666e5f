"""`flash run` as a program: the port, the session, the server, what is printed, and how it ends.

The order is the start-up time. The port is bound and the dev template is started before anything heavy is imported
here, so that it imports uvicorn on one core while this process scans the project on another.
"""

import os
import secrets
from functools import partial
from typing import Any

from flashmesh.deploy.local.place import SessionPlace
from flashmesh.dev.session.files import live_session
from flashmesh.dev.session.ports import listen
from flashmesh.dev.session.run_options import RunOptions
from flashmesh.dev.session.server_process import ServerProcess
from flashmesh.functions.environment import load_dotenv
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.listening import Listener
from flashmesh.kit.descriptors import raise_limit

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class AlreadyServed(FlashmeshError):
    """Another `flash run` serves this directory. Use it, or stop it first."""

    code = "ALREADY_SERVED"


def serve(options: RunOptions) -> int:
    """Serve until interrupted; the exit code.

    Raises:
        AlreadyServed: a `flash run` of this directory is running.
        PortTaken: the port that was asked for is in use.
    """
    running = live_session(options.root)
    if running is not None:
        raise AlreadyServed(
            f"Another `flash run` (pid {running.pid}) serves {options.root} at {running.url}. Use it, or stop it first."
        )
    load_dotenv(str(options.root))
    raise_limit()
    listener = listen(options.host, options.port)
    place = SessionPlace.create()
    token = None if options.host in _LOOPBACK else os.environ.get("FLASH_TOKEN") or secrets.token_urlsafe(24)
    settings = _server_options(options, listener, token)
    start = partial(
        ServerProcess.start, listener, root=options.root, link=str(place.link), pipe_fd=place.pipe_fd, options=settings
    )
    process = start() if options.fork else None
    try:
        import asyncio  # the first heavy import; the template is importing beside us

        from flashmesh.dev.session.foreground import Foreground

        foreground = Foreground(
            options=options,
            listener=listener,
            place=place,
            process=process,
            restart=start,
            server_options=settings,
            token=token,
        )
        return asyncio.run(foreground.run())
    finally:
        if process is not None:
            process.kill()
        listener.socket.close()
        place.close()


def _server_options(options: RunOptions, listener: Listener, token: str | None) -> dict[str, Any]:
    return {
        "inline": options.inline,
        "allow_origin": list(options.allow_origin),
        "allow_host": list(options.allow_host),
        "token": token,
        "host": options.host,
        "port": listener.port,
        "verbose": options.verbose,
    }
