"""What an expression stands for, as far as syntax tells. The scan computes with these instead of running the file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flashmesh.project.syntax import Definition


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A plain value: a constant, a container of constants, an enum member, one of our value objects."""

    value: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Package:
    """One of our packages as a module."""


@dataclasses.dataclass(frozen=True, slots=True)
class Public:
    """A public name of ours: `remote`, `Endpoint`, a resource class, an enum."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class Outside:
    """Something of a module that is neither ours nor the project's, by its dotted name (`os.environ`)."""

    name: str


@dataclasses.dataclass(frozen=True, slots=True)
class ProjectModule:
    """A module of the project: a file, or (for a folder without `__init__.py`) a folder ending in a slash."""

    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class Defined:
    """A function or class that the project itself defines."""

    file: str
    node: Definition


@dataclasses.dataclass(frozen=True, slots=True)
class ConfigPlace:
    """Where a configuration object is created: its identity."""

    file: str
    line: int
    column: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Config:
    """A configuration object: one of our classes, called. Compared by identity, like the object it stands for."""

    place: ConfigPlace
    class_name: str
    variable: str | None
    arguments: tuple["Value", ...]
    keywords: Mapping[str, "Value"]
    open_ended: bool = False
    """There is a `*args` or `**kwargs` of which syntax cannot tell the content."""
    changed: tuple[str, ...] = ()
    """Settings assigned after creation."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Decorator:
    """`remote(config, …)`: what decorates a function."""

    config: "Value"
    keywords: Mapping[str, "Value"]
    line: int


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Method:
    """An attribute of one of ours: `api.get`, `GpuGroup.all`."""

    owner: "Config | Known"
    name: str


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RouteDecorator:
    """`api.get("/path")`."""

    config: Config
    verb: str
    arguments: tuple["Value", ...]
    keywords: Mapping[str, "Value"]
    line: int


@dataclasses.dataclass(frozen=True, slots=True)
class Invalid:
    """Creating it raises, at `file`:`line`."""

    file: str
    line: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Unknown:
    """Only running the file tells. `maybe_ours`: it may well be a configuration object or decorator of ours."""

    maybe_ours: bool = False


Value = (
    Known
    | Package
    | Public
    | Outside
    | ProjectModule
    | Defined
    | Config
    | Decorator
    | Method
    | RouteDecorator
    | Invalid
    | Unknown
)
