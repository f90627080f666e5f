"""What a deploy would change."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from project_fixtures import WORKER, scanned
from project_strategies import LARGE, projects

from flashmesh.project.identity import identity_of
from flashmesh.project.manifest import build_manifest
from flashmesh.project.model import Manifest, Project
from flashmesh.project.plan import Change, Plan, lines, plan

TWO = WORKER + '\n    cpu = LiveServerless(name="cpu")\n    @remote(cpu)\n    async def more(data: dict): ...\n'


def manifest_of(root: Path, files: dict[str, str]) -> dict[str, Any]:
    for old in root.rglob("*.py"):
        old.unlink()
    return build_manifest(scanned(root, files))


def identities(manifest: Manifest) -> set[str]:
    return {identity_of(entry) for entry in manifest["resources"].values()}


def only(changes: tuple[Change, ...]) -> Change:
    (change,) = changes
    return change


def changed(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> Change:
    found = plan(manifest_of(tmp_path, before), manifest_of(tmp_path, after), {})
    assert (found.new, found.removed, found.unchanged) == ((), (), ())
    return only(found.changed)


@LARGE
@given(projects())
def test_nothing_is_to_be_done_where_everything_is_as_wanted(project: Project) -> None:
    manifest = build_manifest(project)
    found = plan(manifest, manifest, {})
    assert found.is_empty
    assert len(found.unchanged) == len(manifest["resources"])


@LARGE
@given(projects(), projects())
def test_every_resource_is_in_a_plan_exactly_once(one: Project, other: Project) -> None:
    deployed, wanted = build_manifest(one), build_manifest(other)
    found = plan(deployed, wanted, {})
    every = [change.identity for changes in dataclasses.astuple(found) for change in _changes(changes)]
    assert sorted(every) == sorted(identities(deployed) | identities(wanted))


@LARGE
@given(projects(), projects())
def test_applying_a_plan_leads_to_what_is_wanted(one: Project, other: Project) -> None:
    deployed, wanted = build_manifest(one), build_manifest(other)
    found = plan(deployed, wanted, {})
    serving = {identity_of(entry): {**entry, "name": name} for name, entry in deployed["resources"].items()}
    target = {identity_of(entry): {**entry, "name": name} for name, entry in wanted["resources"].items()}
    for change in found.removed:
        del serving[change.identity]
    for change in (*found.new, *found.changed):
        serving[change.identity] = target[change.identity]
    compared = ("name", "config", "config_hash", "sources")
    assert {i: [entry[key] for key in compared] for i, entry in serving.items()} == {
        i: [entry[key] for key in compared] for i, entry in target.items()
    }


@LARGE
@given(projects(), projects(), st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2))
def test_a_plan_survives_the_way_over_the_wire(one: Project, other: Project, env: dict[str, str]) -> None:
    found = plan(build_manifest(one), build_manifest(other), env)
    sent = Plan.from_dict(json.loads(json.dumps(found.to_dict())))
    assert json.dumps(sent.to_dict(), sort_keys=True) == json.dumps(found.to_dict(), sort_keys=True)


def test_everything_is_new_where_nothing_is_deployed(tmp_path: Path) -> None:
    found = plan(None, manifest_of(tmp_path, {"a.py": TWO}), {})
    assert [change.name for change in found.new] == ["a_cpu", "a_gpu"]
    assert (found.changed, found.removed, found.unchanged) == ((), (), ())


def test_everything_is_removed_where_nothing_is_wanted(tmp_path: Path) -> None:
    found = plan(
        manifest_of(tmp_path, {"a.py": WORKER}), {**manifest_of(tmp_path, {"a.py": WORKER}), "resources": {}}, {}
    )
    assert only(found.removed).name == "a"


def test_a_change_of_worker_counts_is_made_in_place(tmp_path: Path) -> None:
    change = changed(tmp_path, {"a.py": WORKER}, {"a.py": WORKER.replace('name="gpu"', 'name="gpu", workersMax=3')})
    assert not change.in_place  # the file itself changed as well
    manifest = manifest_of(tmp_path, {"a.py": WORKER})
    more = json.loads(json.dumps(manifest))
    more["resources"]["a"]["config"]["workers_max"] = 3
    counted = only(plan(manifest, more, {}).changed)
    assert (counted.in_place, counted.fields) == (True, {"config.workers_max": (1, 3)})
    assert lines(counted) == ["workers_max 1 → 3"]


def test_a_changed_body_changes_the_resources_that_can_reach_it_and_names_the_file(tmp_path: Path) -> None:
    before = {"a.py": WORKER + "\n    import helper\n", "b.py": WORKER.replace("gpu", "b"), "helper.py": "A = 1\n"}
    found = plan(manifest_of(tmp_path, before), manifest_of(tmp_path, {**before, "helper.py": "A = 2\n"}), {})
    change = only(found.changed)
    assert (change.name, change.in_place, [other.name for other in found.unchanged]) == ("a", False, ["b"])
    assert lines(change) == ["code: helper.py"]


def test_a_changed_data_file_or_requirement_changes_every_resource(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER, "b.py": WORKER.replace("gpu", "b")})
    now = build_manifest(project, files={"model.bin": "1", "a.py": "x"})
    data = plan(now, build_manifest(project, files={"model.bin": "2", "a.py": "x"}), {})
    assert [(change.name, [*change.fields]) for change in data.changed] == [("a", ["files"]), ("b", ["files"])]
    assert plan(now, build_manifest(project, files={"model.bin": "1", "a.py": "y"}), {}).is_empty  # it has importers
    required = build_manifest(dataclasses.replace(project, requirements=("rich",)), files={"model.bin": "1"})
    assert [lines(change) for change in plan(now, required, {}).changed] == [["the project's requirements"]] * 2


def test_a_renamed_resource_is_still_itself(tmp_path: Path) -> None:
    found = plan(manifest_of(tmp_path, {"a.py": WORKER}), manifest_of(tmp_path, {"a.py": TWO}), {})
    change = only(found.changed)
    assert (change.was_name, change.name, only(found.new).name) == ("a", "a_gpu", "a_cpu")
    assert change.fields["name"] == ("a", "a_gpu")


def test_a_name_alone_is_changed_without_replacing_a_worker(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path, {"a.py": WORKER})
    renamed = {**manifest, "resources": {"a_gpu": manifest["resources"]["a"]}}
    change = only(plan(manifest, renamed, {}).changed)
    assert (change.in_place, lines(change)) == (True, ["name a → a_gpu"])


def test_other_values_of_the_environment_change_a_resource_and_are_not_shown(tmp_path: Path) -> None:
    wanted = manifest_of(tmp_path, {"a.py": WORKER.replace('name="gpu"', 'name="gpu", env={"TOKEN": "s"}')})
    deployed = json.loads(json.dumps(wanted))
    deployed["resources"]["a"]["env_hash"] = "one"
    assert plan(deployed, wanted, {"a.py|gpu": "one"}).is_empty
    assert plan(deployed, wanted, {}).is_empty  # values nobody told are not compared
    change = only(plan(deployed, wanted, {"a.py|gpu": "two"}).changed)
    assert (change.fields, change.in_place, lines(change)) == ({"env": (["TOKEN"], ["TOKEN"])}, False, ["env: values"])


def test_names_that_came_and_went_are_told(tmp_path: Path) -> None:
    one = WORKER.replace('name="gpu"', 'name="gpu", env={"A": "1", "B": "2"}')
    two = (
        WORKER.replace('name="gpu"', 'name="gpu", env={"B": "2", "C": "3"}')
        + "\n    @remote(gpu)\n    def more(): ...\n"
    )
    assert lines(changed(tmp_path, {"a.py": one}, {"a.py": two})) == ["code: a.py", "env: +C, -A", "functions: +more"]


def test_what_failed_is_tried_again_though_it_is_the_same(tmp_path: Path) -> None:
    wanted = manifest_of(tmp_path, {"a.py": WORKER})
    deployed = json.loads(json.dumps(wanted))
    deployed["resources"]["a"] |= {"status": "failed", "error": "its port is taken"}
    change = only(plan(deployed, wanted, {}).changed)
    assert (change.in_place, lines(change)) == (False, ["its last deploy failed"])


def test_what_never_served_is_not_said_to_be_of_another_version(tmp_path: Path) -> None:
    wanted = manifest_of(tmp_path, {"a.py": WORKER})
    deployed = json.loads(json.dumps(wanted))
    deployed["resources"]["a"] |= {"status": "failed", "config_hash": None}
    assert lines(only(plan(deployed, wanted, {}).changed)) == ["its last deploy failed"]


def test_a_setting_is_named_with_both_its_values(tmp_path: Path) -> None:
    change = changed(
        tmp_path, {"a.py": WORKER}, {"a.py": WORKER.replace('name="gpu"', 'name="gpu", dependencies=["x"]')}
    )
    assert lines(change) == ["dependencies none → x", "code: a.py"]


def _changes(changes: Any) -> list[Change]:
    return [
        Change(**dict(zip(("identity", "name", "was_name", "fields", "in_place"), one, strict=True))) for one in changes
    ]
