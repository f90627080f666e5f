"""What a scan finds, from syntax alone."""

import os
import time
from pathlib import Path

import pytest
from project_fixtures import VOCABULARY, WORKER, only, scanned, write

from flashmesh.project.model import MethodSpec, ParameterSpec, Project
from flashmesh.project.scan import scan


def ids(project: Project) -> list[str]:
    return [function.id for function in project.functions]


def errors(project: Project) -> list[str]:
    return [problem.reason for problem in project.problems if problem.severity == "error"]


def test_one_file_with_one_decorated_function_is_a_project(tmp_path: Path) -> None:
    resource = only(scanned(tmp_path, {"gpu_worker.py": WORKER}))
    (function,) = resource.functions
    assert (resource.name, resource.file, resource.variable, resource.line) == ("gpu_worker", "gpu_worker.py", "gpu", 4)
    assert (resource.config.resource_type, resource.config.name) == ("LiveServerless", "gpu")
    assert (function.id, function.line, function.is_async) == ("gpu_worker.process", 7, True)
    assert function.parameters == (ParameterSpec(name="data", annotation="dict"),)


def test_nothing_of_the_user_is_executed(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    scanned(tmp_path, {"w.py": f"open({str(mark)!r}, 'w')\n" + WORKER.replace("\n    ", "\n"), "train.py": "1/0"})
    assert not mark.exists()


@pytest.mark.parametrize(
    "source",
    [
        "import flashmesh as fm\n@fm.remote(fm.LiveServerless(name='x'))\ndef f(): ...",
        "import runpod_flash\n@runpod_flash.remote(resource_config=runpod_flash.LiveServerless(name='x'))\n"
        "def f(): ...",
        "from runpod_flash import remote as r, LiveServerless as L\ng = L(name='x')\n@r(g)\ndef f(): ...",
        "from runpod_flash import *\n@remote(LiveServerless(name='x'))\ndef f(): ...",
        "from flashmesh.functions.resources import LiveServerless\nfrom flashmesh import remote\n"
        "@remote(LiveServerless(name='x'))\ndef f(): ...",
        "from flashmesh import remote, LiveServerless\non_gpu = remote(LiveServerless(name='x'))\n"
        "@on_gpu\ndef f(): ...",
        "from flashmesh import remote, LiveServerless\nif True:\n  g = LiveServerless(name='x')\n"
        "  try:\n    @remote(g)\n    def f(): ...\n  except ImportError: pass",
        "from flashmesh import Endpoint\n@Endpoint(name='x')\ndef f(): ...",
        "from flashmesh import Endpoint\nx = Endpoint(name='x')\n@x\ndef f(): ...",
        "from tetra_rp import remote, LiveServerless\nX = {'name': 'x'}\n@remote(LiveServerless(**X))\ndef f(): ...",
    ],
)
def test_every_spelling_of_a_declaration_is_understood(tmp_path: Path, source: str) -> None:
    project = scanned(tmp_path, {"work.py": source})
    assert only(project).config.name == "x"
    assert ids(project) == ["work.f"]


@pytest.mark.parametrize(
    "source",
    [
        "from flashmesh import remote, LiveServerless\ndef outer():\n"
        "  @remote(LiveServerless(name='x'))\n  def f(): ...",
        "from fastapi import FastAPI\nimport flashmesh\napp = FastAPI()\n@app.get('/x')\ndef f(): ...",
        "import flashmesh\nfrom other import thing\n@thing(1)\ndef f(): ...",
        "from flashmesh import remote, LiveServerless\nif False:\n  @remote(LiveServerless(name='x'))\n  def f(): ...",
        "from flashmesh import remote, LiveServerless\nif __name__ == '__main__':\n"
        "  @remote(LiveServerless(name='x'))\n  def f(): ...",
        "import flashmesh\nx = '@flashmesh.remote(1)'",
        "",
    ],
)
def test_what_is_not_declared_at_module_level_is_not_served(tmp_path: Path, source: str) -> None:
    project = scanned(tmp_path, {"work.py": source})
    assert (project.resources, project.problems, project.needs_import) == ((), (), ())


def test_one_configuration_object_is_one_endpoint_named_after_the_file_that_makes_it(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "shared/configs.py": "from flashmesh import LiveServerless\ngpu = LiveServerless(name='pool')",
            "a.py": "from flashmesh import remote\nfrom shared.configs import gpu\n@remote(gpu)\ndef f(): ...",
            "b.py": "from flashmesh import remote\nimport shared.configs\n@remote(shared.configs.gpu)\ndef f(): ...",
            "deep/c.py": "from flashmesh import remote\nfrom ..shared import configs as c\n"
            "@remote(c.gpu)\ndef g(): ...",
        },
    )
    resource = only(project)
    assert (resource.name, resource.file, resource.variable) == ("shared_configs", "shared/configs.py", "gpu")
    assert ids(project) == ["a.f", "b.f", "deep.c.g"]


