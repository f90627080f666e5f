"""What is killed, hangs or is broken under a real `flash server`, and what its callers see of it."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from acceptance_server import RunningServer, serving

WORK = """\
import os
import time
from pathlib import Path

from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="work", workersMax=2)
brief = CpuLiveServerless(name="brief", workersMax=1, executionTimeoutMs=300)


@remote(cpu)
def note(n: int) -> int:
    with open(os.environ["FLASH_TEST_NOTES"], "a") as notes:
        notes.write(f"{n}\\n")
    return n


@remote(cpu)
def pid(seconds: float = 0) -> int:
    time.sleep(seconds)
    return os.getpid()


@remote(cpu)
def killed_once(marker: str) -> str:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), 9)
    return "done"


@remote(brief)
def hang() -> None:
    time.sleep(3600)
"""
BROKEN = """\
from flashmesh import CpuLiveServerless, remote

import no_such_package_anywhere


@remote(CpuLiveServerless(name="broken"))
def never() -> int:
    return 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    (root / "work.py").write_text(WORK)
    monkeypatch.setenv("FLASH_TEST_NOTES", str(tmp_path / "notes"))
    return root


def test_everything_that_was_accepted_runs_though_the_server_is_killed_under_load(tmp_path: Path, project: Path):
    """Three times, at random moments; each accepted execution completes, and its record keeps its first end."""
    accepted: dict[str, int] = {}
    server = RunningServer(project, home=tmp_path / "home")
    chance = random.Random(20260101)
    for round in range(3):
        server.start()
        clients = [
            threading.Thread(target=_enqueue_until_it_dies, args=(server, accepted, range(start, start + 100_000)))
            for start in range(round * 1_000_000, round * 1_000_000 + 400_000, 100_000)
        ]
        for client in clients:
            client.start()
        wanted = len(accepted) + chance.randrange(20, 200)
        server.until(lambda wanted=wanted: len(accepted) >= wanted)
        server.kill()
        for client in clients:
            client.join()
    server.start()
    try:
        first = {id: server.until_ended(id) for id in accepted}
        assert {record["status"] for record in first.values()} == {"success"}
        assert {id: record["output"] for id, record in first.items()} == accepted
        assert {id: server.execution(id) for id in accepted} == first
        noted = (tmp_path / "notes").read_text().split()
        assert {int(n) for n in noted} >= set(accepted.values())
    finally:
        assert server.stop() == 0, server.output()


def test_kept_workers_hand_over_what_they_finished_while_the_server_was_away(tmp_path: Path, project: Path):
    """Killed three times under load: the same workers serve on, and each call that had begun completes as it did."""
    accepted: dict[str, int] = {}
    begun: dict[str, int] = {}
    server = RunningServer(project, "--keep-endpoints", home=tmp_path / "home")
    chance = random.Random(20261121)
    for round in range(3):
        server.start()
        client = threading.Thread(
            target=_enqueue_until_it_dies, args=(server, accepted, range(round * 1_000_000, (round + 1) * 1_000_000))
        )
        client.start()
        long = [server.enqueue("pid", {"seconds": 0.4})[1]["executionId"] for _ in range(2)]
        server.until(lambda long=long: all(server.execution(id)["status"] != "queued" for id in long))
        begun |= {id: server.execution(id)["attempt"] for id in long}
        wanted = len(accepted) + chance.randrange(5, 60)
        server.until(lambda wanted=wanted: len(accepted) >= wanted)
        server.kill()
        client.join()
    server.start()
    try:
        first = {id: server.until_ended(id) for id in (*accepted, *begun)}
        assert {record["status"] for record in first.values()} == {"success"}
        assert {id: first[id]["output"] for id in accepted} == accepted
        assert {id: first[id]["attempt"] for id in begun} == begun, "a call that a worker ran was run again"
        workers = {first[id]["output"] for id in begun}
        assert len(workers) <= 2, "workers were replaced"
        assert {id: server.execution(id) for id in first} == first
        noted = [int(n) for n in (tmp_path / "notes").read_text().split()]
        assert set(noted) >= set(accepted.values())
    finally:
        assert server.stop() == 0, server.output()


