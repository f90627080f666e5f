"""A script's road: the Caller of a process that is neither worker nor server, made at its first call.

Calls go to the server on which the project is deployed (road.py says which), else to workers on this machine, under a
session that is started for the script and ends with it.
"""

import atexit
import contextlib
import logging
import os
import sys
import threading
from pathlib import Path

from flashmesh.dev.script.caller import ScriptCaller
from flashmesh.dev.script.deployed import DeployedCaller
from flashmesh.dev.script.road import Road, find_road
from flashmesh.dev.session.headless import SessionHandle, launch
from flashmesh.functions.caller import Caller
from flashmesh.functions.calls import install
from flashmesh.functions.environment import load_dotenv

log = logging.getLogger("flashmesh")


def assemble() -> Caller:
    """Make the Caller. Servers that could be meant are asked now; workers here are started by the first call.

    Raises what `find_road` raises.
    """
    load_dotenv()
    road = find_road()
    caller: ScriptCaller | DeployedCaller
    if isinstance(road, Road):
        _say(road.line)
        caller = DeployedCaller(road, here=_workers_here, say=_say)
        atexit.register(caller.close)
        os.register_at_fork(after_in_child=lambda: install(None))
        return caller
    if road.line:
        _say(road.line)
    log.info("Calls of this script run in workers on this machine, which end with it")
    return _workers_here()


def _workers_here() -> ScriptCaller:
    session = ScriptSession()
    caller = ScriptCaller(session)
    atexit.register(caller.close)

    def forget() -> None:
        session.forget()
        install(None)

    os.register_at_fork(after_in_child=forget)
    return caller


def _say(line: str) -> None:
    """One line for the person at the terminal; stdout is the script's own."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
        sys.stderr.write(f"flash: {line}.\n")
        sys.stderr.flush()


class ScriptSession:
    """The script's session, started once by whichever thread calls first, and again when it has died."""

    def __init__(self) -> None:
        self._handle: SessionHandle | None = None
        self._starting = threading.Lock()
        self.starts = 0
        """How many were started: what was registered with one is unknown to the next."""

    def handle(self) -> SessionHandle:
        """The session. Blocks while it starts (about 0.2 s). Raises EndpointUnavailable."""
        handle = self._handle
        if handle is not None and handle.alive:
            return handle
        with self._starting:
            if self._handle is None or not self._handle.alive:
                output = _relay()
                try:
                    self._handle = launch(Path.cwd(), scan=False, output=output)
                finally:
                    if output is not None:
                        os.close(output)  # the session has its own copy
                self.starts += 1
            return self._handle

    def current(self) -> SessionHandle | None:
        """The session, if one is up."""
        handle = self._handle
        return handle if handle is not None and handle.alive else None

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()

    def forget(self) -> None:
        """In a forked child, which starts a session of its own when it calls."""
        if self._handle is not None:
            self._handle.forget()


def _relay() -> int | None:
    """Where the session shall print, when this process's stdout is not descriptor 1: a notebook's cells are not."""
    try:
        if sys.stdout.fileno() == 1:
            return None
    except (OSError, ValueError, AttributeError):
        pass
    read, write = os.pipe()

    def copy() -> None:
        with os.fdopen(read, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                sys.stdout.write(line)

    threading.Thread(target=copy, name="flash-output", daemon=True).start()
    return write