def test_configurations_are_followed_through_packages_that_re_export_them(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "configs/__init__.py": "from .gpu import *\nfrom .names import NAME",
            "configs/gpu.py": "from flashmesh import LiveServerless\nfrom configs import names\n"
            "g = LiveServerless(name=names.NAME)",
            "configs/names.py": "NAME = 'from-afar'",
            "w.py": "from flashmesh import remote\nfrom configs import g\n@remote(g)\ndef f(): ...",
        },
    )
    assert (only(project).name, only(project).config.name) == ("configs_gpu", "from-afar")


def test_a_route_may_be_declared_on_an_endpoint_of_another_file_without_naming_us(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "app.py": "from flashmesh import Endpoint\napi = Endpoint(name='api')",
            "users.py": "from app import api\n@api.get('/users/{id}')\nasync def user(id: int): ...",
        },
    )
    resource = only(project)
    (function,) = resource.functions
    assert (resource.name, resource.is_load_balanced, resource.config.scaler_type) == ("app", True, "REQUEST_COUNT")
    assert (function.decorated_by, function.http_method, function.http_path) == ("route", "GET", "/users/{id}")


def test_a_file_with_several_configurations_names_each_endpoint_after_its_own(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "my-work.py": """
            from flashmesh import CpuLiveServerless, Endpoint, LiveServerless, remote
            gpu = LiveServerless(name="big-gpu")
            cpu = CpuLiveServerless(name="cpu")
            unused = CpuLiveServerless(name="unused")
            @remote(gpu)
            def a(): ...
            @remote(cpu)
            def b(): ...
            @Endpoint()
            def c(): ...
            """
        },
    )
    assert [resource.name for resource in project.resources] == ["my_work_big_gpu", "my_work_cpu", "my_work_c"]
    assert project.resources[2].config.name == "c"


def test_two_files_that_give_one_name_are_both_served_and_the_clash_is_told(tmp_path: Path) -> None:
    files = {"a/b.py": WORKER, "a_b.py": WORKER, "a-b.py": WORKER}
    project = scanned(tmp_path, files)
    names = {resource.file: resource.name for resource in project.resources}
    assert names["a_b.py"] == "a_b"
    assert len(set(names.values())) == 3
    (clash,) = project.problems
    assert clash.severity == "warning"
    assert all(file in f"{clash.file} {clash.reason}" for file in files)
    assert "rename one file" in clash.reason
    assert {r.name for r in scanned(tmp_path, {"a/zzz.py": ""}).resources} == set(names.values())


def test_two_endpoints_of_one_name_in_a_file_are_both_served_and_the_clash_is_told(tmp_path: Path) -> None:
    source = """
    from flashmesh import Endpoint

    @Endpoint(name="speech")
    def speak(): ...

    @Endpoint(name="speech")
    def voices(): ...
    """
    project = scanned(tmp_path, {"w.py": source})
    assert sorted(ids(project)) == ["w.speak", "w.voices"]
    assert len({resource.name for resource in project.resources}) == 2
    (clash,) = project.problems
    assert (clash.line, "w.py:7" in clash.reason, "another name" in clash.reason) == (4, True, True)


def test_functions_of_one_name_in_two_files_are_two(tmp_path: Path) -> None:
    assert ids(scanned(tmp_path, {"a.py": WORKER, "b.py": WORKER})) == ["a.process", "b.process"]


@pytest.mark.parametrize("file", ["queue.py", "class.py", "01_start/cpu.py", "my-worker.py", "größe.py", "a b/c.d.py"])
def test_any_file_name_is_served(tmp_path: Path, file: str) -> None:
    (function,) = only(scanned(tmp_path, {file: WORKER})).functions
    assert function.id == file.removesuffix(".py").replace("/", ".") + ".process"


def test_functions_named_like_builtins_and_in_unicode_are_served(tmp_path: Path) -> None:
    source = "from flashmesh import Endpoint\ne = Endpoint(name='e')\n@e\ndef list(): ...\n@e\ndef prüfe(größe): ...\n"
    assert ids(scanned(tmp_path, {"w.py": source})) == ["w.list", "w.prüfe"]


