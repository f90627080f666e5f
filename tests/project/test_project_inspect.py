"""The second pass: a file's own import corrects what syntax could not tell."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from project_fixtures import write

from flashmesh.project.inspect import Inspection, inspect_file
from flashmesh.project.merge import merge, merge_all
from flashmesh.project.model import Project
from flashmesh.project.scan import scan

COMPUTED = """
    from flashmesh import CpuLiveServerless, Endpoint, remote

    def make(name):
        return CpuLiveServerless(name=name, workersMax=1 + 2 * 2)

    cpu = make("computed")

    @remote(cpu, retries=2)
    def f(a: int, *, b: str = "x") -> int:
        '''Says f.'''
        return a

    @remote(cpu)
    class Counter:
        def __init__(self, start=0): ...
        async def items(self, n: int):
            yield n
"""


def inspected(root: Path, files: dict[str, str], file: str) -> tuple[Project, Inspection]:
    project = scan(write(root, files))
    return project, inspect_file(project.root, file, timeout_s=20)


def test_the_import_tells_what_a_function_call_made(tmp_path: Path) -> None:
    before, inspection = inspected(tmp_path, {"w.py": COMPUTED}, "w.py")
    assert (before.resources, before.needs_import) == ((), ("w.py",))
    project = merge(before, inspection)
    (resource,) = project.resources
    assert (resource.name, resource.file, resource.variable) == ("w", "w.py", "cpu")
    assert (resource.config.name, resource.config.workers_max) == ("computed", 5)
    assert [function.settings(resource.config).retries for function in resource.functions] == [2, 0]
    assert project.needs_import == () == project.problems
    f, counter = resource.functions
    assert (f.id, f.doc, [p.name for p in f.parameters], f.parameters[1].default) == (
        "w.f",
        "Says f.",
        ["a", "b"],
        "'x'",
    )
    assert counter.callables == ("w.Counter.items",)
    assert counter.methods[0].is_generator and counter.methods[0].is_async
    assert [parameter.name for parameter in counter.parameters] == ["start"]
    assert [parameter.name for parameter in counter.methods[0].parameters] == ["n"]


def test_a_file_in_a_folder_finds_the_ones_beside_it(tmp_path: Path) -> None:
    """`make` is a neighbour's, and a file of the same name elsewhere is not mistaken for it."""
    make, use = COMPUTED.split("    cpu = make", 1)
    files = {"jobs/w.py": f"    from flashmesh import remote\n    from making import make\n\n    cpu = make{use}"}
    before, inspection = inspected(
        tmp_path, {**files, "jobs/making.py": make, "other/making.py": "make = 1"}, "jobs/w.py"
    )
    assert before.needs_import == ("jobs/w.py",)
    assert [resource.config.name for resource in merge(before, inspection).resources] == ["computed"]


def test_settings_that_were_unresolved_take_the_imports_values(tmp_path: Path) -> None:
    source = """
    from flashmesh import Endpoint
    api = Endpoint(name="api", env={"KEY": "".join(["a", "b"])}, cpu="cpu3c-1-2")
    @api.get("/x")
    def x(): ...
    """
    before, inspection = inspected(tmp_path, {"w.py": source}, "w.py")
    assert before.resources[0].unresolved == ("env",)
    after = merge(before, inspection).resources[0]
    assert (after.unresolved, after.config.env, after.name, after.line) == ((), {"KEY": "ab"}, "w", 3)
    assert after.is_load_balanced
    assert after.functions == before.resources[0].functions


def test_a_configuration_belongs_to_the_file_that_assigns_it_not_to_those_that_import_it(tmp_path: Path) -> None:
    files = {
        "configs.py": "from flashmesh import LiveServerless\ndef make(): return LiveServerless(name='p')\ngpu = make()",
        "a.py": "from flashmesh import remote\nfrom configs import gpu\n@remote(gpu)\ndef f(): ...",
        "01_b/c.py": "from flashmesh import remote\nfrom configs import *\n@remote(gpu)\ndef f(): ...",
    }
    project = scan(write(tmp_path, files))
    assert project.needs_import == ("01_b/c.py", "a.py")
    project = merge_all(project, [inspect_file(tmp_path, file, timeout_s=20) for file in project.needs_import])
    (resource,) = project.resources
    assert (resource.name, resource.variable) == ("configs", "gpu")
    assert [function.id for function in resource.functions] == ["01_b.c.f", "a.f"]


