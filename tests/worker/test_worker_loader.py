"""Importing a project's files in a worker: where they stand, what they may be called, what is said when they fail."""

import json
from pathlib import Path
from typing import Any

import pytest
from loader_fixtures import load_in_child, spec_of, write

DECORATOR = """
    from flashmesh.functions.classes import class_handle
    from flashmesh.functions.config import ResourceConfig
    from flashmesh.functions.declarations import Body, Declaration
    from flashmesh.functions.handles import Callee, handle_of

    class Resource:
        name = "own"
        is_load_balanced = False
        def to_config(self):
            return ResourceConfig(resource_type="LiveServerless", gpus=self.gpus)
        def __init__(self, gpus=()):
            self.gpus = gpus

    def remote(resource):
        def decorate(target):
            declaration = Declaration(target, resource, decorated_by="remote")
            if isinstance(target, type):
                return class_handle(declaration)
            return handle_of(Callee(declaration, Body(target.__name__, target)), target)
        return decorate
    """
"""The decorator as a file of its own, so that these tests need no public names."""


def project(root: Path, **files: str) -> Path:
    """A project with `decorate.py`; keyword names have `__` for a slash."""
    return write(
        root, {"decorate.py": DECORATOR, **{name.replace("__", "/") + ".py": text for name, text in files.items()}}
    )


FUNCTION = """
    from decorate import Resource, remote
    resource = Resource()

    @remote(resource)
    def hello(name: str = "you") -> str:
        return "hello " + name
    """


@pytest.mark.parametrize(
    ("module", "file"),
    [("worker", "worker.py"), ("my-worker", "my-worker.py"), ("01_start.cpu", "01_start/cpu.py"), ("a.b", "a/b.py")],
)
def test_a_file_is_loaded_by_its_place_whatever_its_name(tmp_path: Path, module: str, file: str) -> None:
    """Hyphens, numbers and folders without __init__.py are no obstacle; ids are the dotted path as written."""
    root = write(tmp_path, {"decorate.py": DECORATOR, file: FUNCTION})
    assert load_in_child(spec_of(root, {module: file}, [f"{module}.hello"])) == [f"{module}.hello"]


def test_files_named_like_the_standard_library_or_a_dependency_break_neither(tmp_path: Path) -> None:
    """queue.py, types.py and msgspec.py are served, and everybody who imports those names gets the real ones."""
    root = write(
        tmp_path,
        {
            "decorate.py": DECORATOR,
            "queue.py": FUNCTION,
            "types.py": FUNCTION,
            "msgspec.py": FUNCTION,
            "copy.py": FUNCTION,
        },
    )
    modules = {name: f"{name}.py" for name in ("queue", "types", "msgspec", "copy")}
    served = [f"{name}.hello" for name in modules]
    then = """
        import queue, types, msgspec, copy, asyncio
        out = [list(loaded.callables), [hasattr(queue, "SimpleQueue"), hasattr(types, "ModuleType"),
               hasattr(msgspec, "Struct"), copy.copy([1]) == [1]]]
        """
    assert load_in_child(spec_of(root, modules, served), then) == [served, [True] * 4]


def test_a_package_named_like_a_dependency_keeps_its_relative_imports(tmp_path: Path) -> None:
    """`from .part import x` inside a folder called `msgspec` finds the project's own part."""
    root = write(
        tmp_path,
        {
            "decorate.py": DECORATOR,
            "msgspec/__init__.py": "",
            "msgspec/part.py": "answer = 42\n",
            "msgspec/work.py": "from .part import answer\nfrom decorate import Resource, remote\n"
            "@remote(Resource())\ndef f():\n    return answer\n",
        },
    )
    then = "out = loaded.callables['msgspec.work.f'].function()"
    assert load_in_child(spec_of(root, {"msgspec.work": "msgspec/work.py"}, ["msgspec.work.f"]), then) == 42


