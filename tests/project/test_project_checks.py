"""What a build refuses, and what it warns of."""

import dataclasses
from pathlib import Path

import pytest
from project_fixtures import WORKER, write

from flashmesh.project.checks import errors, sentences, warnings
from flashmesh.project.closure import Closures
from flashmesh.project.contents import find_contents
from flashmesh.project.scan import scan

LB = """
    from flashmesh import Endpoint, CpuLiveLoadBalancer, remote
    {imports}
    conf = CpuLiveLoadBalancer(name="{name}")
    @remote(conf, method="POST", path="/{name}")
    async def {name}(n: int):
        return {body}
"""


def refused(root: Path, files: dict[str, str]) -> list[str]:
    project = scan(write(root, files))
    return sentences(errors(project, Closures(project)))


def warned(root: Path, files: dict[str, str]) -> list[str]:
    project = scan(write(root, files))
    closures = Closures(project)
    assert errors(project, closures) == []
    packed = {file.path for file in find_contents(root).files}
    return sentences(warnings(project, closures, packed=packed, read=lambda file: (root / file).read_bytes()))


def balanced(name: str, *, imports: str = "", body: str = "n") -> str:
    return LB.format(name=name, imports=imports, body=body)


def test_a_good_project_is_neither_refused_nor_warned_of(tmp_path: Path) -> None:
    assert warned(tmp_path, {"a.py": WORKER + "\n    import lib.text\n", "lib/text.py": ""}) == []


@pytest.mark.parametrize("files", [("a/b.py", "a_b.py"), ("my-w.py", "my_w.py")])
def test_two_files_of_one_resource_name_are_refused_with_both_named(tmp_path: Path, files: tuple[str, str]) -> None:
    one, other = sorted(files)
    (line,) = refused(tmp_path, {one: WORKER, other: WORKER.replace('"gpu"', '"other"').replace("process", "more")})
    assert line.startswith(
        f"{one}:4: gives the resource name {other.removesuffix('.py').replace('-', '_').replace('/', '_')}"
    )
    assert other in line


def test_one_declared_name_twice_is_refused(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, {"a.py": WORKER, "b.py": WORKER.replace("process", "more")})
    assert line.startswith('a.py:4: the name "gpu" is declared here and at b.py:4')


def test_endpoints_that_took_their_functions_names_have_not_declared_one(tmp_path: Path) -> None:
    code = "from flashmesh import Endpoint\n@Endpoint(cpu='cpu3c-1-2')\ndef process(): ...\n"
    (line,) = warned(tmp_path, {"a.py": code, "b.py": code})
    assert line == "a.py:3: process is the name of a.process and b.process: by that name alone neither is called"


def test_one_route_twice_on_an_endpoint_is_refused_also_across_files(tmp_path: Path) -> None:
    first = "from flashmesh import Endpoint\napi = Endpoint(name='api')\n@api.get('/x/{a}')\ndef one(a): ...\n"
    second = "from a import api\n@api.get('/x/{b}')\ndef two(b): ...\n"
    (line,) = refused(tmp_path, {"a.py": first, "b.py": second})
    assert "GET /x/{b} belongs to a.one of the same endpoint" in line
    (tmp_path / "b.py").unlink()
    assert refused(tmp_path, {"a.py": first}) == []


def test_a_route_that_endpoints_answer_themselves_is_refused(tmp_path: Path) -> None:
    code = "from flashmesh import Endpoint\napi = Endpoint(name='api')\n@api.get('/ping')\ndef one(): ...\n"
    (line,) = refused(tmp_path, {"a.py": code})
    assert "'/ping' is reserved" in line


def test_a_setting_that_cannot_be_told_here_is_refused_rather_than_lost(tmp_path: Path) -> None:
    project = scan(write(tmp_path, {"a.py": WORKER}))
    (resource,) = project.resources
    open_ended = dataclasses.replace(project, resources=(dataclasses.replace(resource, unresolved=("workersMax",)),))
    (line,) = sentences(errors(open_ended, Closures(open_ended)))
    assert line.startswith("a.py:4: a: workersMax can only be told by importing the file")


def test_a_broken_file_that_a_function_imports_is_refused(tmp_path: Path) -> None:
    (line,) = refused(
        tmp_path, {"a.py": WORKER + "\n    import helper\n", "helper.py": "def f(:\n", "other.py": "def f(:\n"}
    )
    assert line.startswith("helper.py:1: a function imports it, and SyntaxError")


def test_errors_of_the_scan_refuse_the_build(tmp_path: Path) -> None:
    (line,) = refused(tmp_path, {"a.py": WORKER.replace('name="gpu"', 'name="gpu", workersMax=-1')})
    assert "workersMax must be" in line


def test_http_that_calls_http_through_remote_is_warned_of(tmp_path: Path) -> None:
    caller = balanced("two", imports="from one import one", body="await one(n)")
    (line,) = warned(tmp_path, {"one.py": balanced("one"), "two.py": caller})
    assert line.startswith("two.py:6: two serves HTTP and calls one of one.py, which serves HTTP too")


def test_http_that_calls_a_queue_or_only_imports_other_http_is_not_warned_of(tmp_path: Path) -> None:
    caller = balanced("two", imports="from one import one\n    from a import process", body="await process({})")
    assert warned(tmp_path, {"one.py": balanced("one"), "two.py": caller, "a.py": WORKER}) == []


def test_names_imported_from_a_folder_that_is_no_package_are_warned_of(tmp_path: Path) -> None:
    worker = WORKER + "\n    from lib import text, helper\n"
    (line,) = warned(tmp_path, {"a.py": worker, "lib/text.py": "", "lib/other.py": "def helper(): ...\n"})
    assert line.startswith("a.py: it imports helper from lib, a folder without an __init__.py")
    assert warned(tmp_path, {"a.py": worker, "lib/__init__.py": "def helper(): ...\n"}) == []


def test_a_file_that_is_imported_and_not_packed_is_warned_of(tmp_path: Path) -> None:
    files = {
        "a.py": WORKER + "\n    import generated, test_data\n",
        "generated.py": "",
        "test_data.py": "",
        ".gitignore": "gen*\n",
    }
    lines = warned(tmp_path, files)
    assert [line.partition(":")[0] for line in lines] == ["generated.py", "test_data.py"]
    assert "!generated.py in .flashignore" in lines[0]


def test_different_versions_of_python_are_warned_of(tmp_path: Path) -> None:
    one = WORKER.replace('name="gpu"', 'name="gpu", python_version="3.10"')
    (line,) = warned(tmp_path / "one", {"a.py": one})
    assert "python_version='3.10', and this build was scanned with 3." in line
    other = one.replace("3.10", "3.13").replace('"gpu"', '"b"').replace("process", "more")
    (line,) = warned(tmp_path / "two", {"a.py": one, "b.py": other})
    assert "different versions of Python (a 3.10 and b 3.13)" in line


def test_a_secret_written_into_the_code_is_warned_of_without_its_value(tmp_path: Path) -> None:
    code = WORKER.replace('name="gpu"', 'name="gpu", env={"API_TOKEN": "hush-hush", "MODE": "fast-fast"}')
    (line,) = warned(tmp_path, {"a.py": code})
    assert line.startswith("a.py:4: the value of API_TOKEN stands in this file")
    assert "hush" not in line
    from_outside = WORKER.replace('name="gpu"', 'name="gpu", env={"API_TOKEN": os.environ["HOME"]}')
    assert warned(tmp_path, {"a.py": "    import os\n" + from_outside}) == []
