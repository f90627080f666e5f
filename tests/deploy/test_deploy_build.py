"""`flash build` as a whole: a directory in, an archive, a manifest and values of variables out."""

import asyncio
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from flashmesh.deploy.build import BuildRefused, Built, NothingToBuild, build
from flashmesh.project.artifact import ArtifactTooLarge
from flashmesh.project.plan import plan
from flashmesh.project.unpack import remove, unpack

WORKER = """
import os
from flashmesh import CpuLiveServerless, remote

config = CpuLiveServerless(name="worker", env={"TOKEN": os.environ.get("FROM_OUTSIDE", "hush-default")})

@remote(config)
async def work(data: dict) -> dict:
    return data
"""
COMPUTED = """
from flashmesh import CpuLiveServerless, remote
import os

def settings():
    return {"workersMax": 3 + int(os.environ.get("MORE", "0"))}

config = CpuLiveServerless(name="computed", **settings())

@remote(config)
async def compute(n: int) -> int:
    return n
"""
API = """
from flashmesh import Endpoint
from worker import work
api = Endpoint(name="api", cpu="cpu3c-1-2")

@api.post("/x")
async def route(n: int):
    return await work({"n": n})
"""
TEMPLATE = """
from flashmesh import Endpoint, PodTemplate
@Endpoint(name="t", template=PodTemplate(imageName="i", env={"INNER": "hush-inner"}))
def t(): ...
"""


def project(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / f"{name}.py").write_text(text)
    return root


def built(root: Path, **options: Any) -> Built:
    return asyncio.run(build(root, **options))


def everything_written(root: Path) -> bytes:
    with tarfile.open(root / ".flash/archive.tar.gz") as tar:
        packed = b"".join(tar.extractfile(member).read() for member in tar)  # type: ignore[union-attr]
    return packed + (root / ".flash/manifest.json").read_bytes()


def test_a_build_writes_an_archive_and_a_manifest_and_touches_nothing_else(tmp_path: Path) -> None:
    root = project(tmp_path / "shop", worker=WORKER, api=API)
    (root / ".gitignore").write_text("*.bin\n")
    before = {path: path.read_bytes() for path in root.iterdir()}
    done = built(root)
    assert {path: path.read_bytes() for path in root.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in (root / ".flash").iterdir()) == [
        ".gitignore",
        "archive.tar.gz",
        "manifest.json",
    ]
    assert (root / ".flash/.gitignore").read_text() == "*\n"
    manifest = json.loads((root / ".flash/manifest.json").read_text())
    assert manifest == done.manifest
    assert (manifest["project_name"], [*manifest["resources"]]) == ("shop", ["api", "worker"])
    assert manifest["generated_at"].endswith("Z")
    assert manifest["resources"]["api"]["makes_remote_calls"]
    assert "resources_endpoints" not in manifest


def test_a_copy_in_another_folder_with_other_times_is_the_same_build(tmp_path: Path) -> None:
    one = project(tmp_path / "one", worker=WORKER, computed=COMPUTED, api=API)
    first = built(one)
    two = tmp_path / "some" / "where" / "else"
    shutil.copytree(one, two, ignore=shutil.ignore_patterns(".flash"), copy_function=shutil.copyfile)
    for path in two.rglob("*"):
        os.utime(path, (1, 1))
    second = built(two, app="other-name")
    assert second.artifact.build_id == first.artifact.build_id
    assert second.artifact.path.read_bytes() == first.artifact.path.read_bytes()
    assert plan(first.manifest, second.manifest, {}).is_empty
    assert (first.project.name, second.project.name) == ("one", "other-name")


def test_a_default_that_is_an_object_makes_no_other_build_in_another_process(tmp_path: Path) -> None:
    code = COMPUTED.replace("compute(n: int)", "compute(n: int, kind=object())")
    code = code.replace("config = ", "def config():\n    return ").replace("@remote(config)", "@remote(config())")
    root = project(tmp_path, computed=code)
    first = built(root)
    (parameter,) = first.manifest["resources"]["computed"]["functions"][0]["parameters"][1:]
    assert parameter["default"] == "<object object>"
    assert built(root).artifact.build_id == first.artifact.build_id


def test_a_second_build_of_the_same_sources_is_the_same(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER)
    assert built(root).artifact.build_id == built(root).artifact.build_id


def test_the_archive_is_not_packed_into_the_next_one_wherever_it_is_put(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER)
    out = root / "dist" / "mine.tar.gz"
    first = built(root, out=out)
    assert built(root, out=out).artifact.build_id == first.artifact.build_id
    assert first.artifact.path == out


def test_values_of_variables_are_told_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_OUTSIDE", "hush-outside")
    root = project(tmp_path / "p", worker=WORKER, t=TEMPLATE)
    (root / "flash.toml").write_text('[resources.worker.env]\nSETTING = "hush-toml"\n')
    (root / ".env").write_text("DOT=hush-dot\n")
    done = built(root, env={"FILE": "hush-file", "TOKEN": "hush-token"})
    assert done.env == {
        "worker.py|worker": {"TOKEN": "hush-token", "SETTING": "hush-toml", "FILE": "hush-file"},
        "t.py|t": {"INNER": "hush-inner", "FILE": "hush-file", "TOKEN": "hush-token"},
    }
    written = everything_written(root)
    for value in (b"hush-outside", b"hush-toml", b"hush-dot", b"hush-file", b"hush-token"):
        assert value not in written
    assert b"hush-inner" not in (root / ".flash/manifest.json").read_bytes()
    assert done.manifest["resources"]["worker"]["config"]["env"] == ["FILE", "SETTING", "TOKEN"]