def test_a_failed_import_takes_its_functions_and_says_why_and_where(tmp_path: Path) -> None:
    source = "from flashmesh import Endpoint\n@Endpoint(name='e')\ndef f(): ...\n\nraise OSError('no disk')\n"
    before, inspection = inspected(tmp_path, {"w.py": source, "ok.py": source.replace("raise", "#")}, "w.py")
    project = merge(before, inspection)
    assert [function.id for function in project.functions] == ["ok.f"]
    (problem,) = project.problems
    assert (problem.file, problem.line, problem.prefix) == ("w.py", 5, "/w")
    assert problem.reason == "OSError: no disk"
    assert problem.traceback is not None and problem.traceback.count("File ") == 1


def test_an_import_that_lacks_a_package_does_not_take_functions_its_environment_may_serve(tmp_path: Path) -> None:
    """Its packages are installed at its first call; until then what syntax told stands."""
    source = "from flashmesh import Endpoint\nimport no_such_package_xyz\n@Endpoint(name='e')\ndef f(): ...\n"
    before, inspection = inspected(tmp_path, {"w.py": source}, "w.py")
    assert inspection.missing_module == "no_such_package_xyz"
    assert merge(before, inspection) == before
    undecided = source.replace("@Endpoint", "def make(**k): return Endpoint(**k)\n@make")
    before, inspection = inspected(tmp_path, {"w.py": undecided}, "w.py")
    (problem,) = merge(before, inspection).problems
    assert "no_such_package_xyz" in problem.reason


def test_a_decorated_call_ends_the_import_quietly(tmp_path: Path) -> None:
    source = """
    import asyncio
    from flashmesh import Endpoint
    @Endpoint(name='e')
    async def f(): ...
    asyncio.run(f())
    raise SystemExit("never reached")
    """
    _, inspection = inspected(tmp_path, {"w.py": source}, "w.py")
    assert inspection.problem is None
    assert [declared["id"] for declared in inspection.declared] == ["w.f"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import os; os._exit(3)", "ended the process with status 3"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("print(input())", "EOFError"),
        ("1/0", "ZeroDivisionError: division by zero"),
    ],
)
def test_whatever_an_import_does_the_answer_is_a_reason(tmp_path: Path, line: str, reason: str) -> None:
    _, inspection = inspected(tmp_path, {"w.py": f"{line}\n"}, "w.py")
    assert inspection.problem is not None
    assert reason in inspection.problem.reason


def test_an_endless_import_ends_at_its_limit(tmp_path: Path) -> None:
    write(tmp_path, {"w.py": "while True: pass\n"})
    inspection = inspect_file(tmp_path, "w.py", timeout_s=1)
    assert inspection.problem is not None
    assert "longer than 1 s" in inspection.problem.reason


def test_files_named_like_standard_library_modules_are_imported_by_location(tmp_path: Path) -> None:
    source = "import queue, dataclasses\nfrom flashmesh import Endpoint\nassert queue.Queue\n"
    source += "@Endpoint(name='q')\ndef f(): ...\n"
    for file in ("queue.py", "class.py", "my-w.py", "a.b/c.py"):
        _, inspection = inspected(tmp_path, {file: source}, file)
        assert inspection.problem is None
        assert [declared["id"] for declared in inspection.declared] == [file[:-3].replace("/", ".") + ".f"]


def test_packages_of_the_resource_come_before_installed_ones(tmp_path: Path) -> None:
    write(tmp_path, {"site/rich/__init__.py": "MINE = 1", "p/w.py": "from rich import MINE\n"})
    assert inspect_file(tmp_path / "p", "w.py", timeout_s=20).problem is not None
    assert inspect_file(tmp_path / "p", "w.py", timeout_s=20, site_dirs=[tmp_path / "site"]).problem is None


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_the_child_dies_with_whoever_asked(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"w.py": f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(99)"},
    )
    asking = "import sys, pathlib\nfrom flashmesh.project.inspect import inspect_file\n"
    asking += "inspect_file(pathlib.Path(sys.argv[1]), 'w.py', timeout_s=60)\n"
    parent = subprocess.Popen([sys.executable, "-c", asking, str(tmp_path)])
    mark = tmp_path / "pid"
    _wait(lambda: mark.exists() and mark.read_text() != "")
    child = int(mark.read_text())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    _wait(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
