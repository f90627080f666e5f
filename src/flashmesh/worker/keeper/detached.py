"""A keeper that outlives its server: where it is found, how it is started, and whether it is there.

Its directory (0700) holds its control socket, its pidfile, a lock that it holds as long as it lives, and what it writes
to stderr. The lock makes it the only one; the pidfile says whom to end when nobody answers at the socket.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.worker.keeper import pidfile

ENDING_S: Final = 3.0
"""How long a keeper may take from closing its socket to its end; a killed one takes milliseconds."""
LOOK_S: Final = 0.01
START_S: Final = 10.0
"""How long an interpreter may take to start."""
ANSWER_S: Final = 10.0
"""How long a keeper may take to say what it has. It does nothing that takes time."""


@dataclass(frozen=True, slots=True)
class KeeperPlace:
    """The files of the keeper in `directory`, whose path must be short: Unix allows 107 bytes for the socket's."""

    directory: Path

    @property
    def control(self) -> Path:
        return self.directory / "keeper.sock"

    @property
    def pidfile(self) -> Path:
        return self.directory / "keeper.pid"

    @property
    def lock(self) -> Path:
        return self.directory / "keeper.lock"

    @property
    def log(self) -> Path:
        return self.directory / "keeper.log"

    def running(self) -> int | None:
        """The keeper's process; None when there is none, or its id belongs to another process by now."""
        return pidfile.read(str(self.pidfile))

    def connect(self) -> socket.socket | None:
        """A connection to the keeper; None when nobody listens."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(self.control))
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError as error:
            sock.close()
            raise EndpointUnavailable(f"the keeper's socket {self.control} cannot be used: {error}") from error
        sock.setblocking(False)
        return sock

    def connect_or_gone(self) -> socket.socket | None:
        """The same, but None only once no keeper is left: one that is ending is waited for, ENDING_S at most. Blocks.

        Raises EndpointUnavailable when it lives on and does not listen.
        """
        deadline = time.monotonic() + ENDING_S
        while (sock := self.connect()) is None and (pid := self.running()) is not None:
            if time.monotonic() > deadline:
                raise EndpointUnavailable(f"the keeper (process {pid}) is ending. Try again in a moment")
            time.sleep(LOOK_S)
        return sock

    def take_lock_of_the_dead(self) -> int:
        """The lock's descriptor, once a keeper that is ending has let go. Blocks for ENDING_S at most.

        Raises EndpointUnavailable when a keeper serves, or lives on.
        """
        deadline = time.monotonic() + ENDING_S
        while (lock_fd := self.take_lock()) is None:
            sock = self.connect()
            if sock is not None:
                sock.close()
            if sock is not None or time.monotonic() > deadline:
                raise EndpointUnavailable(
                    f"another server's keeper runs in {self.directory} (process {self.running()}). "
                    "Stop that server first"
                )
            time.sleep(LOOK_S)
        return lock_fd

    def take_lock(self) -> int | None:
        """The lock's descriptor; None while a keeper lives, or another server is starting one."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def kill(self) -> bool:
        """End the keeper at once, and with it everything it had started. Whether there was one."""
        pid = self.running()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True


def start(place: KeeperPlace, command: Sequence[str], template_command: Sequence[str]) -> None:
    """Start a keeper in its own session. Returns when it can be connected to. Blocks for an interpreter's start.

    Raises EndpointUnavailable when one is there already, or this one does not start.
    """
    lock_fd = place.take_lock_of_the_dead()
    listener = socket.socket(socket.AF_UNIX)
    try:
        for left_by_a_dead_one in (place.control, place.pidfile):
            left_by_a_dead_one.unlink(missing_ok=True)
        try:
            listener.bind(str(place.control))
        except OSError as error:
            raise EndpointUnavailable(
                f"the keeper cannot listen on {place.control} ({error}); use a short, writable folder"
            ) from error
        place.control.chmod(0o600)
        listener.listen(8)
        settings = {
            "listen": listener.fileno(),
            "lock": lock_fd,
            "directory": str(place.directory),
            "template": list(template_command),
        }
        with place.log.open("ab") as log:
            code = _run(  # the keeper forks and goes on as its child, so that it is nobody's
                [*command, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(listener.fileno(), lock_fd),
                cwd=place.directory,
            )
        if code != 0:
            raise EndpointUnavailable(f"the keeper did not start (exit status {code}). {place.log} tells more")
    finally:
        listener.close()
        os.close(lock_fd)


def _run(argv: list[str], **options: Any) -> int | str:
    """The exit status, or why there is none."""
    try:
        return subprocess.run(argv, timeout=START_S, check=False, **options).returncode
    except subprocess.TimeoutExpired:
        return f"none after {START_S:.0f} s"
    except OSError as error:
        return str(error)
