"""Threads of numeric libraries around a fork.

A child of a process that used OpenMP with several threads hangs for ever in its next parallel region, so the import
runs with one thread, and each worker sets the count back: in the environment for libraries loaded later, and in those
that are loaded already, which read the environment only once.

OpenBLAS starts its threads when it is told of more than one, and each spins for 25 ms or more before it sleeps. So it
is told before the fork, which ends them by OpenBLAS's own handler: a worker starts its own in its first product that
is worth it, and one that never computes has none.
"""

import contextlib
import os
import sys
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SETTERS: Final = {
    "openblas": (
        "scipy_openblas_set_num_threads64_",
        "scipy_openblas_set_num_threads",
        "openblas_set_num_threads64_",
        "openblas_set_num_threads",
    ),
    "mkl_rt": ("MKL_Set_Num_Threads",),
    "libgomp": ("omp_set_num_threads",),
    "libiomp5": ("omp_set_num_threads",),
    "libomp": ("omp_set_num_threads",),
}

_POOLED: Final = "openblas"

Setter = Callable[[int], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Libraries:
    """How to tell the loaded libraries their thread count; `pooled` are those whose threads start by that."""

    pooled: tuple[Setter, ...] = ()
    others: tuple[Setter, ...] = ()


def limit(env: MutableMapping[str, str]) -> dict[str, str | None]:
    """One thread for what is imported from now on. Returns what was there, for `restore`."""
    before = {name: env.get(name) for name in VARIABLES}
    env.update(dict.fromkeys(VARIABLES, "1"))
    return before


def libraries() -> Libraries:
    """Those that are loaded. Looked up once, before the fork."""
    pooled: list[Setter] = []
    others: list[Setter] = []
    for path in _libraries():
        for word, names in _SETTERS.items():
            if word in path.rsplit("/", 1)[-1]:
                (pooled if word == _POOLED else others).extend(_lookup(path, names))
                break
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        others.append(torch.set_num_threads)
    return Libraries(pooled=tuple(pooled), others=tuple(others))


def before_first_fork(before: dict[str, str | None], known: Libraries) -> None:
    """Right before it, in the parent: the fork ends the threads that this starts, and its children know the count."""
    _tell(before, known.pooled)


def restore(before: dict[str, str | None], known: Libraries, env: MutableMapping[str, str], *, forked: bool) -> None:
    """Undo `limit` in a fresh worker: the user's own count, or one per usable CPU.

    `forked`: its parent did what comes before the first fork.
    """
    for name, value in before.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    _tell(before, known.others if forked else (*known.pooled, *known.others))


def _tell(before: dict[str, str | None], setters: tuple[Setter, ...]) -> None:
    count = _count(before)
    if count > 1:
        for setter in setters:
            setter(count)


def _count(before: dict[str, str | None]) -> int:
    for name in VARIABLES:
        value = (before.get(name) or "").split(",")[0]
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _libraries() -> list[str]:
    """Paths of the shared libraries this process has loaded; none where the system does not tell."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in lines if line.count(" ") >= 5 and "/" in line)
    return [path for path in paths if any(word in path for word in _SETTERS)]


def _lookup(path: str, names: tuple[str, ...]) -> list[Setter]:
    import ctypes  # only for processes that loaded a numeric library

    with contextlib.suppress(OSError):
        library = ctypes.CDLL(path)
        for name in names:
            if hasattr(library, name):
                return [getattr(library, name)]
    return []
