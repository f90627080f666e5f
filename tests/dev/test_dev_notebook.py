"""A function without a file becomes a module's text that does the same in another process."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PREAMBLE = """
import json as j, sys
from dataclasses import dataclass
from math import sqrt
LIMIT = 3
NAMES = ["a", {"b": (1, None)}]
"""


def collected(program: str, how: str = "command") -> str:
    """Run `program`, which defines `f`, as `python -c` or from stdin, and return the text collected for `f`."""
    full = (
        PREAMBLE + textwrap.dedent(program) + "\nfrom flashmesh.dev.script.notebook import collect\nprint(collect(f))\n"
    )
    command = [sys.executable, "-c", full] if how == "command" else [sys.executable, "-"]
    done = subprocess.run(command, input=full, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(text: str, call: str, tmp_path: Path) -> str:
    file = tmp_path / "module.py"
    file.write_text(text)
    program = f"from module import *; import module; print(module.{call})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr + text
    return done.stdout.strip()


def test_what_a_function_uses_comes_along_and_nothing_else(tmp_path: Path) -> None:
    text = collected(
        """
        secret = "unused"
        def helper(n): return sqrt(n) + LIMIT
        @dataclass
        class Base:
            x: int = LIMIT
        class Point(Base):
            def norm(self): return helper(self.x)
        def f(n: "Point" = None) -> str:
            return j.dumps([Point(16).norm(), NAMES, n])
        """
    )
    assert "secret" not in text
    assert "import json as j" in text
    assert "from math import sqrt" in text
    assert run(text, "f.local()", tmp_path) == '[7.0, ["a", {"b": [1, null]}], null]'


def test_our_decorators_are_dropped_and_the_users_are_kept(tmp_path: Path) -> None:
    text = collected(
        """
        import functools
        from flashmesh.dev.script import notebook
        def twice(g):
            @functools.wraps(g)
            def inner(*args): return g(*args) * 2
            return inner
        class Ours:
            __module__ = "flashmesh.functions"
            def get(self, path): return lambda g: g
        api = Ours()
        def undecorated(): pass
        @api.get("/x")
        @functools.cache
        def g(x): return x + 1
        def f(x): return g(x)
        """
    )
    assert "@functools.cache" in text or "g = _pickle" in text
    assert "@api" not in text
    assert run(text, "f.local(1)", tmp_path) == "2"


def test_async_functions_and_recursion(tmp_path: Path) -> None:
    text = collected(
        """
        async def f(n): return 1 if n == 0 else n * await f.local(n - 1)
        """
    )
    assert run("import asyncio\n" + text, "asyncio.run(module.f.local(5))", tmp_path) == "120"


@pytest.mark.parametrize("how", ["command", "stdin"])
def test_a_function_without_kept_source_travels_all_the_same(how: str, tmp_path: Path) -> None:
    text = collected("def f(x): return x * LIMIT\n", how)
    assert run(text, "f.local(2)", tmp_path) == "6"


def test_a_closure_and_a_value_that_is_no_constant_are_carried(tmp_path: Path) -> None:
    text = collected(
        """
        import datetime
        WHEN = datetime.date(2026, 1, 2)
        def make(k):
            def f(x): return x * k, WHEN.isoformat()
            return f
        f = make(4)
        """
    )
    assert run(text, "f.local(2)", tmp_path) == "(8, '2026-01-02')"


def test_what_cannot_be_sent_is_named_with_the_way_out() -> None:
    program = """
        import threading
        LOCK = threading.Lock()
        def f(): return LOCK
    """
    with pytest.raises(AssertionError, match=r"`LOCK` that `f` uses is a _thread\.lock and cannot be sent to a worker"):
        collected(program)
