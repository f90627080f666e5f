"""WARM and JOB under a real `flash server`: the same code, another life of its processes."""

import threading
import time
from pathlib import Path

import pytest
from acceptance_server import RunningServer, serving

WORK = """\
import os
import time

from flashmesh import CpuLiveServerless, remote

work = CpuLiveServerless(name="work", workersMax=2)


@remote(work)
def pid(seconds: float = 0) -> int:
    time.sleep(seconds)
    return os.getpid()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "work.py").write_text(WORK)
    return root


def set_mode(server: RunningServer, mode: str) -> None:
    status, answer = server.ask("PATCH", "/v1/functions/pid", {"executionMode": mode}, server.as_admin())
    assert (status, answer["effectiveExecutionMode"]) == (200, mode), answer


def pids(server: RunningServer, calls: int) -> list[int]:
    answers = [server.invoke("pid", {}) for _ in range(calls)]
    assert {status for status, _ in answers} == {200}, answers
    return [answer["output"] for _, answer in answers]


def test_each_job_has_a_process_of_its_own_and_warm_workers_take_many(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        assert len(set(pids(server, 6))) <= 2
        set_mode(server, "JOB")
        server.until(lambda: len(set(pids(server, 6))) == 6)
        set_mode(server, "WARM")
        server.until(lambda: len(set(pids(server, 6))) <= 2)


def test_a_mode_set_while_the_first_worker_starts_is_the_mode_it_has(tmp_path: Path, project: Path):
    """The template is on its way with the settings of before."""
    server = RunningServer(project, home=tmp_path / "home").start(ready=False)
    try:
        server.until(lambda: server.get("/healthz")[0] == 200 and server.get("/v1/functions/pid")[0] == 200)
        first = threading.Thread(target=server.invoke, args=("pid", {}))
        first.start()
        set_mode(server, "JOB")
        first.join()
        server.until(lambda: len(set(pids(server, 6))) == 6)
    finally:
        server.stop()


def test_no_call_is_lost_or_run_twice_while_the_mode_changes(tmp_path: Path, project: Path):
    """Calls that run finish where they are; those that wait run in the other mode."""
    with serving(project, home=tmp_path / "home") as server:
        answers: list[tuple[int, dict[str, object]]] = []
        ends = time.monotonic() + 2.5

        def ask() -> None:
            while time.monotonic() < ends:
                answers.append(server.invoke("pid", {"seconds": 0.05}))

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        accepted = [server.enqueue("pid", {"seconds": 0.05})[1]["executionId"] for _ in range(20)]
        for mode in ("JOB", "WARM", "JOB"):
            set_mode(server, mode)
        for client in clients:
            client.join()
        assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200]
        records = [server.until_ended(id) for id in accepted]
        assert {(record["status"], record["attempt"]) for record in records} == {("success", 1)}
        server.until(lambda: len(set(pids(server, 6))) == 6)
