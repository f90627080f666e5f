"""The data directory of a server: one server at a time, on a disk of this machine.

lock            held by the server as long as it lives
server.json     pid, start time and addresses of the server, while it answers
server.db       what was accepted, its results, functions made by POST
server.db-files payloads and results too large for the database
artifacts/      of builds, as they were sent and unpacked
manifests/      of deployed environments, by which their workers route calls
deployed        names the folder with sockets and keys of deployed endpoints, which outlive the server
values.key      by which values of environment variables are told apart
logs/           what endpoints print, one rotated file each; server.log of a detached server
"""

import dataclasses
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.files import write_atomically
from flashmesh.kit.machine import machine_id

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "afs", "ncpfs", "coda", "9p"),
        *("ceph", "glusterfs", "lustre", "gpfs", "beegfs", "orangefs", "ocfs2", "gfs2", "panfs", "pvfs2"),
        *("fuse.sshfs", "fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs", "fuse.gcsfuse"),
    }
)
"""Types on which SQLite's locks or its shared memory do not hold: two machines could both write."""
LEAVING_S: Final = 5.0
"""How long a server that was killed may take to leave the kernel."""
_MOUNTS = Path("/proc/self/mounts")
_ADDRESS = "server.json"


class DataDirectoryTaken(FlashmeshError):
    """Another server uses this data directory. Stop it, or give this one its own with `--data`."""

    code = "DATA_DIRECTORY_TAKEN"


class NetworkFileSystem(FlashmeshError):
    """The data directory is on a network file system. Name one on a local disk with `--data`."""

    code = "NETWORK_FILE_SYSTEM"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerFile:
    """What `server.json` says about the server that wrote it."""

    pid: int
    start_time: str
    """When the system says that process began; a later process of the same pid has another."""
    url: str
    """Where its HTTP port answers."""
    link: str
    """Path of its link's Unix socket."""
    project: str | None
    drain_s: float
    """How long it lets running calls finish."""
    started_at: str
    version: str


def server_directory(home: Path) -> Path:
    """Where the server of this machine keeps its data unless it is told otherwise."""
    return home / "hosts" / machine_id(home) / "server"


class DataDirectory:
    """Made by `take`; `close` lets go of it."""

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self.database = path / "server.db"
        self.logs = path / "logs"
        self.artifacts = path / "artifacts"
        self.place = path / "place"
        self.deployed = path / "deployed"
        """Names the place of deployed endpoints, as `place` does for a session's that are kept."""
        self.manifests = path / "manifests"
        self._lock_fd = lock_fd

    @classmethod
    def take(cls, path: Path) -> "DataDirectory":
        """Make the directory and lock it.

        Raises:
            DataDirectoryTaken, NetworkFileSystem, or FlashmeshError when it cannot be made or written.
        """
        kind = file_system(path)
        if kind in NETWORK_FILE_SYSTEMS:
            raise NetworkFileSystem(
                f"{path} is on a network file system ({kind}), where a database is not safe. "
                "Name a directory on a local disk with `--data` (FLASH_SERVER_DATA)."
            )
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            (path / "logs").mkdir(mode=0o700, exist_ok=True)
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise FlashmeshError(
                f"The data directory {path} cannot be used: {error.strerror}. Name another one with `--data`."
            ) from error
        try:
            _lock(lock_fd, path)
        except OSError as error:
            os.close(lock_fd)
            raise DataDirectoryTaken(_taken(path)) from error
        return cls(path, lock_fd)

    def announce(
        self, *, url: str, link: Path, project: Path | None, drain_s: float, started_at: str, version: str
    ) -> None:
        """Tell commands of this machine where the server answers."""
        found = ServerFile(
            pid=os.getpid(),
            start_time=start_time(os.getpid()),
            url=url,
            link=str(link),
            project=None if project is None else str(project),
            drain_s=drain_s,
            started_at=started_at,
            version=version,
        )
        write_atomically(self.path / _ADDRESS, json.dumps(dataclasses.asdict(found), indent=1) + "\n", mode=0o600)

    def close(self) -> None:
        """Take the announcement back and let the next server in."""
        (self.path / _ADDRESS).unlink(missing_ok=True)
        os.close(self._lock_fd)


def _lock(lock_fd: int, path: Path) -> None:
    """Take the lock. Raises OSError when another server has it.

    One that was killed has it until its last thread has left the kernel, which may wait for a disk: that is waited for.
    """
    until = time.monotonic() + LEAVING_S
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            found = read_server(path)
            if found is None or lives(found) or time.monotonic() > until:
                raise
        time.sleep(0.01)  # the kernel tells nobody


def _taken(path: Path) -> str:
    found = live_server(path)
    if found is None:
        return f"Another server that is starting or stopping uses {path}. Wait for it, or name another with `--data`."
    return (
        f"Another server (pid {found.pid}, {found.url}) uses {path}. "
        "Stop it with `flash server stop`, or give this one a directory of its own with `--data`."
    )


def read_server(path: Path) -> ServerFile | None:
    """What the data directory `path` says of its server, living or dead. None: nothing that can be read."""
    try:
        document = json.loads((path / _ADDRESS).read_text(encoding="utf-8"))
        return ServerFile(**{field.name: document[field.name] for field in dataclasses.fields(ServerFile)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def live_server(path: Path) -> ServerFile | None:
    """The server that uses the data directory `path` and answers, or None."""
    found = read_server(path)
    return found if found is not None and lives(found) else None


def lives(server: ServerFile) -> bool:
    """Whether that very process still runs, and no later one of the same pid."""
    try:
        os.kill(server.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return start_time(server.pid) == server.start_time


def start_time(pid: int) -> str:
    """When a process began, in the system's own count; empty where it does not say, or for a process that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def file_system(path: Path, mounts: Path = _MOUNTS) -> str:
    """The type of the file system that holds `path`, or will; empty where the system does not tell."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    place = path.resolve()
    best, kind = -1, ""
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\"))
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]  # a later mount at the same place covers the earlier one
    return kind
