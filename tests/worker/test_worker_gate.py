"""The fork gate: what is seen, and what is decided from it."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from flashmesh.worker.template import gate, numeric
from flashmesh.worker.template.gate import Forkable, NotForkable, Observation, observe, verdict


def test_a_quiet_process_is_forkable():
    """Nothing seen, nothing against it; native threads are reported but do not decide."""
    assert verdict(Observation()) == Forkable()
    assert verdict(Observation(native_threads=4)) == Forkable()


@pytest.mark.parametrize(
    ("seen", "word"),
    [
        (Observation(preload=False), "preload=False"),
        (Observation(can_fork=False), "fork"),
        (Observation(python_threads=("worker-1",)), "worker-1"),
        (Observation(native_pools=("polars-0",)), "polars-0"),
        (Observation(cuda_initialised=True), "CUDA"),
        (Observation(gpu_devices=("/dev/nvidia0",)), "/dev/nvidia0"),
        (Observation(running_loop=True), "event loop"),
    ],
)
def test_what_a_fork_would_not_survive_is_refused_with_its_reason(seen, word):
    """Each reason names what was found; those the user can act on say where it belongs."""
    decision = verdict(seen)
    assert isinstance(decision, NotForkable)
    assert word in decision.reason


def test_a_live_thread_is_seen_by_name():
    """Threads of `threading` by their names, those of `_thread` too."""
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="metrics-reporter")
    before = len(observe().python_threads)
    thread.start()
    try:
        seen = observe()
        assert "metrics-reporter" in seen.python_threads
        assert len(seen.python_threads) == before + 1
        assert sys.platform != "linux" or seen.native_threads >= 1
    finally:
        release.set()
        thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_thread_pool_that_a_fork_would_lose_is_seen_by_its_threads_names():
    """polars that has computed something has one; polars that was only imported has a cleaner, which no child needs."""
    release = threading.Event()

    def named(name: str) -> None:
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)
        started.release()
        release.wait()

    started = threading.Semaphore(0)
    threads = [
        threading.Thread(target=named, args=(name,)) for name in ("polars-0", "polars-ooc-clea", "tokio-rt-worker")
    ]
    for thread in threads:
        thread.start()
        started.acquire()
    try:
        assert sorted(observe().native_pools) == ["polars-0", "tokio-rt-worker"]
    finally:
        release.set()
        for thread in threads:
            thread.join()


def test_a_running_loop_is_seen():
    """Inside a coroutine the loop of this thread is running."""

    async def inside() -> bool:
        return observe().running_loop

    assert asyncio.run(inside())
    assert not observe().running_loop


def test_an_initialised_cuda_context_is_seen(monkeypatch):
    """Asked of torch, and only if the user imported it."""
    fake = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert observe().cuda_initialised
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace())
    assert not observe().cuda_initialised


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_open_gpu_devices_are_seen(tmp_path, monkeypatch):
    """A descriptor on /dev/nvidia* is one, whoever opened it."""
    real = gate.Path

    class Folder:
        def __init__(self, path: str) -> None:
            self.path = path

        def iterdir(self):
            return iter([SimpleNamespace(readlink=lambda: real("/dev/nvidia0"))])

        def glob(self, pattern: str):
            return iter([])

    monkeypatch.setattr(gate, "Path", Folder)
    assert observe().gpu_devices == ("/dev/nvidia0",)


def test_numeric_libraries_get_one_thread_for_the_import_and_all_of_them_afterwards():
    """`limit` then `restore` leaves the environment as it was; the user's own count wins over one per CPU."""
    env = {"OMP_NUM_THREADS": "3", "HOME": "/x"}
    before = numeric.limit(env)
    assert {env[name] for name in numeric.VARIABLES} == {"1"}
    counts: list[int] = []
    numeric.restore(before, numeric.Libraries(others=(counts.append,)), env, forked=True)
    assert env == {"OMP_NUM_THREADS": "3", "HOME": "/x"}
    assert counts == [3]


@pytest.mark.skipif(sys.platform != "linux" or (os.cpu_count() or 1) < 2, reason="needs /proc and two CPUs")
def test_a_loaded_blas_is_told_its_thread_count_again():
    """NumPy imported under the limit multiplies with one thread; a worker may use all CPUs.

    Their threads start with its first product, and not before: they would keep a CPU busy though nobody computes.
    """
    code = """
import os
from flashmesh.worker.template import numeric
before = numeric.limit(os.environ)
import numpy
threads = lambda: len(os.listdir("/proc/self/task"))
assert threads() == 1, threads()
known = numeric.libraries()
numeric.before_first_fork(before, known)
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        numeric.restore(before, known, os.environ, forked=True)
        idle = threads()
        matrix = numpy.ones((512, 512))
        matrix @ matrix
        os._exit(0 if idle == 1 and (threads() > 1 or not known.pooled) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert threads() == 1
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
