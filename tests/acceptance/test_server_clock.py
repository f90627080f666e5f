"""A real `flash server` on a machine whose clock is set while calls wait, run and are tried again."""

import threading
from pathlib import Path
from typing import Any

import pytest
from acceptance_server import RunningServer, serving

WORK = """\
import os
import time
from pathlib import Path

from flashmesh import CpuLiveServerless, remote

work = CpuLiveServerless(name="work", workersMax=1)
brief = CpuLiveServerless(name="brief", workersMax=1, executionTimeoutMs=1000)


@remote(work)
def hold(folder: str) -> str:
    Path(folder, "begun").touch()
    while not Path(folder, "end").exists():
        time.sleep(0.005)
    return "held"


@remote(work)
def echo(x):
    return x


@remote(work)
def dies_twice(folder: str) -> int:
    died = len(list(Path(folder).glob("died-*")))
    if died < 2:
        Path(folder, f"died-{died}").touch()
        os.kill(os.getpid(), 9)
    return died


@remote(brief)
def hang() -> None:
    time.sleep(3600)
"""
CLOCK = """\
import os
import time

_real, _file = time.time, os.environ["FLASH_TEST_CLOCK"]


def _as_it_was_set() -> float:
    with open(_file) as file:
        return _real() + float(file.read())


time.time = _as_it_was_set
"""


class MachineClock:
    """The clock of the server's processes and of all that they start."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(CLOCK)
        self._file = folder / "offset"
        self.env = {"PYTHONPATH": str(folder), "FLASH_TEST_CLOCK": str(self._file)}
        self.set_by(0)

    def set_by(self, hours: float) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(hours * 3600))
        fresh.replace(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> MachineClock:
    return MachineClock(tmp_path / "clock")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "work.py").write_text(WORK)
    return root


@pytest.mark.parametrize("hours", [30, -30])
def test_nothing_is_lost_late_or_early_when_the_clock_is_set(
    tmp_path: Path, project: Path, clock: MachineClock, hours: int
):
    """More than the day that results are kept: calls wait, run, hang, are retried, and have ended when it happens."""
    with serving(project, home=tmp_path / "home", **clock.env) as server:
        _, ended = server.enqueue("echo", {"x": 1}, Idempotency_Key="before")
        server.until_ended(ended["executionId"])
        _, plain = server.enqueue("echo", {"x": 2})
        server.until_ended(plain["executionId"])
        _, running = server.enqueue("hold", {"folder": str(tmp_path)})
        server.until(lambda: (tmp_path / "begun").exists())
        _, waiting = server.enqueue("echo", {"x": 3})
        _, retried = server.enqueue("dies_twice", {"folder": str(tmp_path)})
        hung = Asking(server, "hang", {})
        waited = Asking(server, "echo", {"x": 4}, X_Timeout_Ms="60000")
        clock.set_by(hours)
        (tmp_path / "end").touch()
        assert hung.answer()[0] == 504, hung.answer()
        assert waited.answer()[0] == 200, waited.answer()
        outputs = [server.until_ended(one["executionId"])["output"] for one in (running, waiting, retried)]
        assert outputs == ["held", 3, 2]
        assert server.execution(plain["executionId"])["output"] == 2
        assert server.enqueue("echo", {"x": 1}, Idempotency_Key="before")[1]["executionId"] == ended["executionId"]
        assert server.get("/readyz")[0] == 200
        clock.set_by(0)
        assert server.execution(waiting["executionId"])["output"] == 3
        assert server.stop() == 0, server.output()


@pytest.mark.parametrize("hours", [5, -30])
def test_a_server_that_starts_with_another_clock_goes_on_with_what_was_accepted(
    tmp_path: Path, project: Path, clock: MachineClock, hours: int
):
    server = RunningServer(project, home=tmp_path / "home", **clock.env).start()
    try:
        _, ended = server.enqueue("echo", {"x": 1}, Idempotency_Key="before")
        server.until_ended(ended["executionId"])
        _, running = server.enqueue("hold", {"folder": str(tmp_path)})
        server.until(lambda: (tmp_path / "begun").exists())
        _, waiting = server.enqueue("echo", {"x": 2})
        server.kill()
        (tmp_path / "end").touch()
        clock.set_by(hours)
        server.start()
        outputs = [server.until_ended(one["executionId"])["output"] for one in (running, waiting)]
        assert outputs == ["held", 2]
        assert server.enqueue("echo", {"x": 1}, Idempotency_Key="before")[1]["executionId"] == ended["executionId"]
    finally:
        server.stop()


class Asking:
    """A call that somebody waits for, in a thread."""

    def __init__(self, server: RunningServer, function: str, given: Any, **headers: str) -> None:
        self._answers: list[tuple[int, Any]] = []
        self._thread = threading.Thread(
            target=lambda: self._answers.append(server.invoke(function, given, **headers)), daemon=True
        )
        self._thread.start()

    def answer(self) -> tuple[int, Any]:
        self._thread.join(30)
        return self._answers[0]
