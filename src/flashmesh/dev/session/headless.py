"""A session without a server of its own: for scripts, and for `.flash/server.py` under somebody else's uvicorn.

Run as `python -P -m flashmesh.dev.session.headless SETTINGS` by `launch`. It ends when its parent's pipe closes,
however the parent died, and takes its workers along.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from flashmesh.functions.errors import EndpointUnavailable

_START_LIMIT_S = 30.0
_END_LIMIT_S = 8.0
DRAIN_S = 2.0
_GOODBYE = b"q"
"""Written before the pipe is closed: running calls may finish. Without it the parent was killed: all ends at once."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadlessSettings:
    """What the parent tells its session, as JSON on the command line."""

    root: str
    parent_fd: int
    """Read end of a pipe that only the parent writes to: EOF = the parent is gone."""
    ready_fd: int
    """The path of the link, and a newline, is written here when it answers."""
    scan: bool
    """Whether the directory is a project, whose functions are served; else only what is registered is."""
    install: bool = True
    verbose: bool = False


class SessionHandle:
    """A session that this process started. `link` is the path of its socket."""

    def __init__(self, process: "subprocess.Popen[bytes]", parent_fd: int, link: str) -> None:
        self.link = link
        self.process = process
        self._parent_fd = parent_fd
        self._pid = os.getpid()
        self._closing = threading.Lock()

    @property
    def key(self) -> bytes:
        """The session's signing key."""
        return (Path(self.link).parent / "key").read_bytes()

    @property
    def alive(self) -> bool:
        return self._pid == os.getpid() and self.process.poll() is None

    def close(self) -> None:
        """End it and wait for that: running calls get a moment, then everything is killed."""
        with self._closing:
            if self._parent_fd < 0 or self._pid != os.getpid():
                return
            with contextlib.suppress(OSError):
                os.write(self._parent_fd, _GOODBYE)
            os.close(self._parent_fd)
            self._parent_fd = -1
        try:
            self.process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()  # its own pipe closes with it, which ends the rest
            self.process.wait()

    def forget(self) -> None:
        """In a forked child: the session is the parent's. Only let go of the pipe, which would keep it alive."""
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
            self._parent_fd = -1


def launch(root: Path, *, scan: bool = True, install: bool = True, output: int | None = None) -> SessionHandle:
    """Start a session for `root` and wait until it answers.

    Args:
        output: a descriptor for what user code prints; None = this process's own stdout and stderr.
    Raises:
        EndpointUnavailable: it ended or did not answer in time; its own words are on stderr.
    """
    parent_read, parent_write = os.pipe()
    ready_read, ready_write = os.pipe()
    settings = HeadlessSettings(root=str(root), parent_fd=parent_read, ready_fd=ready_write, scan=scan, install=install)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flashmesh.dev.session.headless", json.dumps(dataclasses.asdict(settings))],
            pass_fds=(parent_read, ready_write),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,  # Ctrl-C is the parent's to handle
        )
    except BaseException:
        os.close(parent_write)
        os.close(ready_read)
        raise
    finally:
        os.close(parent_read)
        os.close(ready_write)
    link = _read_line(ready_read)
    handle = SessionHandle(process, parent_write, link)
    if not link:
        handle.close()
        raise EndpointUnavailable("The session for this script did not start; the lines above say why.")
    return handle


def _read_line(fd: int) -> str:
    import select

    text = b""
    try:
        while not text.endswith(b"\n"):
            if not select.select([fd], [], [], _START_LIMIT_S)[0]:
                return ""
            piece = os.read(fd, 4096)
            if not piece:
                return ""
            text += piece
    finally:
        os.close(fd)
    return text.decode().strip()


def main() -> int:
    """Entry point of the process."""
    settings = HeadlessSettings(**json.loads(sys.argv[1]))
    import asyncio

    from flashmesh.deploy.local.place import SessionPlace
    from flashmesh.kit.descriptors import raise_limit

    raise_limit()
    place = SessionPlace.create()
    try:
        return asyncio.run(_serve(settings, place))
    finally:
        place.close()


async def _serve(settings: HeadlessSettings, place: object) -> int:
    import asyncio

    from flashmesh.deploy.local.place import SessionPlace, sweep
    from flashmesh.deploy.local.printer import LogPrinter
    from flashmesh.dev.session.session import Session, SessionSettings
    from flashmesh.project.model import Project
    from flashmesh.project.scan import scan

    assert isinstance(place, SessionPlace)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent_says() -> None:
        if not os.read(settings.parent_fd, 1):
            place.close()  # closes the session pipe: keeper, templates and workers end by themselves
            os._exit(1)
        stop.set()

    loop.add_reader(settings.parent_fd, parent_says)
    root = Path(settings.root)
    project = scan(root) if settings.scan else Project(root=root, name=root.name or "script", resources=())
    printer = LogPrinter(pretty=True, quiet=not settings.verbose)
    session = Session(
        project, place=place, printer=printer, settings=SessionSettings(install=settings.install, drain_s=DRAIN_S)
    )
    await session.start()
    with contextlib.suppress(BrokenPipeError):
        os.write(settings.ready_fd, f"{place.link}\n".encode())
    os.close(settings.ready_fd)
    session.in_background(asyncio.to_thread(sweep), "sweeping after killed sessions")
    await stop.wait()
    loop.remove_reader(settings.parent_fd)
    await session.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