def test_relative_and_absolute_imports_of_project_files_give_one_module(tmp_path: Path) -> None:
    """A file imported by another one's import statement and by the worker is executed once."""
    root = project(
        tmp_path,
        pkg____init__="",
        pkg__first=FUNCTION + "\n    print('first runs')\n",
        pkg__second="""
            from decorate import remote
            from .first import hello, resource
            import pkg.first as again

            @remote(resource)
            def second():
                return again.hello is hello
            """,
    )
    modules = {"pkg.second": "pkg/second.py", "pkg.first": "pkg/first.py"}
    then = "out = [list(loaded.callables), loaded.callables['pkg.second.second'].function()]"
    served = ["pkg.second.second", "pkg.first.hello"]
    assert load_in_child(spec_of(root, modules, served), then) == [served, True]


def test_the_project_root_never_shadows_what_is_installed(tmp_path: Path) -> None:
    """The root is the last entry of sys.path, and the working directory is none."""
    root = project(tmp_path, work=FUNCTION)
    then = "import sys; out = [sys.path[-1], '' in sys.path]"
    assert load_in_child(spec_of(root, {"work": "work.py"}, ["work.hello"]), then) == [str(root), False]


def test_the_environment_of_an_endpoint_comes_before_the_interpreters(tmp_path: Path) -> None:
    """A package in a site dir wins over the installed one of the same name."""
    root = project(tmp_path / "project", work="import httptools\n" + FUNCTION.replace("\n    ", "\n"))
    write(tmp_path / "site", {"httptools.py": "version = 'mine'\n"})
    spec = spec_of(root, {"work": "work.py"}, ["work.hello"], site_dirs=[str(tmp_path / "site")])
    then = (
        "import importlib, sys; sys.modules.pop('httptools', None); out = importlib.import_module('httptools').__file__"
    )
    assert load_in_child(spec, then) == str(tmp_path / "site" / "httptools.py")


def test_a_decorated_call_ends_the_import_and_what_stood_before_it_is_served(tmp_path: Path) -> None:
    """A bare `asyncio.run(hello())` as last line, also in a file that another one imports."""
    root = project(
        tmp_path,
        first=FUNCTION + "\n    import asyncio\n    asyncio.run(hello())\n    late = 1 / 0\n",
        second="""
            from decorate import remote
            from first import hello, resource

            @remote(resource)
            def second():
                return 2
            """,
    )
    modules = {"second": "second.py", "first": "first.py"}
    assert load_in_child(spec_of(root, modules, ["first.hello"])) == ["second.second", "first.hello"]


def test_a_main_guard_is_not_executed(tmp_path: Path) -> None:
    """The file is imported, not run."""
    root = project(tmp_path, work=FUNCTION + '\n    if __name__ == "__main__":\n        1 / 0\n')
    assert load_in_child(spec_of(root, {"work": "work.py"}, ["work.hello"])) == ["work.hello"]


@pytest.mark.parametrize(
    ("source", "line", "reason"),
    [
        ("x = 1\ny = x / 0\n", 2, "ZeroDivisionError: division by zero"),
        ("def f(:\n    pass\n", 1, "SyntaxError: invalid syntax"),
        ("import sys\n\nsys.exit(3)\n", 3, "the file ends the interpreter (sys.exit(3))"),
        ("import helper\n", 2, "ValueError: deep"),
        ("import no_such_package\n", 1, "No module named 'no_such_package'; add it to `dependencies=`"),
        ("raise BaseException('odd')\n", 1, "BaseException: odd"),
    ],
)
def test_a_failed_import_names_file_line_and_reason(tmp_path: Path, source: str, line: int, reason: str) -> None:
    """The line is the user's own innermost one, the traceback begins in their file."""
    root = write(tmp_path, {"work.py": source, "helper.py": "\nraise ValueError('deep')\n"})
    problem = load_in_child(spec_of(root, {"work": "work.py"}, []))
    name = "helper.py" if "helper" in source else "work.py"
    assert (problem["file"], problem["line"]) == (name, line)
    assert reason in problem["reason"]
    assert "flashmesh/worker" not in problem["traceback"]
    assert name in problem["traceback"]


