"""Whatever is killed of a real `flash run`, and however: within a second nothing is left, or the endpoint answers."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from session_fixtures import FLASH, Served, serving, until, write_project

from flashmesh.dev.session.files import find_session
from flashmesh.wire.client import BlockingClient

WORK = """\
import subprocess
import time
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="work", workersMax=1)


@remote(cpu)
def work(seconds: float = 0, child: bool = False) -> str:
    if child:
        subprocess.Popen(["sleep", "1000"])
    time.sleep(seconds)
    return "done"
"""
DRAIN_LIMIT_S = 9.0
"""A SIGTERM lets running calls finish first: the session's drain is 5 s."""


def descendants(served: Served) -> dict[int, tuple[int, str]]:
    """pid -> (parent, command line) of everything below the session."""
    found = {}
    for pid, command in served.processes().items():
        try:
            parent = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        found[pid] = (parent, command)
    return found


def victim(served: Served, role: str) -> int:
    """The pid of one process of a role, told by its command line and its parent."""
    tree = descendants(served)

    def child_of(parent: int, word: str) -> list[int]:
        return [pid for pid, (above, command) in tree.items() if above == parent and word in command]

    def only(found: list[int]) -> int:
        assert found, f"no {role} in {tree}"
        return found[-1]

    session = served.process.pid
    if role == "session":
        return session
    dev_template = only(child_of(session, "flashmesh.dev.server.template"))
    if role == "dev template":
        return dev_template
    if role == "dev server":
        return only(child_of(dev_template, "flashmesh"))
    keeper = only(child_of(session, "flashmesh.worker.keeper.keeper"))
    if role == "keeper":
        return keeper
    if role == "template":
        return only(child_of(keeper, "flashmesh.worker.template.supervisor"))
    return only([worker["pid"] for worker in ask(served, "status")["endpoints"]["work"]["processes"]])


@pytest.mark.parametrize("state", ["idle", "in call", "with a subprocess"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
@pytest.mark.parametrize("role", ["session", "dev template", "dev server", "keeper", "template", "worker"])
def test_nothing_is_left_or_the_endpoint_answers(tmp_path: Path, role: str, number: signal.Signals, state: str) -> None:
    with serving(write_project(tmp_path / "p", work=WORK)) as served:
        assert served.post("/work/run_sync")[0] == 200
        with calling(served, state, seconds=1000 if number == signal.SIGKILL else 1.5):
            os.kill(victim(served, role), number)
            if role == "session":
                limit = 1.0 if number == signal.SIGKILL else DRAIN_LIMIT_S + 1.0
                within(limit, lambda: not served.processes(), served)
                return
            if number == signal.SIGKILL and role.startswith("dev "):
                for id in executions(served):  # a call outlives the server; without this its worker stays busy
                    until(lambda: served.post(f"/work/cancel/{id}")[0] == 200, explain=served.output)  # noqa: B023
            until(lambda: served.post("/work/run_sync")[0] == 200, seconds=20, explain=served.output)
            if role in ("worker", "template") and number == signal.SIGKILL:
                within(1.0, lambda: "sleep 1000" not in str(served.processes()), served)


@contextlib.contextmanager
def calling(served: Served, state: str, *, seconds: float) -> Iterator[None]:
    """A call that runs while the body does, made from a process that is none of the session's."""
    if state == "idle":
        yield
        return
    arguments = json.dumps({"seconds": seconds, "child": state == "with a subprocess"})
    environment = {name: value for name, value in os.environ.items() if name != "FLASH_TEST_MARK"}
    call = subprocess.Popen(
        [*FLASH, "call", "work", arguments],
        cwd=served.root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: executions(served), explain=served.output)
        yield
    finally:
        call.kill()
        call.wait()


def executions(served: Served) -> list[str]:
    """The ids of the calls that run."""
    return [str(record["id"]) for record in ask(served, "executions", status="RUNNING")["executions"]]


def ask(served: Served, question: str, **arguments: str) -> Any:
    """The session's answer over its link, as another terminal's commands ask."""
    found = find_session(served.root)
    assert found is not None
    with BlockingClient.connect(found[1].link) as client:
        return client.query(question, **arguments)


def within(seconds: float, condition: Callable[[], bool], served: Served) -> None:
    """The promise is a second on an idle machine; a busy one gets some more."""
    until(condition, seconds=seconds + 4.0, explain=lambda: str(served.processes()))
