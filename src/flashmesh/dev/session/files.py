"""The `.flash/` folder of a project: what `flash run` writes there, and how a second terminal finds the session.

`server.py` is overwritten on every run, `session.json` lives as long as the session; everything else is left alone.
"""

import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path

from flashmesh.kit.files import write_atomically

FOLDER = ".flash"
SESSION_FILE = "session.json"
SERVER_FILE = "server.py"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionFile:
    """What `.flash/session.json` says about the session that wrote it."""

    pid: int
    link: str
    """Path of the session's Unix socket."""
    url: str | None
    """Where its dev server answers; None for a session without one (a script's)."""
    started_at: str
    version: str


def write_server(root: Path, text: str) -> Path:
    """Write `.flash/server.py`, only if its text differs, and return its path."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    path = folder / SERVER_FILE
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if path.read_text(encoding="utf-8") == text:
            return path
    write_atomically(path, text)
    return path


def ignore_folder(root: Path) -> bool:
    """Append `.flash/` to the project's .gitignore unless a line of it says so already. True = written.

    The file's content and newline style are kept.
    """
    path = root / ".gitignore"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    if any(line.strip() in (b".flash", b".flash/", b"/.flash", b"/.flash/") for line in content.splitlines()):
        return False
    newline = b"\r\n" if b"\r\n" in content else b"\n"
    missing = newline if content and not content.endswith((b"\n", b"\r")) else b""
    with path.open("ab") as file:
        file.write(missing + b".flash/" + newline)
    return True


def write_session(root: Path, session: SessionFile) -> None:
    """Announce the session of this directory to other terminals of the same user."""
    folder = root / FOLDER
    folder.mkdir(exist_ok=True)
    write_atomically(folder / SESSION_FILE, json.dumps(dataclasses.asdict(session), indent=1) + "\n", mode=0o600)


def remove_session(root: Path, pid: int) -> None:
    """Take the announcement back, unless another session wrote its own meanwhile."""
    path = root / FOLDER / SESSION_FILE
    found = _read(path)
    if found is not None and found.pid == pid:
        with contextlib.suppress(OSError):
            path.unlink()


def live_session(root: Path) -> SessionFile | None:
    """The session that serves this directory, or None. A file left by a session that is gone is recognised as stale."""
    found = _read(root / FOLDER / SESSION_FILE)
    return found if found is not None and _answers(found) else None


def find_session(start: Path) -> tuple[Path, SessionFile] | None:
    """The live session of `start` or of the nearest folder above it that has one."""
    here = start.resolve()
    for folder in (here, *here.parents):
        found = live_session(folder)
        if found is not None:
            return folder, found
    return None


def _read(path: Path) -> SessionFile | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return SessionFile(**{field.name: data[field.name] for field in dataclasses.fields(SessionFile)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _answers(session: SessionFile) -> bool:
    """A process id may be reused by a stranger, so the socket has to answer too."""
    try:
        os.kill(session.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(session.link)
        except OSError:
            return False
    return True