def test_an_import_cycle_of_own_files_is_a_problem_with_a_reason(tmp_path: Path) -> None:
    """Python's own words about the cycle reach the user."""
    root = write(tmp_path, {"one.py": "from two import b\na = 1\n", "two.py": "from one import a\nb = 1\n"})
    problem = load_in_child(spec_of(root, {"one": "one.py", "two": "two.py"}, []))
    assert "partially initialized module 'one'" in problem["reason"]
    assert (problem["file"], problem["line"]) == ("two.py", 1)


def test_an_edit_within_the_same_second_is_seen(tmp_path: Path) -> None:
    """Byte code of the earlier text is not taken for the new one, though its time stamp in seconds is the same."""
    root = project(tmp_path, work=FUNCTION)
    spec = spec_of(root, {"work": "work.py"}, ["work.hello"])
    then = "out = loaded.callables['work.hello'].function('x')"
    assert load_in_child(spec, then) == "hello x"
    (root / "work.py").write_text((root / "work.py").read_text().replace('"hello "', '"hallo "'))
    assert load_in_child(spec, then) == "hallo x"


def test_a_virtual_environment_inside_the_project_is_not_the_projects_source(tmp_path: Path) -> None:
    """Packages below `.venv` or `site-packages` are imported as Python does it."""
    root = project(tmp_path, work=FUNCTION)
    then = """
        owns = loaded.imports.owns
        out = [owns(spec.project_root + "/" + name) for name in
               ("work.py", ".venv/lib/python3/site-packages/x.py", "node_modules/x.py", ".hidden/x.py")]
        out.append(owns("/usr/lib/python3/x.py"))
        """
    assert load_in_child(spec_of(root, {"work": "work.py"}, []), then) == [True, False, False, False, False]


def test_hooks_of_the_endpoints_files_are_found_and_of_other_resources_are_not(tmp_path: Path) -> None:
    """`@worker_start` concerns all of the module's endpoints, `@worker_start(resource)` that one."""
    root = project(
        tmp_path,
        work="""
            from flashmesh.functions.hooks import worker_start
            from decorate import Resource, remote
            mine, other = Resource(), Resource()

            @worker_start
            def always(): ...

            @worker_start(mine)
            async def connect(): ...

            @worker_start(other)
            def not_here(): ...

            @remote(mine)
            def f(): ...

            @remote(other)
            def g(): ...
            """,
    )
    then = "out = [[hook.__name__ for hook in loaded.hooks], list(loaded.callables)]"
    assert load_in_child(spec_of(root, {"work": "work.py"}, ["work.f"]), then) == [["always", "connect"], ["work.f"]]


def test_every_public_method_of_a_class_is_a_callable(tmp_path: Path) -> None:
    """Ids are module.Class.method; private ones are not served."""
    root = project(
        tmp_path,
        work="""
            from decorate import Resource, remote

            @remote(Resource())
            class Counter:
                def __init__(self, start: int = 0):
                    self.n = start
                def inc(self, by: int) -> int:
                    self.n += by
                    return self.n
                async def get(self): return self.n
                def _private(self): ...
            """,
    )
    then = "from flashmesh.worker.callables import describe; out = describe(loaded)"
    found = load_in_child(spec_of(root, {"work": "work.py"}, ["work.Counter.inc"]), then)
    assert [(one["id"], one["kind"], one["is_async"]) for one in found] == [
        ("work.Counter.inc", "method", False),
        ("work.Counter.get", "method", True),
    ]
    assert found[0]["parameters"]["properties"]["by"]["type"] == "integer"


# --- cross imports ---

