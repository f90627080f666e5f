"""Dying with the process that made us.

Linux: PR_SET_PDEATHSIG, which the kernel clears at fork and sends when the *thread* that forked us ends; so it is set
in each child by itself, and the parent's id compared afterwards, in case it died in between. Elsewhere: a thread that
waits for the session pipe's end.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_prctl: Callable[..., int] | None = None


def prepare() -> None:
    """Load what the calls below need. Before the fork: a child of a big process should not import."""
    global _prctl  # a C function looked up once per process tree
    if _prctl is None and sys.platform == "linux":
        import ctypes  # 5 ms that only processes which fork need to pay

        _prctl = ctypes.CDLL(None, use_errno=True).prctl


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for us when `parent_pid`, our parent, is gone; at once when it already is. Nothing on macOS."""
    prepare()
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that their ends are seen and their ids not reused."""
    prepare()
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """Our child processes, adopted ones included; none where the system does not tell."""
    me = os.getpid()
    try:
        with open(f"/proc/{me}/task/{me}/children") as listed:  # noqa: PTH123 - the keeper does without pathlib
            return [int(pid) for pid in listed.read().split()]
    except OSError:
        return []


def watch_session(session_fd: int) -> None:
    """Kill our process group when the session ends. Only where the kernel does not do it for us (macOS)."""
    if sys.platform != "linux":
        from threading import Thread  # never on the path of a forked worker

        Thread(target=_wait_for_end, args=(session_fd,), name="flash-session-watch", daemon=True).start()


def _wait_for_end(session_fd: int) -> None:
    while os.read(session_fd, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)
