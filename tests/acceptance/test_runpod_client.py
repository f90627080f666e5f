"""RunPod's official SDK, unchanged, against a real `flash server`.

`make test-clients` installs it; where it is not installed, this is skipped.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from acceptance_server import serving

pytestmark = [
    pytest.mark.clients,
    pytest.mark.skipif(importlib.util.find_spec("runpod") is None, reason="the runpod SDK is not installed"),
]

WORK = """\
import time

from flashmesh import CpuLiveServerless, remote

work = CpuLiveServerless(name="work", workersMax=1)


@remote(work)
def echo(x):
    return x


@remote(work)
def count(n: int):
    yield from range(n)


@remote(work)
def fails() -> None:
    raise ValueError("no")


@remote(work)
def nap(seconds: float) -> None:
    time.sleep(seconds)
"""


def test_the_official_sdk_is_served_unchanged(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "work.py").write_text(WORK)
    with serving(project, home=tmp_path / "home") as server:
        command = [sys.executable, str(Path(__file__).with_name("runpod_client.py")), f"http://localhost:{server.port}"]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=110).stdout)
    health = said.pop("health")
    assert said == {
        "run_sync": 1,
        "output": 2,
        "status": "COMPLETED",
        "stream": [0, 1, 2],
        "failed": "FAILED",
        "purged": {"removed": 4, "status": "completed"},
        "waiting": ["CANCELLED"] * 4,
        "cancel": "CANCELLED",
        "cancelled": "CANCELLED",
        "asyncio": 3,
    }
    assert (health["completed"], health["failed"], health["inProgress"], health["inQueue"]) == (3, 1, 1, 4)