GPU = """
    import no_such_torch
    from decorate import Resource, remote
    SIZE = 3

    @remote(Resource(gpus=("ANY",)))
    def train(n: int) -> int:
        return n

    @remote(Resource())
    class Model:
        def infer(self, x): return x
    """

MANIFEST: dict[str, Any] = {
    "function_registry": {"gpu.train": "gpu", "gpu.Model": "gpu"},
    "resources": {
        "gpu": {
            "functions": [
                {"name": "train", "module": "gpu", "is_async": False, "is_class": False, "is_generator": False},
                {"name": "Model", "module": "gpu", "is_class": True, "class_methods": ["infer"]},
            ],
            "config": {"resource_type": "LiveServerless", "gpus": ["ANY"], "env": ["TOKEN"]},
        }
    },
}

CPU = """
    {imports}
    from decorate import Resource, remote

    @remote(Resource())
    def prepare(n):
        return n
    """


@pytest.mark.parametrize("imports", ["from gpu import train, Model", "import gpu; train, Model = gpu.train, gpu.Model"])
def test_a_module_of_another_resource_without_its_packages_is_imported_as_stubs(tmp_path: Path, imports: str) -> None:
    """The CPU file imports the GPU file whose first line needs an absent package; its functions are handles."""
    root = project(tmp_path, gpu=GPU, cpu=CPU.replace("{imports}", imports))
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    then = """
        cpu = loaded.modules["cpu"]
        out = [list(loaded.callables), callable(cpu.train.call), cpu.train.__flash__.id,
               cpu.train.__flash__.config.gpus, callable(cpu.Model().infer.call)]
        """
    expected = [["cpu.prepare"], True, "gpu.train", ["ANY"], True]
    assert load_in_child(spec_of(root, {"cpu": "cpu.py"}, ["cpu.prepare"]), then) == expected


@pytest.mark.parametrize("imports", ["from gpu import SIZE", "import gpu; gpu.SIZE"])
def test_other_names_of_such_a_module_raise_the_original_error(tmp_path: Path, imports: str) -> None:
    """A constant of the GPU file is not made up."""
    root = project(tmp_path, gpu=GPU, cpu=CPU.replace("{imports}", imports))
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    problem = load_in_child(spec_of(root, {"cpu": "cpu.py"}, ["cpu.prepare"]))
    assert "No module named 'no_such_torch'" in problem["reason"]


def test_a_package_of_another_resource_is_imported_as_stubs_too(tmp_path: Path) -> None:
    """`from models.gpu import train` with a folder between, and a helper that needs the package in between."""
    manifest = json.loads(json.dumps(MANIFEST).replace('"module": "gpu"', '"module": "models.gpu"'))
    root = project(
        tmp_path,
        models____init__="",
        models__gpu="from .deep import x\n",
        models__deep="import no_such_torch\n",
        cpu=CPU.replace("{imports}", "from models.gpu import train"),
    )
    (root / "manifest.json").write_text(json.dumps(manifest))
    then = "out = loaded.modules['cpu'].train.__flash__.id"
    assert load_in_child(spec_of(root, {"cpu": "cpu.py"}, ["cpu.prepare"]), then) == "models.gpu.train"


def test_a_module_of_this_endpoint_that_lacks_a_package_fails(tmp_path: Path) -> None:
    """Stubs of one's own functions would serve nothing."""
    root = project(tmp_path, gpu=GPU)
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    problem = load_in_child(spec_of(root, {"gpu": "gpu.py"}, ["gpu.train"], endpoint="gpu"))
    assert "no_such_torch" in problem["reason"]


