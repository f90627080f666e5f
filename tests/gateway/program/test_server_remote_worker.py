"""A worker that its server did not start: it dials in over TLS, as one on another machine does."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from server_fixtures import PROJECT, ServerProcess, serving, until, write_project
from worker_fixtures import Session, Worker, eventually, session

from flashmesh.gateway.access.keys import TokenKeys
from flashmesh.wire.blocking_client import BlockingClient

SOURCE = (
    PROJECT
    + """

@remote(cpu)
def who() -> list:
    return [os.getpid(), os.environ.get("FLASH_LINK_TOKEN")]
"""
)
LINK = ("--link-host", "127.0.0.1", "--link-port")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = write_project(tmp_path / "project")
    (folder / "jobs.py").write_text(SOURCE)
    return folder


def told(server: ServerProcess) -> dict[str, Any]:
    """What the server says of its link."""
    lines: list[dict[str, Any]] = until(lambda: [line for line in server.lines() if "link_port" in line])
    return lines[-1]


def status_of(server: ServerProcess) -> dict[str, Any]:
    """The endpoint as the server's dispatcher has it."""
    with contextlib.closing(BlockingClient.connect(server.facts["link"])) as client:
        found: dict[str, Any] = client.query("status")["endpoints"]["jobs"]
    return found


def build_of(server: ServerProcess) -> str:
    return str(status_of(server)["build"])


def variables(server: ServerProcess, *, endpoint: str = "jobs") -> dict[str, str]:
    """What whoever deploys to another machine would give a worker there."""
    folder = server.data.parent
    token, _ = TokenKeys.open(folder).issue("worker", "link", endpoint=endpoint, build=build_of(server))
    return {
        "FLASH_LINK_ADDRESS": f"127.0.0.1:{told(server)['link_port']}",
        "FLASH_LINK_TOKEN": token,
        "FLASH_LINK_FINGERPRINT": told(server)["link_fingerprint"],
    }


def start_worker(place: Session, server: ServerProcess, env: dict[str, str]) -> Worker:
    return place.worker(SOURCE, endpoint="jobs", dial=False, build=build_of(server), env=env)


def workers(server: ServerProcess) -> list[int]:
    return [worker["pid"] for worker in status_of(server)["processes"]]


def test_a_worker_started_elsewhere_serves_the_servers_calls_over_tls(tmp_path: Path, project: Path) -> None:
    """Also those of the next server; what its user code starts does not see its token."""
    home = tmp_path / "home"
    with session() as place:
        with serving(home, *LINK, "0", project=project) as server:
            port = told(server)["link_port"]
            worker = start_worker(place, server, variables(server))
            until(lambda: workers(server) == [worker.process.pid], "the worker's arrival")
            assert server.invoke("who") == [worker.process.pid, None]
            assert server.invoke("hello", name="x" * 2_000_000)["message"].endswith("x!")
            server.kill()
        with serving(home, *LINK, str(port), project=project) as server:
            until(lambda: workers(server) == [worker.process.pid], "the worker's return")
            assert server.invoke("who")[0] == worker.process.pid


def test_a_worker_does_not_serve_a_server_with_another_authority_and_says_why(tmp_path: Path, project: Path) -> None:
    with session() as place, serving(tmp_path / "home", *LINK, "0", project=project) as server:
        wrong = variables(server) | {"FLASH_LINK_FINGERPRINT": "sha256:" + os.urandom(32).hex()}
        worker = start_worker(place, server, wrong)
        eventually(lambda: "shows no certificate with fingerprint" in worker.said(), "the reason")
        assert workers(server) == []


def test_a_token_for_another_endpoint_gets_no_calls(tmp_path: Path, project: Path) -> None:
    with session() as place, serving(tmp_path / "home", *LINK, "0", project=project) as server:
        start_worker(place, server, variables(server, endpoint="other"))
        refused = until(lambda: [line for line in server.lines() if "is for the endpoint" in json.dumps(line)])
        assert "'other'" in json.dumps(refused[0])
        assert workers(server) == []