def test_other_values_make_the_same_build_and_other_names_another_version(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER)
    one, two, three = (built(root, env=env) for env in ({"A": "1"}, {"A": "2"}, {"B": "1"}))
    assert one.artifact.build_id == two.artifact.build_id
    hashes = [done.manifest["resources"]["worker"]["config_hash"] for done in (one, two, three)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_syntax_does_not_tell_is_told_by_the_import_with_the_variables_that_were_given(tmp_path: Path) -> None:
    done = built(project(tmp_path, computed=COMPUTED), env={"MORE": "4"})
    assert done.project.resources[0].config.workers_max == 7


def test_settings_that_cannot_be_told_because_a_package_is_missing_refuse_the_build(tmp_path: Path) -> None:
    root = project(tmp_path, computed="import no_such_package_here\n" + COMPUTED)
    with pytest.raises(BuildRefused) as refused:
        built(root)
    assert "computed.py:9: computed: its settings can only be told by importing the file" in str(refused.value)
    assert not (root / ".flash").exists()
    (root / "flash.toml").write_text("[resources.computed]\nworkersMax = 2\n")
    with pytest.raises(BuildRefused):
        built(root)  # any other setting may be in there as well


def test_flash_toml_is_honoured(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER)
    (root / "flash.toml").write_text('app = "shop"\n[resources.worker]\nmode = "JOB"\nworkers = [2, 5]\n')
    before, config = built(root), built(root).project.resources[0].config
    assert (config.mode, config.workers_min, config.workers_max) == ("JOB", 2, 5)
    assert before.manifest["project_name"] == "shop"
    (root / "flash.toml").write_text('app = "shop"\n[resources.worker]\nmode = "JOB"\nworkers = [0, 9]\n')
    (change,) = plan(before.manifest, built(root).manifest, {}).changed
    assert (change.in_place, sorted(change.fields)) == (True, ["config.workers_max", "config.workers_min"])
    (root / "flash.toml").write_text("[resources.wroker]\nmode = 'JOB'\n")
    with pytest.raises(BuildRefused, match="wroker"):
        built(root)


def test_a_comment_in_a_file_changes_only_those_who_can_import_it(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER, computed=COMPUTED, api=API)
    before = built(root)
    (root / "worker.py").write_text(WORKER + "# more\n")
    found = plan(before.manifest, built(root).manifest, {})
    assert [change.name for change in found.changed] == ["api", "worker"]
    assert [change.name for change in found.unchanged] == ["computed"]


def test_a_data_file_changes_everything(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER, computed=COMPUTED)
    before = built(root)
    (root / "data.csv").write_text("1,2\n")
    assert len(plan(before.manifest, built(root).manifest, {}).changed) == 2


def test_a_directory_without_functions_is_an_error(tmp_path: Path) -> None:
    project(tmp_path, script="print('hello')\n")
    with pytest.raises(NothingToBuild, match="flash init"):
        built(tmp_path)
    assert not (tmp_path / ".flash").exists()


def test_all_errors_are_told_at_once(tmp_path: Path) -> None:
    broken = "from flashmesh import remote\n@remote(\n"
    root = project(tmp_path, a=WORKER, b=WORKER, broken=broken)
    with pytest.raises(BuildRefused) as refused:
        built(root)
    assert str(refused.value).startswith("The project has 2 errors, and nothing was built:\n")
    assert {problem.file for problem in refused.value.problems} == {"a.py", "broken.py"}


def test_what_is_excluded_is_neither_served_nor_packed(tmp_path: Path) -> None:
    root = project(tmp_path, worker=WORKER, computed=COMPUTED)
    done = built(root, exclude=("comp*",))
    assert [resource.name for resource in done.project.resources] == ["worker"]
    with tarfile.open(done.artifact.path) as tar:
        assert "computed.py" not in tar.getnames()


def test_a_build_that_is_too_large_leaves_the_one_before(tmp_path: Path) -> None:
    root = project(tmp_path / "p", worker=WORKER)
    before = built(root)
    (root / "big.bin").write_bytes(os.urandom(20_000))
    with pytest.raises(ArtifactTooLarge, match=r"big\.bin"):
        built(root, limit_bytes=10_000)
    manifest = unpack(before.artifact.path, tmp_path / "u", build_id=before.artifact.build_id)
    assert [*manifest["resources"]] == ["worker"]
    remove(tmp_path / "u")


def test_warnings_do_not_stop_a_build(tmp_path: Path) -> None:
    code = WORKER.replace('os.environ.get("FROM_OUTSIDE", "hush-default")', '"hush-literal"')
    (warning,) = built(project(tmp_path, worker=code)).warnings
    assert "TOKEN" in warning.reason
