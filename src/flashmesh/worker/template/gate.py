"""The fork gate: may workers be forked from a process that has imported the user's modules?

A forked child has one thread. Locks that other threads held stay locked for ever, and neither a CUDA context nor an
event loop survives. `observe` looks, `verdict` decides; what is not forkable is served all the same, by processes
started fresh.
"""

import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOST_POOLS: Final = ("polars-", "tokio-r", "async-executor", "rayon")
"""How threads of pools are called whose owner waits for ever for them in a forked child: found by `make test-fork`."""
_POLARS_CLEANER: Final = "polars-ooc"
"""Started by importing polars, and not needed by a child."""
_FRAMEWORKS: Final = ("torch",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """A process after its import. `native_threads` counts all threads but the main one, Python's or not."""

    can_fork: bool = True
    preload: bool = True
    python_threads: tuple[str, ...] = ()
    native_threads: int = 0
    native_pools: tuple[str, ...] = ()
    """Names of threads that belong to pools known not to come back after a fork (see LOST_POOLS)."""
    cuda_initialised: bool = False
    gpu_devices: tuple[str, ...] = ()
    running_loop: bool = False


@dataclass(frozen=True, slots=True)
class Forkable:
    """Workers are forked."""


@dataclass(frozen=True, slots=True)
class NotForkable:
    """Workers are started one by one; `reason` is for status and log."""

    reason: str


Verdict = Forkable | NotForkable


def verdict(seen: Observation) -> Verdict:
    """The decision. Native threads alone do not forbid: most libraries that start some bring their fork handlers."""
    if not seen.can_fork:
        return NotForkable("this system's libraries do not survive a fork")
    if not seen.preload:
        return NotForkable("preload=False")
    if seen.python_threads:
        names = ", ".join(seen.python_threads[:3])
        return NotForkable(f"the import left a thread running ({names}); start it in a @worker_start hook instead")
    if seen.native_pools:
        return NotForkable(
            f"the import started a thread pool ({seen.native_pools[0]}); compute in a @worker_start hook instead"
        )
    if seen.cuda_initialised:
        return NotForkable("the import used CUDA; load models in a @worker_start hook or a class constructor instead")
    if seen.gpu_devices:
        return NotForkable(f"the import opened {seen.gpu_devices[0]}; open GPUs in a @worker_start hook instead")
    if seen.running_loop:
        return NotForkable("an event loop is running after the import; start it in a @worker_start hook instead")
    return Forkable()


def observe(*, preload: bool = True, can_fork: bool = True) -> Observation:
    """This process, now."""
    threads = _native_threads()
    return Observation(
        can_fork=can_fork,
        preload=preload,
        python_threads=_python_threads(),
        native_threads=max(0, len(threads) - 1),
        native_pools=tuple(name for name in threads if name.startswith(LOST_POOLS) and _POLARS_CLEANER not in name),
        cuda_initialised=_cuda_initialised(),
        gpu_devices=_gpu_devices(),
        running_loop=_running_loop(),
    )


def _python_threads() -> tuple[str, ...]:
    """Names of live threads but this one, those started without `threading` included."""
    here = threading.get_ident()
    named = {thread.ident: thread.name for thread in threading.enumerate()}
    return tuple(named.get(ident, f"thread {ident}") for ident in sys._current_frames() if ident != here)


def _native_threads() -> list[str]:
    """Names of all threads, the main one included; none on macOS, which has no /proc and where nothing is forked."""
    names = []
    for folder in Path("/proc/self/task").glob("*"):
        try:
            names.append((folder / "comm").read_text().strip())
        except OSError:
            continue  # it has just ended
    return names


def _cuda_initialised() -> bool:
    for name in _FRAMEWORKS:
        cuda = getattr(sys.modules.get(name), "cuda", None)
        is_initialized = getattr(cuda, "is_initialized", None)
        if is_initialized is not None and is_initialized():
            return True
    return False


def _gpu_devices() -> tuple[str, ...]:
    found = []
    try:
        fds = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return ()
    for fd in fds:
        try:
            target = str(fd.readlink())
        except OSError:
            continue  # the descriptor the listing itself used
        if target.startswith("/dev/nvidia"):
            found.append(target)
    return tuple(found)


def _running_loop() -> bool:
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None
