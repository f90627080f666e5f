"""Settings computed from the source are what Python itself would compute."""

import ast
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from project_fixtures import VOCABULARY, GpuGroup

from flashmesh.project import literals
from flashmesh.project.evaluate import Evaluator
from flashmesh.project.modules import ModuleFinder
from flashmesh.project.syntax import ModuleSyntax, parse
from flashmesh.project.values import Known, Unknown


def evaluated(source: str) -> Any:
    """The value of the name `x` in a file of this source; `Unknown()` when it cannot be told."""
    syntax = parse(source.encode())
    assert isinstance(syntax, ModuleSyntax)
    evaluator = Evaluator(
        finder=ModuleFinder(Path("/nowhere"), ["m.py"]),
        syntax_of=lambda _: syntax,
        vocabulary=VOCABULARY,
        environ={"HOME": "/home"},
    )
    value = evaluator.lookup("m.py", "x")
    return value.value if isinstance(value, Known) else value


constants = st.none() | st.booleans() | st.integers(-999, 999) | st.text(max_size=8) | st.floats(-9, 9)
plain = st.recursive(
    constants,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(plain)
def test_every_literal_evaluates_to_itself(value: Any) -> None:
    assert evaluated(f"x = {value!r}") == value


@settings(deadline=None)
@given(
    st.sampled_from(["+", "-", "*", "/", "//", "|", "&", "==", "<", "in", "and", "or", "%", "**"]),
    st.integers(-9, 9) | st.lists(st.integers(0, 3), max_size=3) | st.text("ab", max_size=3) | st.none(),
    st.integers(-9, 9) | st.lists(st.integers(0, 3), max_size=3) | st.text("ab", max_size=3) | st.none(),
)
def test_an_operation_is_computed_as_python_does_or_not_at_all(operation: str, left: Any, right: Any) -> None:
    source = f"{left!r} {operation} {right!r}"
    try:
        expected = eval(compile(ast.parse(source, mode="eval"), "x", "eval"))
    except (ArithmeticError, TypeError, ValueError):
        expected = Unknown()
    found = evaluated(f"x = {source}")
    assume(operation not in ("%", "**"))
    assert found == expected


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("A = 'a'\nx = f'{A}-{1!r}'", "a-1"),
        ("x = [*(1, 2), 3]", [1, 2, 3]),
        ("x = {**{'a': 1}, 'b': 2}", {"a": 1, "b": 2}),
        ("x = dict(a=1)", {"a": 1}),
        ("x = -(-3)", 3),
        ("a, b = 1, 2\nx = a + b", 3),
        ("x = 1\nx += 2", 3),
        ("x: int = 5", 5),
        ("D = {'k': [1, 2]}\nx = D['k'][1]", 2),
        ("x = 'A,B'.split(',')", ["A", "B"]),
        ("import os\nx = os.environ['HOME'] + os.getenv('NO', '!')", "/home!"),
        ("import os\nx = os.environ.get('NO') or 'other'", "other"),
        ("x = 1 if 2 > 1 else nothing()", 1),
        ("from flashmesh import GpuGroup\nx = [GpuGroup.ANY]", [GpuGroup.ANY]),
        ("from flashmesh import GpuGroup\nx = GpuGroup('ADA_24')", GpuGroup.ADA_24),
        ("from flashmesh import GpuGroup\nx = [GpuGroup.ANY.value]", ["any"]),
        ("from flashmesh import GpuGroup\nx = GpuGroup.all()", list(GpuGroup)),
        ("try:\n    x = 1\nexcept ImportError:\n    x = 2", 1),
        ("with y:\n    x = 1", 1),
        ("import sys\nx = 'mac' if sys.platform == 'amiga' else 'other'", "other"),
    ],
)
def test_common_ways_to_write_a_setting_are_understood(source: str, value: Any) -> None:
    assert evaluated(source) == value


@pytest.mark.parametrize(
    "source",
    [
        "x = input()",
        "x = 'a' * 10**9",
        "x = [0] * 99999999",
        "x = 10 ** 10 ** 10",
        "x = 1 << 99999",
        "x = f'{1:>999999999}'",
        "x = x",
        "y = x\nx = y",
        "x = [n for n in range(3)]",
        "x = open('/etc/passwd').read()",
        "import os\nx = os.environ['ABSENT']",
        "x = lambda: 1",
        "x = {[]: 1}",
        "x = ''.__class__",
        "x = ().__class__.__bases__[0].__subclasses__()",
        "x = 'a'.format(1)",
        "x = 1 / 0",
        "for x in (1, 2): pass",
    ],
)
def test_what_would_run_code_or_grow_without_bound_is_left_to_the_import(source: str) -> None:
    assert not isinstance(evaluated(source), (int, str, list, dict, bytes))


def test_a_long_chain_of_products_stays_within_bounds() -> None:
    value: Any = 3
    with pytest.raises(literals.NotPlain):
        for _ in range(99):
            value = literals.binary(ast.Mult(), value, value)
