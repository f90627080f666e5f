"""The private directory of one session, and the pipe that tells everybody whether it lives.

The directory (0700) holds the link's socket, the signing key, the manifest and the endpoints' sockets. Its path is
short: Unix allows 107 bytes for a socket's. A lock that only a living session holds tells directories of dead ones.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from flashmesh.kit.files import write_atomically

_PREFIX = "flash-"
_KEPT_PREFIX = "flashd-"
"""Not swept: their servers may be away."""
_LOCK = "lock"


class SessionPlace:
    """Made by `create`; `close` removes the directory and closes the pipe, which ends whoever watches it."""

    def __init__(self, directory: Path, lock_fd: int, pipe: tuple[int, int]) -> None:
        self.directory = directory
        self.link = directory / "link.sock"
        self.key_file = directory / "key"
        self.manifest = directory / "manifest.json"
        self.sources = directory / "sources"
        """Modules of functions that have no file."""
        self._lock_fd = lock_fd
        self.pipe_fd, self._write_fd = pipe
        """Read end of the session pipe, for children. The write end is this process's alone (close-on-exec)."""

    @classmethod
    def create(cls, base: Path | None = None) -> "SessionPlace":
        base = base or base_directory()
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock_fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        place = cls(directory, lock_fd, os.pipe())
        key_fd = os.open(place.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(key_fd, "wb") as file:
            file.write(secrets.token_bytes(32))
        (directory / "endpoints").mkdir(mode=0o700)
        place.sources.mkdir(mode=0o700)
        return place

    @classmethod
    def keep(cls, pointer: Path, base: Path | None = None) -> "SessionPlace":
        """The directory that the file `pointer` names, for those who come back to it; made when it is gone.

        What is found is used only if it is this user's own and nobody else may look into it.
        """
        directory = kept_directory(pointer)
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix=_KEPT_PREFIX, dir=base or base_directory()))
            write_atomically(pointer, f"{directory}\n", mode=0o600)
        lock_fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        place = cls(directory, lock_fd, os.pipe())
        if not place.key_file.exists():
            key_fd = os.open(place.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(key_fd, "wb") as file:
                file.write(secrets.token_bytes(32))
        for folder in (directory / "endpoints", place.sources):
            folder.mkdir(mode=0o700, exist_ok=True)
        return place

    def close(self, *, keep: bool = False) -> None:
        """`keep`: leave the directory for those who come back to it."""
        for fd in (self._write_fd, self.pipe_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.close(self._lock_fd)


def kept_directory(pointer: Path) -> Path | None:
    """The directory that `pointer` names, if it is there and this user's own; as in `SessionPlace.keep`."""
    try:
        directory = Path(pointer.read_text(encoding="utf-8").strip())
        found = directory.lstat()
    except (OSError, ValueError):
        return None
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return directory if own and directory.name.startswith(_KEPT_PREFIX) else None


def keeper_directory(place: Path) -> Path:
    """Where a keeper that outlives its server is found again."""
    return place / "keeper"


def base_directory() -> Path:
    """Where sessions of this user live: XDG_RUNTIME_DIR when it is usable, else the temporary directory."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and len(runtime) < 50 and os.access(runtime, os.W_OK | os.X_OK):
        return Path(runtime)
    return Path("/tmp") if os.access("/tmp", os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def sweep(base: Path | None = None) -> list[Path]:
    """Remove the directories of sessions that were killed; the paths removed."""
    removed = []
    for directory in (base or base_directory()).glob(_PREFIX + "*"):
        if _is_dead(directory):
            shutil.rmtree(directory, ignore_errors=True)
            removed.append(directory)
    return removed


def _is_dead(directory: Path) -> bool:
    try:
        if directory.is_symlink() or directory.stat().st_uid != os.getuid():
            return False
        fd = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False  # being made, somebody else's, or no session's at all
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
