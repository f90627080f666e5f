"""Which process a file names: its id and when it began, so that another one that was given the id is not taken for it.

Standard library only, and little of it: the keeper imports this.
"""

from __future__ import annotations

import os


def identity(pid: int) -> str:
    """When a process began, in words that no other process with this id has; empty when there is none."""
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123 - the keeper does without pathlib
            fields = stat.read().rpartition(")")[2].split()
        with open("/proc/sys/kernel/random/boot_id") as boot:  # noqa: PTH123
            return "" if fields[0] == "Z" else f"{boot.read().strip()} {fields[19]}"
    except OSError:
        pass
    if os.path.isdir("/proc/self"):  # noqa: PTH112
        return ""
    import subprocess  # where there is no /proc (macOS)

    return subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()


def write(path: str) -> None:
    """Say that this process is the one."""
    mine = f"{path}.{os.getpid()}"
    fd = os.open(mine, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{os.getpid()} {identity(os.getpid())}\n".encode())
    finally:
        os.close(fd)
    os.rename(mine, path)  # noqa: PTH104


def read(path: str) -> int | None:
    """The process that the file names; None when there is no file, or that process has ended."""
    try:
        with open(path) as file:  # noqa: PTH123
            number, _, began = file.read().strip().partition(" ")
    except OSError:
        return None
    return int(number) if number.isdigit() and began and identity(int(number)) == began else None
