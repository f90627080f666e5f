"""Who a resource is across deploys, and what names may be."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_fixtures import WORKER, scanned

from flashmesh.project.appname import BadName, check_name
from flashmesh.project.identity import endpoint_id, identity_of, identity_of_resource, worker_build
from flashmesh.project.manifest import build_manifest

TWO = WORKER + '\n    cpu = LiveServerless(name="cpu")\n    @remote(cpu)\n    async def more(data: dict): ...\n'


def entry(file: str, name: str | None, variable: str | None = None) -> dict[str, object]:
    return {"file_path": file, "config": {"name": name}, "config_variable": variable}


def test_a_second_configuration_in_a_file_changes_the_name_of_the_first_but_not_who_it_is(tmp_path: Path) -> None:
    alone = build_manifest(scanned(tmp_path, {"my-gpu.py": WORKER}))["resources"]
    both = build_manifest(scanned(tmp_path, {"my-gpu.py": TWO}))["resources"]
    assert (list(alone), list(both)) == (["my_gpu"], ["my_gpu_gpu", "my_gpu_cpu"])
    first, again = identity_of(alone["my_gpu"]), identity_of(both["my_gpu_gpu"])
    assert first == again == "my-gpu.py|gpu"
    assert endpoint_id("shop", "production", first) == endpoint_id("shop", "production", again)


def test_a_resource_has_the_same_identity_in_the_project_and_in_its_manifest(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": TWO, "b.py": "from flashmesh import Endpoint\n@Endpoint()\ndef f(): ...\n"})
    entries = build_manifest(project)["resources"]
    for resource in project.resources:
        assert identity_of(entries[resource.name]) == identity_of_resource(resource)


def test_an_endpoint_id_says_the_file_and_can_be_a_host_name() -> None:
    found = endpoint_id("shop", "production", identity_of(entry("longruns/My_Stage (1).py", "gpu")))
    assert re.fullmatch(r"my-stage-1-[0-9a-f]{8}", found)
    assert re.fullmatch(r"endpoint-[0-9a-f]{8}", endpoint_id("a", "b", "日本.py|x"))
    assert len(endpoint_id("a", "b", "x" * 200 + ".py|x")) == 39


def test_app_environment_file_and_name_each_make_another_endpoint() -> None:
    ids = {
        endpoint_id(app, environment, identity)
        for app in ("a", "b")
        for environment in ("production", "staging")
        for identity in ("f.py|x", "f.py|y", "g.py|x")
    }
    assert len(ids) == 12


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_two_resources_never_have_one_identity(one: tuple[str, str], other: tuple[str, str]) -> None:
    first, second = (identity_of(entry(file, name or None)) for file, name in (one, other))
    assert (first == second) == (one == other)


@given(st.text(), st.text(), st.text(), st.text(min_size=1))
def test_every_endpoint_id_is_a_valid_host_name_label(app: str, environment: str, file: str, name: str) -> None:
    found = endpoint_id(app, environment, identity_of(entry(file + ".py", name)))
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found)


def test_a_worker_runs_another_build_when_its_version_or_the_values_of_its_environment_differ() -> None:
    builds = {worker_build("a", "1"), worker_build("a", "2"), worker_build("b", "1")}
    assert len(builds) == 3
    assert all(re.fullmatch("[0-9a-f]{12}", build) for build in builds)


@pytest.mark.parametrize("name", ["a", "shop", "Shop.v2_x-1", "0", "x" * 63])
def test_a_good_name_is_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "x" * 64, "a\n", "../x"])
def test_a_bad_name_is_refused_with_one_that_could_be_used(name: str) -> None:
    with pytest.raises(BadName) as refused:
        check_name(name, what="environment")
    suggested = re.search(r"Try --env (\S+)\.$", str(refused.value))
    assert suggested is None or check_name(suggested[1])
    assert "--env" in str(refused.value)
