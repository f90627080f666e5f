"""How a second terminal finds the `flash run` of its directory."""

from pathlib import Path

from flashmesh.dev.session.files import SessionFile, find_session
from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire.client import BlockingClient


class NoSession(FlashmeshError):
    """No `flash run` serves this directory or one above it. Start it in another terminal: `flash run`."""

    code = "NO_SESSION"


def connect() -> tuple[BlockingClient, SessionFile]:
    """A connection to the session of the current directory, or of the nearest one above that has one.

    Raises:
        NoSession: none is running.
    """
    found = find_session(Path.cwd())
    if found is None:
        raise NoSession
    _, session = found
    return BlockingClient.connect(session.link), session