def test_a_class_is_described_by_its_constructor_and_public_methods(tmp_path: Path) -> None:
    source = """
    from flashmesh import Endpoint
    from base import Base

    @Endpoint(name="counter")
    class Counter(Base):
        '''Counts.'''
        def __init__(self, start: int = 0, *, step=1): ...
        async def inc(self, by: int): ...
        def items(self):
            yield 1
        @staticmethod
        def version(full=False): ...
        @property
        def value(self): ...
        def _hidden(self): ...
    """
    base = "class Base:\n    def reset(self, hard: bool): ...\n    def inc(self): ...\n"
    (function,) = only(scanned(tmp_path, {"counter.py": source, "base.py": base})).functions
    assert (function.kind, function.doc) == ("class", "Counts.")
    assert function.parameters == (
        ParameterSpec(name="start", annotation="int", default="0"),
        ParameterSpec(name="step", default="1", kind="keyword"),
    )
    by_name = {method.name: method for method in function.methods}
    assert list(by_name) == ["inc", "items", "version", "reset"]
    assert by_name["inc"] == MethodSpec(
        name="inc", line=9, is_async=True, parameters=(ParameterSpec(name="by", annotation="int"),)
    )
    assert by_name["items"].is_generator
    assert [p.name for p in by_name["version"].parameters] == ["full"]
    assert function.callables[0] == "counter.Counter.inc"


def test_parameters_keep_the_text_of_their_annotations_and_defaults(tmp_path: Path) -> None:
    source = (
        "from flashmesh import Endpoint\n@Endpoint(name='x')\n"
        "def f(a, /, b: list[int] | None = None, *args: int, c: 'str' = \"x\", **rest): yield a\n"
    )
    (function,) = only(scanned(tmp_path, {"w.py": source})).functions
    assert function.is_generator and not function.is_async
    assert function.parameters == (
        ParameterSpec(name="a"),
        ParameterSpec(name="b", annotation="list[int] | None", default="None"),
        ParameterSpec(name="args", annotation="int", kind="var_positional"),
        ParameterSpec(name="c", annotation="'str'", default="'x'", kind="keyword"),
        ParameterSpec(name="rest", kind="var_keyword"),
    )


def test_a_yield_inside_an_inner_function_does_not_make_a_generator(tmp_path: Path) -> None:
    source = WORKER + "    \n    def plain():\n        def inner():\n            yield 1\n        return inner\n"
    source = source.replace("def plain", "@remote(gpu)\n    def plain")
    functions = only(scanned(tmp_path, {"w.py": source})).functions
    assert [function.is_generator for function in functions] == [False, False]


def test_settings_of_the_decorator_are_read(tmp_path: Path) -> None:
    source = """
    from flashmesh import LiveServerless, remote
    COMMON = ["numpy>=1"]
    gpu = LiveServerless(name="g")
    @remote(gpu, dependencies=[*COMMON, "rich"], system_dependencies=["ffmpeg"], local=True, retries=2,
            retry_on=(ConnectionError, ValueError))
    def f(): ...
    """
    resource = only(scanned(tmp_path, {"w.py": source}))
    (function,) = resource.functions
    assert function.dependencies == ("numpy>=1", "rich")
    assert function.system_dependencies == ("ffmpeg",)
    assert function.local
    assert resource.config.retries == 2
    assert resource.config.retry_on == ("builtins.ConnectionError", "builtins.ValueError")


def test_the_last_binding_before_its_use_is_what_a_name_means(tmp_path: Path) -> None:
    source = """
    from flashmesh import LiveServerless, remote
    gpu = LiveServerless(name="first")
    @remote(gpu)
    def a(): ...
    gpu = LiveServerless(name="second")
    @remote(gpu)
    def b(): ...
    """
    project = scanned(tmp_path, {"w.py": source})
    assert [(r.config.name, r.functions[0].name) for r in project.resources] == [("first", "a"), ("second", "b")]


def test_a_function_defined_twice_is_served_as_the_second(tmp_path: Path) -> None:
    source = WORKER + "\n    @remote(gpu)\n    def process(other): ...\n"
    (function,) = only(scanned(tmp_path, {"w.py": source})).functions
    assert [parameter.name for parameter in function.parameters] == ["other"]


