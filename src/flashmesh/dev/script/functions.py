"""What a script tells its session about the functions it declares: where each can be imported from, or its source."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from flashmesh.dev.script import notebook
from flashmesh.dev.script.main_module import NOTEBOOK, main_name
from flashmesh.dev.session.registration import source_purpose
from flashmesh.functions.declarations import Declaration, declaration_of, declarations_in
from flashmesh.functions.errors import NotEncodable
from flashmesh.project.naming import resource_stem
from flashmesh.wire.signature import Signer

_STANDARD_LIBRARY = str(Path(os.__file__).parent)


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a worker finds a function: `module` below `root`, in `file`; None when no file has it."""

    root: Path
    module: str
    file: Path | None


@dataclasses.dataclass(frozen=True, slots=True)
class Known:
    """A function as the session knows it: its id there, and the name of its module there.

    `build`: the one that has to run it, when an older one may still be running; else empty.
    """

    id: str
    module: str
    endpoint: str
    build: str = ""


class ScriptFunctions:
    """Every declaration this process has made known, and under which names. Used under the caller's lock."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Declaration, Known]] = {}
        self._endpoints: dict[tuple[str, str], str] = {}
        self._members: dict[str, dict[str, tuple[Declaration, Place]]] = {}
        self._registered: set[str] = set()

    def known(self, declaration: Declaration) -> Known | None:
        found = self._known.get(id(declaration))
        return found[1] if found is not None else None

    def forget(self) -> None:
        """The session that knew them is gone."""
        self._known.clear()
        self._members.clear()
        self._registered.clear()

    def registration(self, declaration: Declaration, signer: Signer) -> dict[str, Any]:
        """The arguments of `register` that make `declaration` known, and whatever else this process declares by now.

        A function that another one calls has to be known as well, and only the other one's worker will find out.
        Raises NotEncodable: a function without a file uses something that cannot be sent.
        """
        changed: dict[str, None] = {}
        for found in (declaration, *_declared_elsewhere()):
            if id(found) not in self._known and not found.local and not found.resource.is_load_balanced:
                changed[self._add(found, place_of(found))] = None
        asked, *others = changed
        entries = [self._entry(asked, signer)]
        for name in others:
            try:
                entries.append(self._entry(name, signer))
            except NotEncodable:  # nobody has called it; whoever does is told
                self._forget_members(name)
        return {"resources": entries}

    def registered(self, builds: Mapping[str, str]) -> None:
        """The session's answer. An endpoint it knew before is rolling over: its old code must not answer meanwhile."""
        for key, (declaration, known) in list(self._known.items()):
            build = builds.get(known.endpoint)
            if build is not None and known.endpoint in self._registered:
                self._known[key] = (declaration, dataclasses.replace(known, build=build))
        self._registered |= builds.keys()

    def _add(self, declaration: Declaration, place: Place) -> str:
        name = self._endpoint_of(declaration, place)
        known = Known(f"{place.module}.{_qualname(declaration, place)}", place.module, name)
        self._known[id(declaration)] = (declaration, known)
        self._members.setdefault(name, {})[known.id] = (declaration, place)
        return name

    def _forget_members(self, name: str) -> None:
        for declaration, _ in self._members.pop(name).values():
            del self._known[id(declaration)]

    def _endpoint_of(self, declaration: Declaration, place: Place) -> str:
        """One configuration is one endpoint; running a notebook's cell again means the same one."""
        declared = str(declaration.resource.name or declaration.name)
        key = (str(place.file or ""), declared)
        name = self._endpoints.get(key)
        if name is None:
            wanted = resource_stem(declared) or "endpoint"
            taken = set(self._endpoints.values())
            name, count = wanted, 2
            while name in taken:
                name, count = f"{wanted}_{count}", count + 1
            self._endpoints[key] = name
        return name

    def _entry(self, name: str, signer: Signer) -> dict[str, Any]:
        members = self._members[name]
        declarations = [declaration for declaration, _ in members.values()]
        config = dataclasses.replace(
            declarations[-1].config,
            dependencies=_union(declaration.dependencies for declaration in declarations),
            system_dependencies=_union(declaration.system_dependencies for declaration in declarations),
        )
        functions = [_function(id, declaration, place) for id, (declaration, place) in members.items()]
        root = next(iter(members.values()))[1].root
        entry: dict[str, Any] = {"name": name, "root": str(root), "config": config.to_dict(), "functions": functions}
        without_file = [declaration.target for declaration, place in members.values() if place.file is None]
        if without_file:
            text = notebook.collect(*without_file, unwrap=_undecorated)
            entry["source"] = signer.seal(text.encode(), source_purpose(name))
        return entry


def place_of(declaration: Declaration) -> Place:
    """Where a worker imports a function from. A module `a.b` in `…/a/b.py` has its root above `a`."""
    if "<locals>" in declaration.qualname or not notebook.has_file(declaration.target):
        return Place(Path.cwd(), NOTEBOOK, None)
    file = Path(declaration.file).resolve()
    module = main_name() if declaration.module in ("__main__", "__mp_main__") else declaration.module
    parts = module.split(".")
    steps = len(parts) if file.stem == "__init__" else len(parts) - 1
    if 0 < steps < len(file.parents):
        return Place(file.parents[steps], module, file)
    return Place(file.parent, parts[-1], file)


def _undecorated(value: Any) -> Any:
    declaration = declaration_of(value)
    return declaration.target if declaration is not None else value


def _declared_elsewhere() -> Iterator[Declaration]:
    """Declarations of `__main__` and of every module of the user's that is imported."""
    modules: list[object] = list(sys.modules.values())  # anything may be put there
    for module in modules:
        if isinstance(module, ModuleType) and _is_users(module):
            yield from declarations_in(vars(module))


def _is_users(module: ModuleType) -> bool:
    if module.__name__ == "__main__":
        return True
    file = vars(module).get("__file__")
    return isinstance(file, str) and not any(
        part in file for part in ("site-packages", "dist-packages", _STANDARD_LIBRARY)
    )


def _function(id: str, declaration: Declaration, place: Place) -> dict[str, Any]:
    return {
        "id": id,
        "name": declaration.name,
        "module": place.module,
        "file": str(place.file) if place.file else None,
        "line": declaration.line,
        "qualname": _qualname(declaration, place),
        "kind": declaration.kind,
        "is_async": declaration.is_async,
        "is_generator": declaration.is_generator,
        "dependencies": list(declaration.dependencies),
        "methods": [
            {"name": name, "is_async": body.is_async, "is_generator": body.is_generator}
            for name, body in declaration.methods.items()
        ],
    }


def _qualname(declaration: Declaration, place: Place) -> str:
    """A function that was defined inside another one stands at the top of the collected module."""
    return declaration.qualname if place.file else declaration.name


def _union(groups: Iterator[tuple[str, ...]]) -> tuple[str, ...]:
    found: Mapping[str, None] = dict.fromkeys(item for group in groups for item in group)
    return tuple(found)
