"""What is killed in the middle of a deploy or after it, and what is left."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed_fixtures import ASKS, CPU, Machine, call, is_gone, machine, request, until


def cpu(version: str) -> str:
    return CPU.replace("{version}", version)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        yield made


def gated(here: Machine, source: str) -> str:
    """Source whose import waits until `open_gate`."""
    gate = str(here.folder / "gate")
    return source + f"\nimport pathlib, time\nwhile not pathlib.Path({gate!r}).exists():\n    time.sleep(0.01)\n"


def open_gate(here: Machine) -> None:
    (here.folder / "gate").touch()


def test_a_deploy_that_was_cut_by_the_servers_death_ends_when_it_is_back(here: Machine) -> None:
    """kill -9 in the middle: what serves goes on serving; the server that follows finishes the deployment, and the
    command that waits for it sees the end."""
    root = here.project(cpu=cpu("1"), asks=ASKS)
    here.deploy(root)
    before = here.endpoint("cpu")
    here.project(cpu=gated(here, cpu("2")))
    deploying = here.begin("deploy", "--json", cwd=root)
    until(lambda: any(place["running"] for place in here.status()), "the deploy's begin")
    here.kill_server()
    assert call(before, "version") == "1"
    here.serve()
    open_gate(here)
    printed, said = deploying.communicate(timeout=60)
    assert deploying.returncode == 0, said
    assert json.loads(printed)["status"] == "succeeded"
    after = here.endpoint("cpu")
    assert (after["url"], after["status"]) == (before["url"], "updated")
    assert call(after, "version") == "2"


def test_a_deploy_that_was_cut_by_the_servers_stop_ends_when_it_is_back(here: Machine) -> None:
    """A server that is stopped leaves its deployments to the next one, the first of a resource too."""
    root = here.project(cpu=cpu("1"))
    here.deploy(root)
    here.project(cpu=gated(here, cpu("2")), asks=ASKS)
    deploying = here.begin("deploy", "--json", cwd=root)
    until(lambda: any(place["running"] for place in here.status()), "the deploy's begin")
    here.flash("server", "stop")
    here.serve()
    open_gate(here)
    printed, said = deploying.communicate(timeout=60)
    assert deploying.returncode == 0, said
    assert json.loads(printed)["status"] == "succeeded"
    assert call(here.endpoint("cpu"), "version") == "2"
    assert request("POST", here.endpoint("asks")["url"] + "/run_sync", {"input": {}})[1]["output"] == "cpu says 2"


def test_endpoints_serve_and_call_each_other_while_the_server_is_dead(here: Machine) -> None:
    """And when it is back it goes on with the same processes at the same addresses."""
    root = here.project(cpu=cpu("1").replace("workersMax=2", "workersMax=1"), asks=ASKS)
    endpoints = {one["resource"]: one for one in here.deploy(root)["endpoints"]}
    worker = call(endpoints["cpu"], "pid")
    here.kill_server()
    assert request("POST", endpoints["asks"]["url"] + "/run_sync", {"input": {}})[1]["output"] == "cpu says 1"
    here.serve()
    assert here.endpoint("cpu")["url"] == endpoints["cpu"]["url"]
    assert call(endpoints["cpu"], "pid") == worker
    assert json.loads(here.flash("call", "cpu.pid").stdout) == worker


def test_a_server_that_is_stopped_ends_its_endpoints_and_the_next_one_brings_them_back(here: Machine) -> None:
    """At the same address. With `--keep-endpoints` they never went."""
    root = here.project(cpu=cpu("1"))
    (endpoint,) = here.deploy(root)["endpoints"]
    worker = call(endpoint, "pid")
    here.flash("server", "stop")
    until(lambda: is_gone(worker), "the worker's end")
    with pytest.raises(OSError):
        call(endpoint, "version")
    here.serve()
    assert here.endpoint("cpu")["url"] == endpoint["url"]
    assert call(endpoint, "version") == "1"
    worker = call(endpoint, "pid")
    here.flash("server", "stop", "--keep-endpoints")
    assert call(endpoint, "pid") == worker
    here.serve()
    assert call(endpoint, "pid") == worker


def test_a_deploy_whose_command_is_killed_goes_on(here: Machine) -> None:
    """Ctrl-C ends the command, says how to look, and leaves the deployment to the server."""
    root = here.project(cpu=cpu("1"))
    here.deploy(root)
    here.project(cpu=gated(here, cpu("2")))
    deploying = here.begin("deploy", cwd=root)
    until(lambda: any(place["running"] for place in here.status()), "the deploy's begin")
    assert deploying.stderr is not None
    for line in deploying.stderr:
        if "updating" in line:
            break
    os.kill(deploying.pid, signal.SIGINT)
    said = deploying.communicate(timeout=60)[1]
    assert deploying.returncode == 130 and "flash status" in said
    open_gate(here)
    until(lambda: here.endpoint("cpu")["status"] == "updated", "the deployment's end")
    assert call(here.endpoint("cpu"), "version") == "2"


def test_a_worker_and_a_template_that_are_killed_come_back(here: Machine) -> None:
    """Their endpoint heals by itself, at its address."""
    (endpoint,) = here.deploy(here.project(cpu=cpu("1")))["endpoints"]
    for _ in range(2):
        worker = call(endpoint, "pid")
        os.kill(worker, signal.SIGKILL)
        until(lambda gone=worker: is_gone(gone), "the worker's end")  # type: ignore[misc]
        assert call(endpoint, "version") == "1"


def test_a_port_that_is_taken_at_the_next_start_is_told_with_what_to_do(here: Machine) -> None:
    """The endpoint serves by its socket, over the server; `flash status` names the port."""
    import socket

    (endpoint,) = here.deploy(here.project(cpu=cpu("1")))["endpoints"]
    here.flash("server", "stop")
    port = int(endpoint["url"].rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        here.serve()
        found = here.endpoint("cpu")
        assert found["status"] == "failed" and str(port) in found["error"] and "ss -ltnp" in found["error"]
        assert json.loads(here.flash("call", "cpu.version").stdout) == "1"
    here.flash("server", "stop")
    here.serve()
    assert here.endpoint("cpu")["status"] == "deployed"
    assert call(endpoint, "version") == "1"