def test_what_only_running_the_file_tells_is_listed_as_unresolved(tmp_path: Path) -> None:
    source = """
    from flashmesh import Endpoint
    api = Endpoint(name="api", env={"KEY": fetch_secret()}, workers=pick())
    api.max_concurrency = 4
    @api
    def f(): ...
    """
    resource = only(scanned(tmp_path, {"w.py": source}))
    assert resource.config.name == "api"
    assert set(resource.unresolved) == {"env", "workers", "max_concurrency"}


def test_a_configuration_whose_name_is_computed_is_served_all_the_same(tmp_path: Path) -> None:
    source = "from flashmesh import *\ng = LiveServerless(name=make())\n@remote(g)\ndef f(): ...\n"
    resource = only(scanned(tmp_path, {"w.py": source}))
    assert (resource.name, resource.config.name, resource.unresolved) == ("w", "g", ("name",))


@pytest.mark.parametrize(
    "source",
    [
        "from flashmesh import *\ndef make(): return LiveServerless(name='x')\ng = make()\n@remote(g)\ndef f(): ...",
        "from flashmesh import *\ndef make(): return Endpoint(name='x')\napi = make()\n@api.get('/x')\ndef f(): ...",
        "from flashmesh import *\nlb = CpuLiveLoadBalancer(name='x')\n@remote(lb, method='GET', path=p())\n"
        "def f(): ...",
        "from flashmesh import *\ng = Endpoint(name='x') if chance() else Endpoint(name='y')\n@g\ndef f(): ...",
    ],
)
def test_a_file_whose_kind_of_resource_syntax_cannot_tell_has_to_be_imported(tmp_path: Path, source: str) -> None:
    project = scanned(tmp_path, {"w.py": source})
    assert project.needs_import == ("w.py",)
    assert project.resources == ()


def test_settings_come_from_the_environment_the_functions_will_have(tmp_path: Path) -> None:
    source = """
    import os, sys
    from flashmesh import Endpoint
    if os.environ.get("STAGE") == "prod" and sys.version_info >= (3, 11):
        api = Endpoint(name=f"api-{os.environ['STAGE']}", workers=int(os.getenv("MAX", "3")))
    else:
        api = Endpoint(name="dev")
    @api
    def f(): ...
    """
    project = scanned(tmp_path, {"w.py": source}, environ={"STAGE": "prod"})
    assert (only(project).config.name, only(project).config.workers_max) == ("api-prod", 3)
    assert only(scan(tmp_path, vocabulary=VOCABULARY, environ={})).config.name == "dev"


def test_a_syntax_error_is_told_with_its_place_and_costs_only_its_own_file(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"good.py": WORKER, "api/bad.py": "import flashmesh\n@flashmesh.remote(\ndef f(: ..."})
    (problem,) = project.problems
    assert ids(project) == ["good.process"]
    assert (problem.file, problem.line, problem.prefix) == ("api/bad.py", 3, "/api/bad")
    assert problem.reason.startswith("SyntaxError: ")


def test_a_broken_file_that_has_nothing_to_do_with_us_is_left_alone(tmp_path: Path) -> None:
    assert scanned(tmp_path, {"junk.py": "import x\n@thing(\n", "ok.py": WORKER}).problems == ()


@pytest.mark.parametrize(
    "content",
    [
        b"# coding: latin-1\nimport flashmesh\n@flashmesh.x\n\x00def f(): ...",
        b"import flashmesh\n@flashmesh.remote(\xff\xfe)\ndef f(): ...",
        b"# coding: no-such\nimport flashmesh\n@flashmesh.remote\ndef f(): ...",
        b"import flashmesh\n@flashmesh.remote(" + b"(" * 5000 + b"1" + b")" * 5000 + b")\ndef f(): ...",
        b"import flashmesh\n@flashmesh.remote(" + b"-" * 30000 + b"1)\ndef f(): ...",
        b"import flashmesh\n@flashmesh.remote(" + b"1+" * 30000 + b"1)\ndef f(): ...",
    ],
)
def test_no_bytes_whatsoever_make_the_scan_fail(tmp_path: Path, content: bytes) -> None:
    project = scanned(tmp_path, {"bad.py": content, "good.py": WORKER})
    assert ids(project) == ["good.process"]
    assert [problem.prefix for problem in project.problems] == ["/bad"]


