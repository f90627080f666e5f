"""The generated `.flash/server.py` says every route in one readable line and is valid Python whatever names occur."""

import ast
from pathlib import Path

from dev_fixtures import function, queue_routes, resource, sample_project
from hypothesis import given
from hypothesis import strategies as st

from flashmesh.dev.session.generate import server_text
from flashmesh.project.model import Problem, Project


class Recorder:
    """Stands in for the dev server: remembers what the generated text asks for."""

    def __init__(self, *_: object) -> None:
        self.calls: list[tuple[str, tuple[object, ...], dict[str, object]]] = []
        self.app = self

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


def run(text: str) -> Recorder:
    namespace: dict[str, object] = {"__file__": "/project/.flash/server.py"}
    exec(
        text.replace("from flashmesh.dev.server.app import DevServer", ""),
        {**namespace, "DevServer": Recorder},
        namespace,
    )
    return namespace["app"]  # type: ignore[return-value]


def test_every_queue_callable_has_one_line_and_every_http_route_its_own() -> None:
    calls = run(server_text(*sample_project())).calls
    assert [(kind, *args) for kind, args, _ in calls] == [
        ("queue", "/counter", "counter.Counter.inc"),
        ("queue", "/gpu_worker", "gpu_worker.process"),
        ("queue", "/longruns/stage1", "longruns.stage1.stage1"),
        ("route", "POST", "/preprocess/first_pass/compute", "preprocess.first_pass.first_pass"),
    ]


def test_a_line_tells_where_the_function_stands_and_what_it_takes() -> None:
    calls = {args[-1]: keywords for _, args, keywords in run(server_text(*sample_project())).calls}
    assert calls["gpu_worker.process"] == {
        "resource": "gpu_worker",
        "file": "gpu_worker.py",
        "line": 7,
        "doc": "Says it.",
        "parameters": [{"name": "data", "annotation": "dict"}],
    }
    assert calls["counter.Counter.inc"]["line"] == 12
    assert calls["counter.Counter.inc"]["parameters"] == [{"name": "by", "default": "1"}]
    assert calls["preprocess.first_pass.first_pass"]["dependencies"] == ["pillow"]


def test_a_broken_file_is_served_as_unavailable_and_a_warning_is_not() -> None:
    broken = Problem(file="sub/broken.py", line=3, reason="invalid syntax", prefix="/sub/broken")
    warned = Problem(file="odd.py", line=None, reason="looks odd", severity="warning")
    calls = run(server_text(*sample_project(broken, warned))).calls
    assert [call for call in calls if call[0] == "unavailable"] == [
        ("unavailable", ("/sub/broken",), {"file": "sub/broken.py", "line": 3, "reason": "invalid syntax"})
    ]


def test_the_same_project_gives_the_same_text() -> None:
    assert server_text(*sample_project()) == server_text(*sample_project())


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.text(st.characters(exclude_categories=["Cs"])))
def test_any_file_name_and_any_documentation_give_valid_python(file: str, doc: str) -> None:
    spec = function("worker", "f", file=file, doc=doc)
    project = Project(root=Path("/p"), name="p", resources=(resource("worker", spec),))
    text = server_text(project, queue_routes("/" + file, spec, "worker"))
    ast.parse(text.encode())
    assert run(text).calls[0][1] == ("/" + file, "worker.f")
