"""Which code a resource can reach, and what a change of a file changes."""

from pathlib import Path

from project_fixtures import VOCABULARY, WORKER, scanned, write

from flashmesh.project.closure import Closures, affected, fingerprint
from flashmesh.project.model import Project
from flashmesh.project.scan import scan


def shop(root: Path) -> Project:
    return scanned(
        root,
        {
            "gpu.py": WORKER + "\n    import helpers.text as t\n    def late():\n        from lazy import thing\n",
            "cpu.py": WORKER + "\n    import json, numpy\n    from . import nothing\n",
            "helpers/__init__.py": "from .base import *",
            "helpers/base.py": "",
            "helpers/text.py": "from ..shared import names",
            "shared/names.py": "",
            "lazy.py": "import gpu",
            "unrelated.py": "",
            "broken.py": "import gpu\n(",
        },
    )


def test_the_closure_follows_imports_packages_and_imports_inside_functions(tmp_path: Path) -> None:
    project = shop(tmp_path)
    gpu = project.resource("gpu")
    assert gpu is not None
    assert Closures(project).of(gpu) == {
        "gpu.py",
        "helpers/__init__.py",
        "helpers/base.py",
        "helpers/text.py",
        "shared/names.py",
        "lazy.py",
    }


def test_only_resources_that_can_reach_a_changed_file_are_affected(tmp_path: Path) -> None:
    project = shop(tmp_path)
    assert affected(project, {"shared/names.py"}) == {"gpu"}
    assert affected(project, {"cpu.py"}) == {"cpu"}
    assert affected(project, {"unrelated.py"}) == set()


def test_a_standard_library_name_is_never_the_projects_file(tmp_path: Path) -> None:
    project = scanned(
        tmp_path, {"w.py": WORKER + "\n    import queue\n    import types\n", "queue.py": "", "types.py": ""}
    )
    assert affected(project, {"queue.py", "types.py"}) == set()


def test_a_bare_name_means_the_file_beside_the_importer_unless_the_root_has_it(tmp_path: Path) -> None:
    files = {
        "jobs/w.py": WORKER + "\n    import helper\n    import shared\n",
        "jobs/helper.py": "",
        "jobs/shared.py": "",
    }
    project = scanned(tmp_path, {**files, "shared.py": "", "other/helper.py": ""})
    assert affected(project, {"other/helper.py", "jobs/shared.py"}) == set()
    assert len(affected(project, {"jobs/helper.py"})) == len(affected(project, {"shared.py"})) == 1


def test_a_configuration_from_another_file_belongs_to_the_closure(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "configs.py": "from flashmesh import LiveServerless\ngpu = LiveServerless(name='pool')",
            "a.py": "from flashmesh import remote\nfrom configs import gpu\n@remote(gpu)\ndef f(): ...",
        },
    )
    assert affected(project, {"configs.py"}) == affected(project, {"a.py"}) == {"configs"}


def test_a_build_changes_with_the_bytes_it_can_reach_and_with_nothing_else(tmp_path: Path) -> None:
    before = Closures(shop(tmp_path)).builds()
    write(tmp_path, {"shared/names.py": "NEW = 1", "unrelated.py": "NEW = 1"})
    after = Closures(scan(tmp_path, vocabulary=VOCABULARY)).builds()
    assert all(len(build) == 12 and int(build, 16) >= 0 for build in before.values())
    assert before["gpu"] != after["gpu"]
    assert before["cpu"] == after["cpu"]
    assert after == Closures(scan(tmp_path, vocabulary=VOCABULARY)).builds()


def test_a_build_changes_with_the_configuration(tmp_path: Path) -> None:
    source = (
        "import os\n" + "from flashmesh import Endpoint\n@Endpoint(name='e', env={'A': os.environ['A']})\ndef f(): ..."
    )
    one, other = (
        Closures(scanned(tmp_path, {"w.py": source}, environ={"A": value})).builds()["w"] for value in ("1", "2")
    )
    assert one != other


def test_the_fingerprint_of_a_resource_is_its_build(tmp_path: Path) -> None:
    project = shop(tmp_path)
    for resource in project.resources:
        closure = Closures(project).of(resource)
        assert fingerprint(tmp_path, resource, closure) == Closures(project).build(resource)


def test_files_are_read_once_as_long_as_they_do_not_change(tmp_path: Path) -> None:
    project = shop(tmp_path)
    Closures(project).builds()
    sources = dict(project.syntax)
    again = scan(tmp_path, vocabulary=VOCABULARY, previous=project)
    assert {path: again.syntax[path] for path in sources} == sources
    assert all(again.syntax[path] is sources[path] for path in sources)


def test_a_resource_that_can_reach_another_ones_function_makes_remote_calls(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER + "\n    import b\n", "b.py": WORKER})
    closures = Closures(project)
    assert {resource.name: closures.makes_remote_calls(resource) for resource in project.resources} == {
        "a": True,
        "b": False,
    }
