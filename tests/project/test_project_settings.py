"""flash.toml wins over what the code declares."""

from pathlib import Path

import pytest
from project_fixtures import write

from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.project.model import Problem, Project
from flashmesh.project.scan import scan
from flashmesh.project.settings import with_settings

CODE = """
    from flashmesh import CpuLiveServerless, Endpoint, remote
    small = CpuLiveServerless(name="tiny", workersMax=2, env={"A": "code", "B": "code"}, retries=1)
    @remote(small, retries=3)
    async def process(data: dict): ...
"""


def configured(root: Path, toml: str, code: str = CODE) -> Project:
    return with_settings(scan(write(root, {"a.py": code, "flash.toml": toml})))


def config_of(root: Path, toml: str) -> ResourceConfig:
    project = configured(root, toml)
    assert project.problems == ()
    return project.resources[0].config


def reasons(project: Project) -> list[str]:
    assert all(problem.file == "flash.toml" and problem.severity == "error" for problem in project.problems)
    return [problem.reason for problem in project.problems]


@pytest.mark.parametrize("name", ["a", "tiny"])
def test_a_table_is_found_by_the_resources_name_and_by_its_declared_one(tmp_path: Path, name: str) -> None:
    config = config_of(tmp_path, f'[resources.{name}]\nmode = "JOB"\ntarget = "local"\nworkers = [1, 4]\n')
    assert (config.mode, config.target, config.workers_min, config.workers_max) == ("JOB", "local", 1, 4)


def test_variables_are_added_to_those_of_the_code_and_win_over_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, '[resources.a]\nenv = { B = "file", C = "file" }\n')
    assert config.env == {"A": "code", "B": "file", "C": "file"}


def test_volumes_are_given_by_name_or_as_tables(tmp_path: Path) -> None:
    toml = '[resources.a]\nvolumes = ["models", { name = "cache", size = 50 }]\n'
    assert [(volume.name, volume.size_gb) for volume in config_of(tmp_path, toml).volumes] == [
        ("models", 100),
        ("cache", 50),
    ]
    assert config_of(tmp_path, '[resources.a]\nnetworkVolumeId = "v1"\n').volumes == (VolumeConfig(id="v1"),)


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ("idle_timeout = 5", "idle_timeout_s", 5),
        ("idleTimeout = 5", "idle_timeout_s", 5),
        ("idle_timeout_s = 5", "idle_timeout_s", 5),
        ("executionTimeoutMs = 9", "execution_timeout_ms", 9),
        ('gpus = ["ADA_24"]', "gpus", ("ADA_24",)),
        ('cpu = "cpu3c-1-2"', "cpus", ("cpu3c-1-2",)),
        ('scaler_type = "REQUEST_COUNT"', "scaler_type", "REQUEST_COUNT"),
        ("flashboot = false", "flashboot", False),
        ("public = true", "public", True),
        ("gpu_share = true", "gpu_share", True),
        ('image = "x/y:1"', "image", "x/y:1"),
        ('dependencies = ["rich"]', "dependencies", ("rich",)),
        ('system_dependencies = ["git"]', "system_dependencies", ("git",)),
        ("accelerate_downloads = false", "accelerate_downloads", False),
        ('datacenter = "EU-RO-1"', "datacenters", ("EU-RO-1",)),
        ('locations = "EU-RO-1"', "datacenters", ("EU-RO-1",)),
        ('retry_on = ["ValueError"]', "retry_on", ("builtins.ValueError",)),
        ('python_version = "3.12"', "python_version", "3.12"),
        ("preload = false", "preload", False),
        ("queue_size = 7", "queue_size", 7),
        ("max_concurrency = 7", "max_concurrency", 7),
        ('templateId = "t"', "template_id", "t"),
        ('mode = "POOL"', "mode", "WARM"),
        ('hubRelease = "h"', "extra", {"hubRelease": "h"}),
    ],
)
def test_any_setting_can_be_given_under_any_of_its_names(tmp_path: Path, line: str, field: str, value: object) -> None:
    assert getattr(config_of(tmp_path, f"[resources.a]\n{line}\n"), field) == value


def test_a_template_is_a_table(tmp_path: Path) -> None:
    config = config_of(tmp_path, '[resources.a.template]\nports = "80/http"\ncontainerDiskInGb = 9\n')
    assert config.template is not None
    assert (config.template["ports"], config.template["containerDiskInGb"]) == ("80/http", 9)


def test_it_wins_over_a_functions_own_setting_too(tmp_path: Path) -> None:
    (function,) = configured(tmp_path, "[resources.a]\nretries = 0\n").functions
    assert function.overrides == ()


def test_it_settles_what_only_an_import_could_tell(tmp_path: Path) -> None:
    code = CODE.replace("workersMax=2", "workersMax=count()")
    assert scan(write(tmp_path, {"a.py": code})).resources[0].unresolved == ("workersMax",)
    for line in ("workersMax = 4", "workers = 4", "workers_max = 4"):
        resource = configured(tmp_path, f"[resources.a]\n{line}\n", code).resources[0]
        assert (resource.unresolved, resource.config.workers_max) == ((), 4)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[resources.b]\nmode = 'JOB'\n", "[resources.b] names no resource of this project. There are: a"),
        ("[resources.a]\nmodus = 'JOB'\n", "[resources.a] there is no setting modus"),
        ("[resources.a]\nmode = 'FAST'\n", "[resources.a] mode must be"),
        ("[resources.a]\nworkers = [3, 1]\n", "[resources.a] workers: the minimum 3 is above the maximum 1"),
        ("[resources.a]\nworkersMin = 9\n", "[resources.a] workers: the minimum 9 is above the maximum 2"),
        ("[resources.a]\nname = 'x'\n", "[resources.a] name belongs into the code"),
        ("[resources.a]\naiKey = 'x'\n", "[resources.a] aiKey is a secret"),
        ("[resources.a]\nvolumes = [1]\n", "[resources.a] volumes must be names"),
        ("[resources]\na = 1\n", "resources.a must be a table"),
        ("resources = 1\n", "resources must be tables"),
        ("[resources.a\n", "it cannot be read"),
    ],
)
def test_what_cannot_be_used_is_a_problem_of_the_file_and_changes_nothing(tmp_path: Path, toml: str, says: str) -> None:
    project = configured(tmp_path, toml)
    (reason,) = reasons(project)
    assert reason.startswith(says)
    assert project.resources[0].config == scan(tmp_path).resources[0].config


def test_a_value_of_a_variable_is_never_in_a_message(tmp_path: Path) -> None:
    (reason,) = reasons(configured(tmp_path, "[resources.a]\nenv = { TOKEN = 12345 }\n"))
    assert "TOKEN" in reason
    assert "12345" not in reason


def test_a_project_without_the_file_is_as_its_code_says(tmp_path: Path) -> None:
    project = scan(write(tmp_path, {"a.py": CODE}))
    assert with_settings(project) is project
    assert not any(isinstance(problem, Problem) for problem in project.problems)