def test_invalid_settings_are_told_where_the_configuration_is_made(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "configs.py": "from flashmesh import *\n\ng = LiveServerless(name='x', workersMin=3)",
            "a.py": "from flashmesh import remote\nfrom configs import g\n@remote(g)\ndef f(): ...",
            "b.py": "from flashmesh import *\n@remote(LiveServerless(name='x', "
            "networkVolume=NetworkVolume('v', size=1)))\ndef f(): ...",
            "c.py": "from flashmesh import *\n@remote(LiveServerless(nam='x'))\ndef f(): ...",
        },
    )
    by_file = {problem.file: problem for problem in project.problems}
    assert "configs.py:3" in by_file["a.py"].reason and "workersMin is larger" in by_file["a.py"].reason
    assert by_file["b.py"].line == 2 and "size must be at least 10" in by_file["b.py"].reason
    assert "nam" in by_file["c.py"].reason
    assert {problem.prefix for problem in project.problems} == {"/a", "/b", "/c"}


def test_a_file_that_needs_a_broken_file_says_which(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "configs.py": "from flashmesh import LiveServerless\ng = LiveServerless(\n",
            "a.py": "from flashmesh import remote\nfrom configs import g\n@remote(g)\ndef f(): ...",
        },
    )
    (problem,) = project.problems
    assert problem.file == "a.py" and problem.prefix == "/a" and "configs.py:2" in problem.reason


@pytest.mark.parametrize(
    ("decorator", "advice"),
    [
        ("@remote", "parentheses"),
        ("@remote()", "needs a resource"),
        ("@remote('gpu')", "not a resource"),
        ("@Endpoint", "parentheses"),
        ("@LiveServerless(name='x')", "write @remote("),
        ("@remote(CpuLiveLoadBalancer(name='x'))", "a method and a path"),
    ],
)
def test_a_decorator_used_wrongly_is_told_with_the_right_way(tmp_path: Path, decorator: str, advice: str) -> None:
    project = scanned(tmp_path, {"w.py": f"from flashmesh import *\n{decorator}\ndef f(): ...\n"})
    (problem,) = project.problems
    assert advice in problem.reason
    assert (problem.line, problem.prefix) == (2, "/w")


def test_an_endpoint_cannot_be_both_queue_and_routes(tmp_path: Path) -> None:
    source = "from flashmesh import Endpoint\ne = Endpoint(name='e')\n@e\ndef f(): ...\n@e.get('/x')\ndef g(): ...\n"
    (reason,) = errors(scanned(tmp_path, {"w.py": source}))
    assert "make two of it" in reason


def test_one_function_may_answer_several_routes(tmp_path: Path) -> None:
    source = "from flashmesh import Endpoint\ne = Endpoint(name='e')\n@e.get('/x')\n@e.post('/y')\ndef f(): ...\n"
    functions = only(scanned(tmp_path, {"w.py": source})).functions
    assert [(function.http_method, function.http_path) for function in functions] == [("GET", "/x"), ("POST", "/y")]


def test_an_import_cycle_ends(tmp_path: Path) -> None:
    project = scanned(
        tmp_path,
        {
            "a.py": "from flashmesh import remote\nfrom b import g\n@remote(g)\ndef f(): ...\n",
            "b.py": "from a import g\nfrom a import *",
        },
    )
    assert project.resources == ()


def test_a_file_changed_within_the_same_clock_tick_is_read_again_when_named(tmp_path: Path) -> None:
    first = scanned(tmp_path, {"w.py": WORKER})
    stat = (tmp_path / "w.py").stat()
    write(tmp_path, {"w.py": WORKER.replace("process", "replace")})
    os.utime(tmp_path / "w.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = scan(tmp_path, vocabulary=VOCABULARY, previous=first)
    assert ids(again) == ["w.process"]
    told = scan(tmp_path, vocabulary=VOCABULARY, previous=first, changed={tmp_path / "w.py"})
    assert ids(told) == ["w.replace"]


def test_a_rescan_sees_new_changed_and_removed_files(tmp_path: Path) -> None:
    project = scanned(tmp_path, {"a.py": WORKER, "b.py": WORKER})
    (tmp_path / "a.py").unlink()
    write(tmp_path, {"b.py": WORKER.replace("process", "changed_name"), "c.py": WORKER})
    assert ids(scan(tmp_path, vocabulary=VOCABULARY, previous=project)) == ["b.changed_name", "c.process"]


def test_three_hundred_files_are_scanned_in_a_fraction_of_a_second(tmp_path: Path) -> None:
    """Not a timed test: the bound is ten times what it takes, so that only a wrong algorithm fails."""
    write(tmp_path, {f"d{at % 20}/w{at}.py": WORKER for at in range(300)})
    started = time.process_time()  # not what others on this machine take
    project = scan(tmp_path, vocabulary=VOCABULARY)
    assert len(project.resources) == 300
    assert time.process_time() - started < 3
