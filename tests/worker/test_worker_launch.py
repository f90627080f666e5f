"""Processes that are started, from their first moment on."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator

import pytest

from flashmesh.worker.launch import fork, launch

BIRTHS = 100


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """SIGTERM has a handler here, as in every process that starts others."""
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    yield taken
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_is_told_to_leave_right_after_its_birth_leaves(handled: list[int]) -> None:
    """The signal is its own, though it comes before the program runs."""
    sleep = shutil.which("sleep")
    assert sleep is not None
    for _ in range(BIRTHS):
        pid = launch([sleep, "60"], stdout=sys.__stdout__.fileno() if sys.__stdout__ else None)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert handled == []


def test_a_forked_process_hears_a_signal_once_it_is_ready_for_it(handled: list[int]) -> None:
    """What came before waits; the parent's own signals wait for nothing."""
    for _ in range(BIRTHS):
        pid = fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            signal.pause()
            os._exit(0)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    os.kill(os.getpid(), signal.SIGTERM)
    assert handled == [signal.SIGTERM]
