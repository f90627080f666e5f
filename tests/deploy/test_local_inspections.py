"""What imports and flash.toml add to what syntax tells."""

import asyncio
from pathlib import Path

import pytest

from flashmesh.deploy.local.inspections import Inspections
from flashmesh.project.model import Project
from flashmesh.project.scan import scan

CODE = """
import os
from flashmesh import CpuLiveServerless, remote

def most():
    return int(os.environ["MOST"])

config = CpuLiveServerless(name="worker", workersMax=most())

@remote(config)
async def work(data: dict) -> dict:
    return data
"""


def completed(root: Path, inspections: Inspections) -> Project:
    project = scan(root)
    asyncio.run(inspections.import_all(root, inspections.missing(project)))
    return inspections.complete(project)


def test_imports_see_the_variables_they_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOST", "2")
    (tmp_path / "worker.py").write_text(CODE)
    assert completed(tmp_path, Inspections()).resources[0].config.workers_max == 2
    assert completed(tmp_path, Inspections(environ={"MOST": "5"})).resources[0].config.workers_max == 5


def test_flash_toml_wins_over_what_the_import_tells(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(CODE)
    (tmp_path / "flash.toml").write_text('[resources.worker]\nmode = "JOB"\nworkers = [1, 7]\n')
    config = completed(tmp_path, Inspections(environ={"MOST": "5"})).resources[0].config
    assert (config.mode, config.workers_min, config.workers_max) == ("JOB", 1, 7)


def test_a_mistake_in_flash_toml_is_a_problem_of_that_file_and_everything_is_served(tmp_path: Path) -> None:
    (tmp_path / "worker.py").write_text(CODE)
    (tmp_path / "flash.toml").write_text("[resources.worker]\nmodus = 1\n")
    project = completed(tmp_path, Inspections(environ={"MOST": "5"}))
    assert [problem.file for problem in project.problems] == ["flash.toml"]
    assert len(project.functions) == 1
