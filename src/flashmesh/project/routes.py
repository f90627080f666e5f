"""The URLs a project answers: the folder structure is the namespace. Pure.

QB: one callable in a file answers under the file's prefix, several each under `{prefix}/{name}`; public methods of a
class are callables. LB: the declared path behind the file's prefix.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

import msgspec

from flashmesh.project.model import FunctionSpec, Problem, Project, ResourceSpec, Route, Verb
from flashmesh.project.naming import prefix_of

RESERVED_PATHS = frozenset({"/execute", "/ping"})
"""Paths an endpoint answers itself, so no route of the user's may have them."""
_QUEUE_VERBS: tuple[tuple[str, Verb, str], ...] = (
    ("POST", "run", "/run"),
    ("POST", "run_sync", "/run_sync"),
    ("POST", "runsync", "/runsync"),
    ("GET", "status", "/status/{id}"),
    ("POST", "cancel", "/cancel/{id}"),
    ("GET", "stream", "/stream/{id}"),
)
_Taken = dict[tuple[str, str], Route]
"""The routes there are so far, by method and shape of the path."""
_PATH_PARAMETER = re.compile(r"\{[^{}]*\}")


class Callable(msgspec.Struct, frozen=True):
    """One thing a QB endpoint can be asked to run: a function, or a class's public method."""

    function: FunctionSpec
    resource: ResourceSpec
    method: str = ""

    @property
    def name(self) -> str:
        return self.method or self.function.name


def build_routes(project: Project) -> tuple[Route, ...]:
    """Every route of the project, by file and line. Routes that `route_problems` complains of are left out."""
    return _routes(project)[0]


def route_problems(project: Project) -> tuple[Problem, ...]:
    """Routes that cannot be served: a declared path that is reserved or malformed, a URL that is taken."""
    return _routes(project)[1]


def queue_prefix(callable_: Callable, *, in_file: int) -> str:
    """The prefix a callable's verbs stand under, when its file has `in_file` callables."""
    prefix = prefix_of(callable_.function.file)
    return prefix if in_file == 1 else f"{prefix}/{callable_.name}"


def nearest(path: str, routes: Iterable[Route]) -> str | None:
    """The path of the route most like `path`, or None when none is alike; for a 404's hint."""
    candidates = {route.path for route in routes}
    found = difflib.get_close_matches(path, sorted(candidates), n=1, cutoff=0.6)
    if found:
        return found[0]
    tail = path.rstrip("/").rpartition("/")[2]
    below = sorted(
        candidate for candidate in candidates if path.strip("/") and candidate.startswith(path.rstrip("/") + "/")
    )
    if below:
        return below[0]
    same_end = sorted(candidate for candidate in candidates if tail and candidate.rpartition("/")[2] == tail)
    return same_end[0] if len(same_end) == 1 else None


def declared_route_problems(project: Project) -> list[Problem]:
    """What is wrong with HTTP routes as their endpoints serve them: each resource by itself, without file prefixes."""
    problems: list[Problem] = []
    for resource in project.resources:
        taken: dict[tuple[str, str], FunctionSpec] = {}
        for function in resource.functions if resource.is_load_balanced else ():
            method, path = function.http_method or "", function.http_path or ""
            reason = _unusable(path)
            first = taken.setdefault((method, _shape(path)), function)
            if reason is None and first is not function:
                reason = f"{method} {path} belongs to {first.id} of the same endpoint: choose another path or method"
            if reason is not None:
                problems.append(_refused(function, reason))
    return problems


def _unusable(path: str) -> str | None:
    """Why no endpoint can have this route."""
    if not path.startswith("/"):
        return f'its path {path!r} must start with a slash: write "/{path}"'
    return f"its path {path} is one every endpoint answers itself: choose another" if path in RESERVED_PATHS else None


def _routes(project: Project) -> tuple[tuple[Route, ...], tuple[Problem, ...]]:
    routes: list[Route] = []
    problems: list[Problem] = []
    by_file: dict[str, list[tuple[ResourceSpec, FunctionSpec]]] = {}
    for resource in project.resources:
        for function in resource.functions:
            by_file.setdefault(function.file, []).append((resource, function))
    taken: _Taken = {}
    for file in sorted(by_file):
        members = sorted(by_file[file], key=lambda member: member[1].line)
        outcomes = [_queue_routes(found, prefix, taken) for found, prefix in _placed(members)]
        outcomes += [
            _balanced_route(resource, function, taken) for resource, function in members if resource.is_load_balanced
        ]
        for outcome in outcomes:
            if isinstance(outcome, Problem):
                problems.append(outcome)
            else:
                routes += outcome
    return tuple(routes), tuple(problems)


def _placed(members: Sequence[tuple[ResourceSpec, FunctionSpec]]) -> list[tuple[Callable, str]]:
    """The QB callables of one file, each with the prefix its verbs stand under."""
    callables = [
        found
        for resource, function in members
        if not resource.is_load_balanced
        for found in _callables(resource, function)
    ]
    names = [found.name for found in callables]
    placed: list[tuple[Callable, str]] = []
    for found in callables:
        prefix = queue_prefix(found, in_file=len(callables))
        if names.count(found.name) > 1 and found.method:
            prefix = f"{prefix_of(found.function.file)}/{found.function.name}/{found.method}"
        placed.append((found, prefix))
    return placed


def _queue_routes(found: Callable, prefix: str, taken: _Taken) -> list[Route] | Problem:
    """The six routes of one callable, or the problem that another's stand there (`a.py`: `b`, and `a/b.py`)."""
    routes = [
        Route(
            method=method,
            path=prefix + suffix,
            function=found.function.id,
            resource=found.resource.name,
            file=found.function.file,
            kind="QB",
            callable=found.method,
            verb=verb,
        )
        for method, verb, suffix in _QUEUE_VERBS
    ]
    for route in routes:
        first = taken.get((route.method, _shape(route.path)))
        if first is not None:
            return _refused(
                found.function, f"{route.path} belongs to {first.function} already: rename the file or the function"
            )
    taken.update({(route.method, _shape(route.path)): route for route in routes})
    return routes


def _callables(resource: ResourceSpec, function: FunctionSpec) -> list[Callable]:
    if function.kind == "class":
        return [Callable(function, resource, method.name) for method in function.methods]
    return [Callable(function, resource)]


def _balanced_route(resource: ResourceSpec, function: FunctionSpec, taken: _Taken) -> list[Route] | Problem:
    method, path = function.http_method or "", function.http_path or ""
    reason = _unusable(path)
    if reason is not None:
        return _refused(function, reason)
    route = Route(
        method=method,
        path=prefix_of(function.file) + path,
        function=function.id,
        resource=resource.name,
        file=function.file,
        kind="LB",
    )
    first = taken.setdefault((method, _shape(route.path)), route)
    if first is not route:
        return _refused(
            function, f"{method} {route.path} belongs to {first.function} already: choose another path or method"
        )
    return [route]


def _shape(path: str) -> str:
    """A path with its parameters made alike: `/a/{x}` and `/a/{y}` are one route."""
    return _PATH_PARAMETER.sub("{}", path)


def _refused(function: FunctionSpec, reason: str) -> Problem:
    return Problem(
        file=function.file, line=function.line, reason=f"{function.name}: {reason}", prefix=prefix_of(function.file)
    )
