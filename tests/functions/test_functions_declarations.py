"""Finding what a module declares, and where it stands."""

import functools
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

from flashmesh.functions.declarations import declaration_of, declarations_in
from flashmesh.functions.remote import remote
from flashmesh.functions.resources import LiveServerless

SOURCE = """
    import functools
    from flashmesh import CpuLiveLoadBalancer, Endpoint, LiveServerless, remote

    queue = LiveServerless(name="q")
    api = Endpoint(name="api")

    def traced(function):
        @functools.wraps(function)
        def wrapper(*args):
            return function(*args)
        return wrapper

    @remote(
        queue,
        dependencies=["numpy"],
    )
    async def first(x):
        yield x

    @remote(queue)
    class Worker:
        def run(self): ...

    @api.get("/a")
    def route(): ...

    @api.post("/a")
    def route(): ...

    @remote(queue)
    @traced
    def second(): ...

    @traced
    @remote(queue)
    def third(): ...

    alias = first
    """


@pytest.fixture
def module(tmp_path: Path) -> Any:
    file = tmp_path / "my-worker.py"
    file.write_text(textwrap.dedent(SOURCE))
    module = types.ModuleType("my-worker")
    module.__file__ = str(file)
    sys.modules["my-worker"] = module
    try:
        exec(compile(file.read_text(), str(file), "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules["my-worker"]


def test_every_declaration_of_a_module_is_found_once_in_the_order_of_the_file(module: Any) -> None:
    """Two routes of one name too, and a function under a decorator of the user's own."""
    found = declarations_in(vars(module))
    assert [(d.qualname, d.kind, d.decorated_by, d.method) for d in found] == [
        ("first", "function", "remote", None),
        ("Worker", "class", "remote", None),
        ("route", "function", "route", "GET"),
        ("route", "function", "route", "POST"),
        ("second", "function", "remote", None),
        ("third", "function", "remote", None),
    ]


def test_a_declaration_knows_its_file_and_line(module: Any) -> None:
    """The line of the `def`, not of the decorator above it."""
    lines = Path(module.__file__).read_text().splitlines()
    for declaration in declarations_in(vars(module)):
        assert declaration.file == module.__file__
        text = lines[declaration.line - 1]
        assert declaration.qualname in text
        assert text.startswith(("def", "async def", "class"))


def test_a_declaration_knows_what_kind_of_function_it_is(module: Any) -> None:
    first = module.first.__flash__
    assert (first.is_async, first.is_generator, first.dependencies) == (True, True, ("numpy",))
    assert first.module == "my-worker"
    assert first.id == "my-worker.first"


def test_names_imported_from_elsewhere_are_not_the_module_s(module: Any) -> None:
    assert declarations_in({"__name__": "another", "first": module.first, "api": module.api}) == []


def test_a_function_without_a_readable_source_still_has_a_declaration() -> None:
    namespace: dict[str, Any] = {"__name__": "typed_in", "remote": remote, "r": LiveServerless(name="x")}
    exec(compile("@remote(r)\ndef f(): ...\n@remote(r)\nclass C: ...\n", "<typed in>", "exec"), namespace)
    function, cls = declarations_in(namespace) if len(declarations_in(namespace)) == 2 else (None, None)
    assert {d.qualname for d in declarations_in(namespace)} == {"f", "C"}
    assert function is not None
    assert cls is not None
    assert namespace["f"].__flash__.file == "<typed in>"
    assert namespace["f"].__flash__.line == 1
    assert namespace["C"].__flash__.line == 0


def test_anything_else_declares_nothing() -> None:
    assert declaration_of(print) is None
    assert declaration_of(3) is None

    class Odd:
        __flash__ = "something else"

    assert declaration_of(Odd) is None


def test_a_partial_s_kind_is_its_function_s() -> None:
    async def asynchronous(a: int, b: int) -> int:
        return a + b

    partial = functools.partial(asynchronous, 1)
    functools.update_wrapper(partial, asynchronous)
    assert remote(LiveServerless(name="x"))(partial).__flash__.is_async
