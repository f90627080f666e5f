"""A user's project as data: its resources and the functions they serve. No I/O."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flashmesh.functions.config import ResourceConfig
from flashmesh.kit.ids import EndpointName, FunctionId

Verb = Literal["run", "run_sync", "runsync", "status", "cancel", "stream", "lb"]
"""What a route does: one of the queue's verbs, or a load-balanced function's own path."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FunctionSpec:
    """One decorated function or class, as far as syntax (or, later, its import) tells."""

    id: FunctionId
    """`module.qualname`; for a class the class itself."""
    name: str
    module: str
    """The dotted path as written: `my-worker`, `01_start.cpu`."""
    file: str
    """Relative to the project root, with forward slashes."""
    line: int
    qualname: str
    kind: Literal["function", "class"] = "function"
    is_async: bool = False
    is_generator: bool = False
    methods: tuple["MethodSpec", ...] = ()
    """Public methods, for a class."""
    http_method: str | None = None
    http_path: str | None = None
    decorated_by: Literal["remote", "endpoint", "route"] = "remote"
    """`route` = `@api.get(…)`: stays the plain function."""
    accelerate_downloads: bool = True
    local: bool = False
    """`local=True`: never leaves the caller's process."""
    dependencies: tuple[str, ...] = ()
    system_dependencies: tuple[str, ...] = ()
    doc: str | None = None
    parameters: tuple["ParameterSpec", ...] = ()
    """Of the function, or of the class's constructor; without `self`."""
    overrides: tuple[tuple[str, Any], ...] = ()
    """Settings of this function that win over its resource's, under ResourceConfig's names."""

    def settings(self, config: ResourceConfig) -> ResourceConfig:
        """The configuration of its resource with its own settings in it."""
        return dataclasses.replace(config, **dict(self.overrides)) if self.overrides else config

    @property
    def callables(self) -> tuple[str, ...]:
        """The ids it is called by: its own, or one per public method (`module.Class.method`)."""
        if self.kind == "class":
            return tuple(f"{self.id}.{method.name}" for method in self.methods)
        return (self.id,)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MethodSpec:
    """One public method of a class worker."""

    name: str
    line: int
    is_async: bool = False
    is_generator: bool = False
    doc: str | None = None
    parameters: tuple["ParameterSpec", ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ParameterSpec:
    """One parameter, from syntax. `annotation` and `default` are source text; None when absent."""

    name: str
    annotation: str | None = None
    default: str | None = None
    kind: Literal["positional", "keyword", "var_positional", "var_keyword"] = "positional"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResourceSpec:
    """One configuration object and every function that uses it: what becomes one endpoint."""

    name: EndpointName
    file: str
    """The file that creates the configuration object (relative); its name is where the resource's comes from."""
    variable: str | None
    config: ResourceConfig
    functions: tuple[FunctionSpec, ...]
    unresolved: tuple[str, ...] = ()
    """Settings whose values syntax could not tell; the import corrects them."""
    line: int | None = None
    """Where `file` creates the configuration object."""

    @property
    def is_load_balanced(self) -> bool:
        return self.config.is_load_balanced


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a file. `severity` error: its routes answer 503 with `reason`."""

    file: str
    line: int | None
    reason: str
    severity: Literal["error", "warning"] = "error"
    traceback: str | None = None
    prefix: str | None = None
    """URL prefix of the file whose functions cannot be served because of it; None when nothing is lost."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One URL the dev server answers."""

    method: str
    path: str
    function: FunctionId
    resource: EndpointName
    file: str
    kind: Literal["QB", "LB"]
    callable: str = ""
    """The class's method this route calls, else the empty string."""
    verb: "Verb" = "lb"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What a scan found."""

    root: Path
    name: str
    resources: tuple[ResourceSpec, ...]
    problems: tuple[Problem, ...] = ()
    files: tuple[str, ...] = ()
    """Every Python file the scan read (relative), functions or not."""
    requirements: tuple[str, ...] = ()
    """The project's own requirements (pyproject.toml or requirements.txt)."""
    written: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """What flash.toml says; see `settings.py`. It may hold secrets."""
    needs_import: tuple[str, ...] = ()
    """Files with a decorated function of which syntax cannot even tell the kind of resource; see `inspect.py`."""
    syntax: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """What the scan remembers of each file, so that the next one reads only what changed."""

    @property
    def functions(self) -> tuple[FunctionSpec, ...]:
        return tuple(function for resource in self.resources for function in resource.functions)

    def resource(self, name: str) -> ResourceSpec | None:
        return next((resource for resource in self.resources if resource.name == name), None)


Manifest = Mapping[str, Any]
"""The JSON document of `flash build`; see `manifest.py`."""
