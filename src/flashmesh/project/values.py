"""What an expression stands for, as far as syntax tells. The scan computes with these instead of running the file."""

from collections.abc import Mapping
from typing import Any

import msgspec

from flashmesh.project.syntax import Definition


class Known(msgspec.Struct, frozen=True):
    """A plain value: a constant, a container of constants, an enum member, one of our value objects."""

    value: Any


class Package(msgspec.Struct, frozen=True):
    """One of our packages as a module."""


class Public(msgspec.Struct, frozen=True):
    """A public name of ours: `remote`, `Endpoint`, a resource class, an enum."""

    name: str


class Outside(msgspec.Struct, frozen=True):
    """Something of a module that is neither ours nor the project's, by its dotted name (`os.environ`)."""

    name: str


class ProjectModule(msgspec.Struct, frozen=True):
    """A module of the project: a file, or (for a folder without `__init__.py`) a folder ending in a slash."""

    path: str


class Defined(msgspec.Struct, frozen=True):
    """A function or class that the project itself defines."""

    file: str
    node: Definition


class ConfigPlace(msgspec.Struct, frozen=True):
    """Where a configuration object is created: its identity."""

    file: str
    line: int
    column: int


class Config(msgspec.Struct, frozen=True, eq=False):
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


class Decorator(msgspec.Struct, frozen=True, eq=False):
    """`remote(config, …)`: what decorates a function."""

    config: "Value"
    keywords: Mapping[str, "Value"]
    line: int


class Method(msgspec.Struct, frozen=True, eq=False):
    """An attribute of one of ours: `api.get`, `GpuGroup.all`."""

    owner: "Config | Known"
    name: str


class RouteDecorator(msgspec.Struct, frozen=True, eq=False):
    """`api.get("/path")`."""

    config: Config
    verb: str
    arguments: tuple["Value", ...]
    keywords: Mapping[str, "Value"]
    line: int


class Invalid(msgspec.Struct, frozen=True):
    """Creating it raises, at `file`:`line`."""

    file: str
    line: int
    reason: str


class Unknown(msgspec.Struct, frozen=True):
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