def test_two_files_of_two_resources_may_import_each_others_functions(tmp_path: Path) -> None:
    """`from b import g` in a.py and `from a import f` in b.py: each endpoint gets the other's functions as stubs."""
    source = """
        from {other} import {theirs}
        from decorate import Resource, remote

        @remote(Resource())
        def {mine}():
            return 1
        """
    root = project(
        tmp_path,
        a=source.format(other="b", theirs="g", mine="f"),
        b=source.format(other="a", theirs="f", mine="g"),
    )
    functions = {name: [{"name": function, "module": name}] for name, function in (("a", "f"), ("b", "g"))}
    manifest = {"resources": {name: {"functions": entries, "config": {}} for name, entries in functions.items()}}
    (root / "manifest.json").write_text(json.dumps(manifest))
    then = "out = [list(loaded.callables), loaded.modules['a'].g.__flash__.id]"
    assert load_in_child(spec_of(root, {"a": "a.py"}, ["a.f"], endpoint="a"), then) == [["a.f"], "b.g"]


def test_a_project_error_that_is_not_a_missing_package_is_raised_as_it_is(tmp_path: Path) -> None:
    """A wrong name in the other file is the user's mistake, not a reason for stubs."""
    root = project(tmp_path, gpu="import helper_that_is_missing_a_name.x\n", cpu=CPU.replace("{imports}", "import gpu"))
    write(root, {"helper_that_is_missing_a_name/__init__.py": ""})
    (root / "manifest.json").write_text(json.dumps(MANIFEST))
    problem = load_in_child(spec_of(root, {"cpu": "cpu.py"}, ["cpu.prepare"]))
    assert "helper_that_is_missing_a_name.x" in problem["reason"]


NEIGHBOURS = {
    "jobs/helper.py": "from os import getpid\nNAME = 'jobs'",
    "jobs/kit/__init__.py": "",
    "jobs/kit/parts.py": "COUNT = 3",
    "other/helper.py": "NAME = 'other'",
}
"""Two folders of one project with a file of the same name."""


@pytest.mark.parametrize(
    ("statement", "expression", "value"),
    [
        ("from helper import NAME", "NAME", "jobs"),
        ("import helper", "helper.NAME", "jobs"),
        ("import helper as h, os", "h.NAME, os.sep", ["jobs", "/"]),
        ("import kit.parts", "kit.parts.COUNT", 3),
        ("import kit.parts as p", "p.COUNT", 3),
        ("from kit.parts import COUNT", "COUNT", 3),
        ("from kit import parts", "parts.COUNT", 3),
        ("def late():\n    from helper import NAME\n    return NAME", "late()", "jobs"),
        ("import helper", "helper.__name__", "jobs.helper"),
    ],
)
def test_a_file_in_a_folder_imports_its_neighbours_by_their_bare_name(
    tmp_path: Path, statement: str, expression: str, value: Any
) -> None:
    """As `python jobs/worker.py` does, though `other/helper.py` has the same name; and it is the one there is."""
    root = write(tmp_path, {"decorate.py": DECORATOR, **NEIGHBOURS})
    write(root, {"jobs/worker.py": f"{statement}\n\ndef answer(): return {expression}"})
    write(root, {"other/worker.py": "from helper import NAME\nassert NAME == 'other'"})
    spec = spec_of(root, {"other.worker": "other/worker.py", "jobs.worker": "jobs/worker.py"}, [])
    assert load_in_child(spec, "out = loaded.modules['jobs.worker'].answer()") == value


def test_the_root_and_installed_packages_come_before_a_neighbour(tmp_path: Path) -> None:
    """`import numpy` beside a `numpy.py` is the package; `import shared` is the root's when the root has one."""
    root = write(
        tmp_path,
        {
            "shared.py": "PLACE = 'root'",
            "jobs/shared.py": "PLACE = 'jobs'",
            "jobs/numpy.py": "PLACE = 'jobs'",
            "jobs/worker.py": "import numpy, shared\nplaces = [shared.PLACE, hasattr(numpy, 'ndarray')]",
        },
    )
    spec = spec_of(root, {"jobs.worker": "jobs/worker.py"}, [])
    assert load_in_child(spec, "out = loaded.modules['jobs.worker'].places") == ["root", True]