def _enqueue_until_it_dies(server: RunningServer, accepted: dict[str, int], numbers: range) -> None:
    for n in numbers:
        status, answer = server.enqueue("note", {"n": n})
        if status == 0:
            return
        assert status == 202, answer
        accepted[answer["executionId"]] = n


def test_a_worker_killed_in_a_call_fails_it_and_the_next_one_works(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        status, answer = server.invoke("killed_once", {"marker": str(tmp_path / "sync")})
        assert (status, answer["error"]["code"]) == (500, "WORKER_LOST"), answer
        assert server.invoke("killed_once", {"marker": str(tmp_path / "sync")})[0] == 200


def test_an_accepted_call_whose_worker_is_killed_is_run_again(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        _, accepted = server.enqueue("killed_once", {"marker": str(tmp_path / "async")})
        record = server.until_ended(accepted["executionId"])
        assert (record["status"], record["output"]) == ("success", "done")


def test_a_template_that_is_killed_comes_back_with_the_next_call(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        _, first = server.invoke("pid", {})
        template = _parent(_parent(first["output"]))
        os.kill(template, signal.SIGKILL)
        # Its worker dies with it, a moment later.
        server.until(lambda: server.invoke("pid", {})[1].get("output") not in (None, first["output"]))


def test_a_call_that_hangs_ends_at_its_limit_and_frees_its_worker(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        for _ in range(2):
            status, answer = server.invoke("hang", {})
            assert (status, answer["error"]["code"]) == (504, "TIMEOUT"), answer


def test_a_wait_that_is_over_leaves_the_execution_running(tmp_path: Path, project: Path):
    with serving(project, home=tmp_path / "home") as server:
        status, answer = server.invoke("pid", {"seconds": 1}, X_Timeout_Ms="100")
        assert status == 408, answer
        assert server.until_ended(answer["executionId"])["status"] == "success"


def test_an_endpoint_that_cannot_be_imported_says_why_and_shows_in_readiness(tmp_path: Path, project: Path):
    (project / "broken.py").write_text(BROKEN)
    server = RunningServer(project, home=tmp_path / "home").start(ready=False)
    try:
        status, answer = server.until(
            lambda: "no_such_package_anywhere" in str((answer := server.invoke("never", {}))[1]) and answer
        )
        assert status == 503, answer
        status, answer = server.get("/readyz")
        assert (status, answer["status"], answer["reasons"][0]["code"]) == (200, "degraded", "IMPORT_FAILED")
        assert server.invoke("pid", {})[0] == 200
    finally:
        server.stop()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """16 MB that can be filled for real."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if not mounted or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)]).returncode:
        pytest.skip("a small disk needs root and the right to mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_refuses_what_it_cannot_keep_and_takes_calls_again_once_there_is_room(
    tmp_path: Path, project: Path, small_disk: Path
):
    """Calls that somebody waits for go on meanwhile; nothing that was refused ever runs."""
    with serving(project, home=tmp_path / "home", data=small_disk / "data") as server:
        _, first = server.enqueue("note", {"n": 1})
        server.until_ended(first["executionId"])
        filler = small_disk / "filler"
        _fill(filler)
        refused = server.until(lambda: (answer := server.enqueue("note", {"n": 2}))[0] == 503 and answer)
        assert refused[1]["error"] == "STORE_UNAVAILABLE", refused
        assert server.invoke("pid", {})[0] == 200
        seen = len((tmp_path / "notes").read_text().split())
        filler.unlink()
        _, accepted = server.until(lambda: (answer := server.enqueue("note", {"n": 3}))[0] == 202 and answer)
        assert server.until_ended(accepted["executionId"])["status"] == "success"
        ran = (tmp_path / "notes").read_text().split()
        assert ran.count("3") == 1
        assert ran.count("2") <= seen, "a refused call ran later"


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass
