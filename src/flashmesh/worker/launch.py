"""Starting a fresh interpreter with exactly the descriptors it is to have. Standard library only, for the keeper."""

from __future__ import annotations

import os
import signal

_HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence


def launch(
    argv: Sequence[str],
    *,
    keep: Iterable[int] = (),
    stdout: int | None = None,
    stderr: int | None = None,
    env: Mapping[str, str] | None = None,
    before_exec: Callable[[], None] | None = None,
) -> int:
    """Fork and exec `argv` as the leader of a new process group, stdin on /dev/null; returns its pid.

    `keep` are inherited under their own numbers; nothing else is but stdout and stderr (None: the caller's own).
    Only for single-threaded callers: the child runs Python between fork and exec. A failing exec ends it with 127.
    """
    keep = sorted(set(keep))
    environment = dict(os.environ if env is None else env)
    pid = fork()
    if pid:
        return pid
    try:
        os.setpgid(0, 0)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        for fd in keep:
            os.set_inheritable(fd, True)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        for target, source in ((1, stdout), (2, stderr)):
            if source is not None:
                os.dup2(source, target)
        if before_exec is not None:
            before_exec()
        os.execve(argv[0], list(argv), environment)
    except BaseException as error:
        os.write(2, f"{argv[0]} could not be started: {error}\n".encode(errors="replace"))
    finally:
        os._exit(127)


def fork() -> int:
    """As os.fork, with signals held back in the child until it unblocks them, its own dispositions in place.

    One that came before would be taken by the parent's handler, which the child has a copy of, and be lost: a process
    that is asked to leave right after its birth would stay.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def anonymous_file(content: bytes = b"") -> int:
    """A descriptor of a file without a name, rewound: a memfd on Linux, an unlinked temporary file elsewhere."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("flash", os.MFD_CLOEXEC)
    else:
        from tempfile import TemporaryFile  # 10 ms that only macOS pays

        with TemporaryFile(prefix="flash-") as file:
            fd = os.dup(file.fileno())
    written = 0
    while written < len(content):
        written += os.write(fd, content[written:])
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def read_file(fd: int) -> bytes:
    """Everything in an inherited `anonymous_file`, which is closed."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process and the group it leads; nothing happens when they are gone."""
    for send in (os.killpg, os.kill):
        try:
            send(pid, number)
        except (ProcessLookupError, PermissionError):
            continue  # not a group leader yet, or already reaped
        if send is os.killpg:
            return


def reap(before: Callable[[int], None]) -> Iterator[tuple[int, int]]:
    """(pid, status) of each child that has ended; status negative = signal.

    `before(pid)` runs while the id is still the dead child's, so that its group can be killed without hitting another.
    (macOS before Python 3.13 cannot look first; there it runs just after.)
    """
    while True:
        try:
            if hasattr(os, "waitid"):
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return
                before(found.si_pid)
                pid, status = os.waitpid(found.si_pid, 0)
            else:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                before(pid)
        except ChildProcessError:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def describe_status(status: int) -> str:
    """A waitpid status (negative = signal) in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {-status} ({signal.Signals(-status).name})"
    except ValueError:
        return f"signal {-status}"
