"""Queries that the session answers beside the built-in ones: what is served, and how a function is found.

    project         {} -> the project as `describe` gives it
    follow_project  the same, at once and again whenever something changed (follow)
    resolve         {"name": …} -> {"function", "endpoint", "callables"}
    register        a script's functions -> their builds (see `registration.py`)

`describe` is what the dev server shows and decides by:

    {"revision": n, "name": "my_project",
     "resources": {"<resource>": {
        "file": "gpu_worker.py", "kind": "QB" | "LB", "type": "LiveServerless",
        "state": "cold" | "importing" | "ready" | "import_failed" | "not_forkable" | "environment_failed",
        "functions": [{"id", "kind", "is_async", "is_generator", "doc", "parameters", "returns"}],   once imported
        "error": {"file", "line", "reason", "traceback"} | None,
        "missing": ["numpy>=2"]}},                          packages that are declared and not importable here
     "problems": [{"file", "line", "reason", "severity"}]}
"""

import asyncio
from collections.abc import Callable
from typing import Any

from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound
from flashmesh.project.model import Problem, Project

Send = Callable[[dict[str, Any], bool], None]


class ProjectState:
    """What the session knows about the project it serves, and who waits for changes of it."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.revision = 1
        self.infos: dict[str, dict[str, Any]] = {}
        """Per resource what its template said last (frames.Ready.info)."""
        self.missing: dict[str, list[str]] = {}
        self._changed = asyncio.Event()

    def replace(self, project: Project, *, forget: frozenset[str] = frozenset()) -> None:
        """A new scan. What was known of the resources in `forget`, and of those that are gone, is dropped."""
        names = {resource.name for resource in project.resources}
        self.infos = {name: info for name, info in self.infos.items() if name in names and name not in forget}
        self.missing = {name: packages for name, packages in self.missing.items() if name in names}
        self.project = project
        self.touch()

    def learn(self, resource: str, info: dict[str, Any]) -> None:
        """A template has imported its modules, or failed to."""
        self.infos[resource] = info
        self.touch()

    def touch(self) -> None:
        """Something changed: whoever follows is told."""
        self.revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def imported(self, resource: str) -> None:
        """Until a template has told how the import of this resource's modules went, or the resource is gone."""
        while resource not in self.infos and self.project.resource(resource) is not None:
            await self._changed.wait()

    def describe(self) -> dict[str, Any]:
        resources = {}
        for resource in self.project.resources:
            info = self.infos.get(resource.name, {})
            resources[resource.name] = {
                "file": resource.file,
                "kind": "LB" if resource.is_load_balanced else "QB",
                "type": resource.config.resource_type,
                "state": info.get("state", "cold"),
                "functions": info.get("functions", []),
                "error": info.get("error"),
                "missing": self.missing.get(resource.name, []),
            }
        problems = [
            {"file": problem.file, "line": problem.line, "reason": problem.reason, "severity": problem.severity}
            for problem in self.project.problems
        ]
        return {"revision": self.revision, "name": self.project.name, "resources": resources, "problems": problems}

    def callables(self) -> dict[str, str]:
        """Every id that can be called through a worker, and the resource it belongs to."""
        found: dict[str, str] = {}
        for resource in self.project.resources:
            if resource.is_load_balanced:
                continue
            for function in resource.functions:
                if function.kind == "class":
                    found.update({f"{function.id}.{method.name}": resource.name for method in function.methods})
                else:
                    found[function.id] = resource.name
        return found

    async def answer_project(self, arguments: dict[str, Any], send: Send) -> dict[str, Any] | None:
        return self.describe()

    async def answer_follow_project(self, arguments: dict[str, Any], send: Send) -> dict[str, Any] | None:
        while True:
            changed = self._changed
            send(self.describe(), True)
            await changed.wait()

    async def answer_resolve(self, arguments: dict[str, Any], send: Send) -> dict[str, Any] | None:
        name = str(arguments.get("name", ""))
        callables = self.callables()
        matches = resolve(name, callables, self._aliases())
        if len(matches) == 1:
            return {"function": matches[0], "endpoint": callables[matches[0]], "callables": sorted(callables)}
        if matches:
            listed = ", ".join(matches)
            raise AmbiguousFunction(f"`{name}` names several functions: {listed}. Use one of these ids.")
        broken = [problem for problem in self.project.problems if problem.prefix is not None]
        raise FunctionNotFound(_not_found(name, sorted(callables), broken))

    def _aliases(self) -> dict[str, str]:
        """Other names of a resource: the one it was declared with, and its file's path as a URL has it."""
        aliases: dict[str, str] = {}
        for resource in self.project.resources:
            if resource.config.name:
                aliases.setdefault(resource.config.name, resource.name)
            aliases.setdefault(resource.file.removesuffix(".py"), resource.name)
        return aliases


def resolve(name: str, callables: dict[str, str], aliases: dict[str, str]) -> list[str]:
    """The ids `name` may mean, sorted; one = it is that one.

    Tried in this order, the first that gives anything wins: an id; `resource/function`; a resource (its name, declared
    name or path) and so all its functions; the end of an id (`hello`, `Counter.inc`).
    """
    name = name.strip("/")
    if name in callables:
        return [name]
    resource, _, last = name.rpartition("/")
    if resource:
        owner = aliases.get(resource, resource)
        found = sorted(id for id, of in callables.items() if of == owner and id.endswith("." + last))
        if found:
            return found
    owner = aliases.get(name, name)
    found = sorted(id for id, of in callables.items() if of == owner)
    return found or sorted(id for id in callables if id.endswith("." + name))


def _not_found(name: str, known: list[str], broken: list[Problem]) -> str:
    import difflib  # only on the way to an error

    if broken:
        reasons = "; ".join(f"{problem.file}:{problem.line or 0}: {problem.reason}" for problem in broken)
        return f"`{name}` is not served here. It may be in a file that is broken: {reasons}"
    if not known:
        return f"`{name}` is not served here: this project has no function that a worker runs."
    shorts = {id.rsplit(".", 1)[-1]: id for id in known} | {id: id for id in known}
    near = difflib.get_close_matches(name, shorts, n=1, cutoff=0.5)
    if near:
        return f"`{name}` is not served here. Did you mean `{shorts[near[0]]}`?"
    return f"`{name}` is not served here. There are: {', '.join(known[:20])}."
