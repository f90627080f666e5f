"""What a process and everything below it has used: CPU time and memory, as /proc tells."""

import os
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and all its living descendants."""
    found = [pid]
    for parent in found:
        for thread in Path(f"/proc/{parent}/task").glob("*"):
            try:
                found += map(int, (thread / "children").read_text().split())
            except OSError:
                continue  # it has ended meanwhile
    return found


def cpu_s(pid: int) -> float:
    """User and system time of one process so far; 0 when it is gone."""
    return sum(user_and_system_s(Path(f"/proc/{pid}")))


def user_and_system_s(place: Path) -> tuple[float, float]:
    """The two of a process or thread, by its directory in /proc."""
    try:
        fields = (place / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0.0
    return int(fields[11]) * _TICK_S, int(fields[12]) * _TICK_S


def tree_cpu_s(pid: int) -> float:
    """Of the whole family."""
    return sum(map(cpu_s, family(pid)))


def rss_mb(pid: int) -> float:
    """Resident memory of one process."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def tree_pss_mb(pid: int) -> float:
    """Memory of the whole family, what they share counted once."""
    return sum(map(_pss_mb, family(pid)))


def _pss_mb(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    return 0.0
