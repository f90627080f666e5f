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
    session = find()
    if session is None:
        raise NoSession
    return BlockingClient.connect(session.link), session


def find() -> SessionFile | None:
    """The session of the current directory, or of the nearest one above that has one."""
    found = find_session(Path.cwd())
    return None if found is None else found[1]
