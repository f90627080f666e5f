"""What a fresh child must shed: descriptors, signal handlers, random state. And what it must have: its own group."""

import os
import signal
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from flashmesh.worker import parent

_KEPT_DISPOSITIONS: Final = (signal.SIGPIPE, signal.SIGXFSZ)
"""Ignored by every Python process; a broken pipe is an exception, not a death."""


def open_fds() -> set[int]:
    """The descriptors this process has open. Exact where the system tells, else every number that could be one."""
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    try:
        listed = [int(name) for name in os.listdir(folder)]  # noqa: PTH208 - runs in every fresh child
    except OSError:
        listed = list(range(os.sysconf("SC_OPEN_MAX")))
    return {fd for fd in listed if _is_open(fd)}  # the listing's own descriptor is not any more


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def close_all_but(keep: Collection[int]) -> None:
    """Close every descriptor that is neither kept nor stdin, stdout, stderr."""
    for fd in open_fds().difference(keep, (0, 1, 2)):
        os.close(fd)


def detach(*, parent_pid: int) -> None:
    """Lead an own process group, die with the parent."""
    os.setpgid(0, 0)
    parent.die_with_parent(parent_pid)


def connect(*, stdout: int, stderr: int) -> None:
    """Stdin on /dev/null, output into the given pipes."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)


def handled_signals() -> list[int]:
    """Signals without their default disposition here. Looked up before a fork: it takes most of a millisecond."""
    numbers = [int(number) for number in signal.valid_signals() if number not in _KEPT_DISPOSITIONS]
    return [number for number in numbers if signal.getsignal(number) not in (signal.SIG_DFL, None)]


def reset_signals(handled: Iterable[int]) -> None:
    """Default handlers, nothing blocked, no wake-up descriptor, whatever parent and imports had set."""
    signal.set_wakeup_fd(-1)
    for number in handled:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def reseed() -> None:
    """Random numbers of our own: forks of one process would all draw the same ones. (`random` itself sees to that.)"""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "seed"):
        torch.seed()


def private_bytes(pid: int) -> int:
    """Memory of a process that it shares with nobody, in bytes. Raises OSError where the system does not tell."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024
