"""Runs one command as a process group that ends when whoever asked for it does, however that died.

A script of its own (`python -I -S installer.py COMMAND…`), standard library only. The asking process holds the write
end of this one's standard input: end of file there means that nobody waits any more, and the whole group is killed. So
an installer never outlives the session that started it, nor do the compilers it runs.
"""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run `command` with our output; its exit status, or 128 + the signal that ended it."""
    wake, woken = os.pipe()
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_dies_with_us())
    try:
        while child.poll() is None:
            ready, _, _ = select.select([sys.stdin.fileno(), wake], [], [])
            if wake in ready:
                os.read(wake, 4096)
            if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 1):
                return 128 + signal.SIGKILL
    finally:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _dies_with_us() -> Callable[[], None] | None:
    """What the child runs first, so that it goes even when this process is killed with -9. Linux only."""
    if sys.platform != "linux":
        return None
    import ctypes  # only here: a few milliseconds

    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
