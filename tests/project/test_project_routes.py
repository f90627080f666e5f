"""The URLs of a project."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project_fixtures import WORKER, scanned

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, Project, ResourceSpec, Route
from flashmesh.project.routes import build_routes, nearest, route_problems


def function(file: str, name: str, line: int = 1, *, methods: tuple[str, ...] = (), **http: str) -> FunctionSpec:
    module = file.removesuffix(".py").replace("/", ".")
    return FunctionSpec(
        id=FunctionId(f"{module}.{name}"),
        name=name,
        module=module,
        file=file,
        line=line,
        qualname=name,
        kind="class" if methods else "function",
        methods=tuple(MethodSpec(name=method, line=line) for method in methods),
        http_method=http.get("method"),
        http_path=http.get("path"),
    )


def project(*functions: FunctionSpec, balanced: bool = False) -> Project:
    config = ResourceConfig(resource_type="LiveServerless", name="x", is_load_balanced=balanced)
    resource = ResourceSpec(name=EndpointName("x"), file="x.py", variable="x", config=config, functions=functions)
    return Project(root=Path("/p"), name="p", resources=(resource,))


def posted(routes: tuple[Route, ...]) -> list[str]:
    return [route.path for route in routes if route.verb == "run_sync"]


def test_one_function_in_a_file_answers_under_the_files_prefix() -> None:
    routes = build_routes(project(function("longruns/stage-1.py", "process")))
    assert {(route.method, route.path, route.verb) for route in routes} == {
        ("POST", "/longruns/stage-1/run", "run"),
        ("POST", "/longruns/stage-1/run_sync", "run_sync"),
        ("POST", "/longruns/stage-1/runsync", "runsync"),
        ("GET", "/longruns/stage-1/status/{id}", "status"),
        ("POST", "/longruns/stage-1/cancel/{id}", "cancel"),
        ("GET", "/longruns/stage-1/stream/{id}", "stream"),
    }
    assert {route.kind for route in routes} == {"QB"}


def test_several_functions_in_a_file_each_get_their_own_prefix() -> None:
    routes = build_routes(project(function("a.py", "f", 1), function("a.py", "g", 5)))
    assert posted(routes) == ["/a/f/run_sync", "/a/g/run_sync"]


def test_the_public_methods_of_a_class_are_callables() -> None:
    routes = build_routes(project(function("counter.py", "Counter", methods=("inc", "get"))))
    assert [(route.path, route.callable) for route in routes if route.verb == "run"] == [
        ("/counter/inc/run", "inc"),
        ("/counter/get/run", "get"),
    ]
    alone = build_routes(project(function("counter.py", "Counter", methods=("inc",))))
    assert posted(alone) == ["/counter/run_sync"]


def test_methods_of_one_name_in_two_classes_are_told_apart_by_their_class() -> None:
    routes = build_routes(
        project(
            function("a.py", "A", 1, methods=("go",)),
            function("a.py", "B", 2, methods=("go",)),
            function("a.py", "f", 3),
        )
    )
    assert posted(routes) == ["/a/A/go/run_sync", "/a/B/go/run_sync", "/a/f/run_sync"]


def test_load_balanced_functions_answer_under_prefix_and_declared_path() -> None:
    (route,) = build_routes(project(function("api/routes.py", "compute", method="POST", path="/c/{id}"), balanced=True))
    assert (route.method, route.path, route.kind, route.verb) == ("POST", "/api/routes/c/{id}", "LB", "lb")


def test_queue_and_http_functions_of_one_file_do_not_count_each_other(tmp_path: Path) -> None:
    source = (
        WORKER
        + "\n    from flashmesh import Endpoint\n    e = Endpoint(name='e')\n    @e.get('/x')\n    def x(): ...\n"
    )
    routes = build_routes(scanned(tmp_path, {"w.py": source}))
    assert posted(routes) == ["/w/run_sync"]
    assert [route.path for route in routes if route.kind == "LB"] == ["/w/x"]


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [("GET", "/ping", "answers itself"), ("GET", "x", "must start with a slash"), ("POST", "/b/{other}", "belongs to")],
)
def test_a_route_that_cannot_be_served_is_told_and_left_out(method: str, path: str, reason: str) -> None:
    found = project(
        function("a.py", "f", 1, method="POST", path="/b/{id}"),
        function("a.py", "g", 2, method=method, path=path),
        balanced=True,
    )
    assert [route.function for route in build_routes(found)] == ["a.f"]
    (problem,) = route_problems(found)
    assert reason in problem.reason
    assert (problem.file, problem.line, problem.prefix) == ("a.py", 2, "/a")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/gpu_workr/run_sync", "/gpu_worker/run_sync"),
        ("/gpu_worker", "/gpu_worker/run"),
        ("/zzz", None),
        ("/", None),
        ("", None),
    ],
)
def test_an_unknown_path_is_answered_with_the_nearest(asked: str, meant: str | None) -> None:
    routes = build_routes(project(function("gpu_worker.py", "process")))
    found = nearest(asked, routes)
    assert (found is None) if meant is None else (found is not None and found.startswith(meant[:14]))


names = st.text(st.characters(categories=("L", "N"), include_characters="_-"), min_size=1, max_size=8)
files = st.lists(names, min_size=1, max_size=3).map("/".join).map(lambda path: f"{path}.py")


@settings(deadline=None)
@given(st.dictionaries(files, st.lists(names, min_size=1, max_size=4, unique=True), min_size=1, max_size=6))
def test_every_callable_has_every_verb_and_no_two_share_a_url(layout: dict[str, list[str]]) -> None:
    """Whatever the files and functions are called; where two would share one, the second is told."""
    functions = [function(file, name, line) for file, found in layout.items() for line, name in enumerate(found)]
    routes, problems = build_routes(project(*functions)), route_problems(project(*functions))
    assert len(routes) == len({(route.method, route.path) for route in routes})
    assert len(routes) == 6 * (len(functions) - len(problems))
    for file, found in layout.items():
        prefix = "/" + file.removesuffix(".py")
        expected = {prefix} if len(found) == 1 else {f"{prefix}/{name}" for name in found}
        paths = {r.path.removesuffix("/run_sync") for r in routes if r.file == file and r.verb == "run_sync"}
        assert paths <= expected
        assert len(paths) == len(expected) - sum(problem.file == file for problem in problems)


def test_a_file_and_a_function_that_would_share_a_url_are_told() -> None:
    found = project(function("a.py", "b", 1), function("a.py", "c", 2), function("a/b.py", "f", 3))
    assert posted(build_routes(found)) == ["/a/b/run_sync", "/a/c/run_sync"]
    (problem,) = route_problems(found)
    assert (problem.file, problem.prefix) == ("a/b.py", "/a/b")
    assert "/a/b/run belongs to a.b already" in problem.reason
