"""The start-up table and notices: aligned, complete, and ending in what to do."""

from dev_fixtures import function, queue_routes, sample_project

from flashmesh.dev.session.table import missing_lines, problem_lines, start_table, width
from flashmesh.project.model import Problem

EXPECTED = """\
Flash Dev Server  http://localhost:8888

  Local path                            Resource               Type
  ──────────────────────────────────    ───────────────────    ────
  POST  /gpu_worker/run                 gpu_worker             QB
  POST  /gpu_worker/run_sync            gpu_worker             QB
  POST  /longruns/stage1/run            longruns_stage1        QB
  POST  /preprocess/first_pass/compute  preprocess_first_pass  LB
"""


def test_the_table_looks_as_the_product_page_shows_it() -> None:
    _, routes = sample_project()
    wanted = [route for route in routes if route.resource != "counter" and route.path != "/longruns/stage1/run_sync"]
    table = start_table("http://localhost:8888", wanted)
    assert table.startswith(EXPECTED)
    assert table.endswith("  Visit http://localhost:8888/docs for Swagger UI\n")


def test_columns_stay_aligned_with_wide_characters_and_long_methods() -> None:
    _, routes = sample_project()
    wide = queue_routes("/模型/推理", function("模型.推理", "f"), "模型_推理")
    lines = [
        line
        for line in start_table("http://localhost:8888", [*routes, *wide]).splitlines()
        if line.endswith(("QB", "LB"))
    ]
    assert len({width(line) for line in lines}) == 1


def test_problems_name_file_line_and_reason_errors_first() -> None:
    problems = [
        Problem(file="b.py", line=None, reason="shadows queue", severity="warning"),
        Problem(file="a.py", line=3, reason="invalid syntax", prefix="/a"),
    ]
    assert problem_lines(problems) == [
        "error: a.py:3: invalid syntax (its routes answer 503)",
        "warning: b.py: shadows queue",
    ]


def test_missing_packages_are_said_per_function_with_what_happens_about_them() -> None:
    lines = missing_lines({"worker": ["numpy>=2"], "api": ["pillow"], "fine": []}, frozenset({"api"}))
    assert lines[0].startswith("api: pillow not installed; runs in the dev server with what is there")
    assert "`uv pip install pillow`" in lines[0]
    assert lines[1].startswith("worker: numpy>=2 not installed; installed at its first call")
    assert len(lines) == 2
    assert missing_lines({"worker": ["numpy"]}, frozenset(), install=False) == [
        "worker: numpy not installed; runs with what is there (`--no-install`)"
    ]
