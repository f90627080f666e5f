"""Threads of numeric libraries around a fork.

A child of a process that used OpenMP with several threads hangs for ever in its next parallel region, so the import
runs with one thread, and each worker sets the count back: in the environment for libraries loaded later, and in those
that are loaded already, which read the environment only once.
"""

import contextlib
import os
import sys
from collections.abc import Callable, MutableMapping
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

Setter = Callable[[int], Any]


def limit(env: MutableMapping[str, str]) -> dict[str, str | None]:
    """One thread for what is imported from now on. Returns what was there, for `restore`."""
    before = {name: env.get(name) for name in VARIABLES}
    env.update(dict.fromkeys(VARIABLES, "1"))
    return before


def setters() -> list[Setter]:
    """How to tell the loaded libraries their thread count. Looked up once, before the fork."""
    found: list[Setter] = []
    for path in _libraries():
        for word, names in _SETTERS.items():
            if word in path.rsplit("/", 1)[-1]:
                found += _lookup(path, names)
                break
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_num_threads"):
        found.append(torch.set_num_threads)
    return found


def restore(before: dict[str, str | None], known: list[Setter], env: MutableMapping[str, str]) -> None:
    """Undo `limit` in a fresh worker: the user's own count, or one per usable CPU."""
    for name, value in before.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    count = _count(before)
    if count > 1:
        for setter in known:
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
