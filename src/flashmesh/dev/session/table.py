"""What `flash run` prints when it starts: the routes, and what the user should know about them. Pure text."""

import unicodedata
from collections.abc import Mapping, Sequence

from flashmesh.project.model import Problem, Route

_TITLES = ("Local path", "Resource", "Type")
_HIDDEN = frozenset({"runsync", "status", "cancel", "stream"})
"""Verbs that every queue-based path has besides; the docs page lists them."""

MINIMAL_EXAMPLE = """\
Nothing to serve: no function in {root} is decorated with `@remote(…)` or `@Endpoint(…)`.

The smallest project is one file, say `hello.py`:

    from flashmesh import Endpoint

    @Endpoint(name="hello", cpu="cpu3g-2-8")
    async def hello(name: str = "world") -> dict:
        return {{"message": f"Hello, {{name}}!"}}

Then `flash run` serves POST /hello/run_sync. `flash init` writes a larger one to start from.
"""


def start_table(url: str, routes: Sequence[Route], *, docs: str | None = None) -> str:
    """The start-up table. Columns are as wide as their widest cell."""
    shown = [route for route in routes if route.verb not in _HIDDEN]
    verb_width = max((len(route.method) for route in shown), default=4)
    rows = [(f"{route.method:<{verb_width}}  {route.path}", route.resource, route.kind) for route in shown]
    widths = [max(width(row[column]) for row in [_TITLES, *rows]) for column in range(2)]
    lines = [f"Flash Dev Server  {url}", "", "  " + _line(_TITLES, widths)]
    rules = ["─" * max(cell - 2, 4) for cell in widths]
    lines.append("  " + _line((*rules, "────"), widths))
    lines += ["  " + _line(row, widths) for row in rows]
    lines.append("")
    lines.append(f"  Visit {docs or url + '/docs'} for Swagger UI")
    return "\n".join(lines) + "\n"


def problem_lines(problems: Sequence[Problem]) -> list[str]:
    """`file:line: reason`, one line per problem, errors first."""
    ordered = sorted(problems, key=lambda problem: (problem.severity != "error", problem.file, problem.line or 0))
    return [problem_line(problem) for problem in ordered]


def problem_line(problem: Problem) -> str:
    place = problem.file if problem.line is None else f"{problem.file}:{problem.line}"
    consequence = " (its routes answer 503)" if problem.prefix is not None else ""
    return f"{problem.severity}: {place}: {problem.reason}{consequence}"


def missing_lines(
    missing: Mapping[str, Sequence[str]], load_balanced: frozenset[str], *, install: bool = True
) -> list[str]:
    """Which endpoints declare packages that cannot be imported here, and what happens about it."""
    lines = []
    for resource, packages in sorted(missing.items()):
        if not packages:
            continue
        listed = ", ".join(packages)
        if resource in load_balanced:
            advice = f"runs in the dev server with what is there; `uv pip install {' '.join(packages)}` adds them"
        elif not install:
            advice = "runs with what is there (`--no-install`)"
        else:
            advice = "installed at its first call (`--prepare` does it now, `--no-install` never)"
        lines.append(f"{resource}: {listed} not installed; {advice}")
    return lines


def width(text: str) -> int:
    """Columns a terminal gives to `text`."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell + " " * (columns - width(cell)) for cell, columns in zip(cells[:-1], widths, strict=True)]
    return "  ".join([*padded, cells[-1]]).rstrip()
