"""From the manifest back to the project."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_fixtures import WORKER, scanned
from project_strategies import JSON, LARGE, SECRET, configs, projects

from flashmesh.functions.config import ResourceConfig
from flashmesh.project.manifest import build_manifest, public_config
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.restored import ManifestInvalid, config_of, project_of, with_env


def without_values(resource: ResourceSpec) -> ResourceSpec:
    """The resource as if no variable of an environment had been declared."""
    template = resource.config.template
    emptied = None if template is None else {**template, "env": {}} if "env" in template else template
    return dataclasses.replace(resource, config=dataclasses.replace(resource.config, env={}, template=emptied))


@LARGE
@given(projects())
def test_a_project_comes_back_from_its_manifest_with_every_setting(project: Project) -> None:
    manifest = json.loads(json.dumps(build_manifest(project)))
    restored = project_of(manifest, project.root)
    assert restored == dataclasses.replace(
        project, resources=tuple(without_values(resource) for resource in project.resources)
    )


@LARGE
@given(configs())
def test_no_value_of_an_environment_is_in_a_manifest_and_every_name_is(config: ResourceConfig) -> None:
    public = public_config(config)
    assert public["env"] == sorted(config.env)
    assert SECRET not in json.dumps(public)


def test_values_of_an_environment_are_put_back_where_workers_look_for_them(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER})
    (resource,) = project_of(build_manifest(project), tmp_path).resources
    assert with_env(resource, {"TOKEN": "x"}).config.worker_env == {"TOKEN": "x"}


def test_a_scanned_project_comes_back_as_it_was(tmp_path: Path) -> None:
    files = {
        "a.py": WORKER,
        "deep/api.py": 'from flashmesh import Endpoint\napi = Endpoint(name="api")\n@api.get("/x/{a}")\n'
        'async def x(a: int, *, b="1", **rest):\n    """Say it."""\n    yield a\n',
        "c.py": "from flashmesh import Endpoint\n@Endpoint(name='c', dependencies=['rich'], retries=2)\n"
        "class C:\n    def __init__(self, a=1): ...\n    def inc(self, by: int): ...\n",
    }
    project = scanned(tmp_path, files)
    restored = project_of(json.loads(json.dumps(build_manifest(project))), tmp_path)
    assert restored.resources == project.resources
    assert (restored.name, restored.requirements) == (project.name, project.requirements)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("resources", "a", "file_path"), "../a.py"),
        (("resources", "a", "file_path"), "/etc/a.py"),
        (("resources", "a", "functions", 0, "file_path"), "x/../../a.py"),
        (("resources", "a", "functions", 0, "file_path"), "passwd"),
        (("resources", "a", "functions"), []),
        (("resources", "a", "config", "workers_max"), "many"),
        (("resources", "a", "config", "surprise"), 1),
        (("resources", "a", "config", "flashboot"), 1),
        (("resources",), ["a"]),
        (("project_name",), 7),
        (("version",), "2.0"),
    ],
)
def test_a_manifest_that_cannot_be_read_says_so_and_what_to_do(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    manifest: Any = json.loads(json.dumps(build_manifest(scanned(tmp_path, {"a.py": WORKER}))))
    at = manifest
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(ManifestInvalid):
        project_of(manifest, tmp_path)


@given(JSON | st.dictionaries(st.sampled_from(["version", "resources", "project_name"]), JSON))
def test_anything_else_is_refused_as_a_manifest_and_nothing_worse(document: Any) -> None:
    try:
        project_of(document, Path("/x"))
    except ManifestInvalid:
        return
    assert document["version"]


def test_an_unknown_setting_is_refused_rather_than_lost() -> None:
    with pytest.raises(TypeError, match="surprise"):
        config_of({"resource_type": "Endpoint", "surprise": 1})
