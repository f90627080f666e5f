"""Which files a resource's code can reach by import, and so what a change of a file changes.

Static: every import statement anywhere in a file counts, also one inside a function. What is imported by a computed
name is not seen.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.modules import ModuleFinder
from flashmesh.project.sources import Sources
from flashmesh.project.syntax import PACKAGES, Import, ModuleSyntax, SyntaxProblem


class MissingPackage(NamedTuple):
    """`importer` imports `name` from `folder`, which is no package."""

    importer: str
    folder: str
    name: str


class Closures:
    """The import closures of one project, as its files are now.

    Files that did not change since the scan (time and size) are neither read nor parsed again; what is parsed here is
    remembered with the project, so that the next scan's Closures start from it.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._sources = Sources(project.root, (), remembered=project.syntax)
        self._finder = ModuleFinder(project.root, project.files)
        self._imports: dict[str, tuple[str, ...]] = {}

    def of_files(self, files: Iterable[str]) -> frozenset[str]:
        """`files` and every file of the project they can import, packages' `__init__.py` included."""
        reached: set[str] = set()
        pending = list(files)
        while pending:
            file = pending.pop()
            if file not in reached:
                reached.add(file)
                pending += self._imports_of(file)
        return frozenset(reached)

    def of(self, resource: ResourceSpec) -> frozenset[str]:
        """Everything the functions of `resource` can import, and the file that configures it."""
        return self.of_files({resource.file, *(function.file for function in resource.functions)})

    def affected(self, changed: Collection[str]) -> set[EndpointName]:
        """The resources whose code can reach one of `changed` (relative paths).

        A deleted file is nobody's any more: compare `builds` before and after to see whom that concerns.
        """
        return {resource.name for resource in self._project.resources if not self.of(resource).isdisjoint(changed)}

    def makes_remote_calls(self, resource: ResourceSpec) -> bool:
        """Whether its code can reach a function of another resource."""
        files = self.of(resource)
        return any(
            other is not resource and any(function.file in files for function in other.functions)
            for other in self._project.resources
        )

    def build(self, resource: ResourceSpec) -> BuildId:
        """What identifies this version of a resource: its configuration and the bytes of every file of its closure."""
        return _fingerprint(resource, self.of(resource), self._digest)

    def builds(self) -> dict[EndpointName, BuildId]:
        """The build of every resource. A resource whose build differs from before has to be reloaded."""
        builds = {resource.name: self.build(resource) for resource in self._project.resources}
        if isinstance(self._project.syntax, dict):  # what was read for them need not be read again by the next scan
            self._project.syntax.update(self._sources.current)
        return builds

    def unpackaged(self, files: Iterable[str]) -> list["MissingPackage"]:
        """Names that `files` import from a folder which has neither an `__init__.py` nor a module of that name."""
        found: dict[MissingPackage, None] = {}
        for file in sorted(files):
            syntax = self._sources.syntax_of(file)
            for imported in syntax.imports if isinstance(syntax, ModuleSyntax) else ():
                if imported.name in (None, "*") or not imported.module:
                    continue
                module = self._finder.find(imported.module, level=imported.level, importer=file)
                if module and module.endswith("/") and self._finder.submodule(module, imported.name or "") is None:
                    found[MissingPackage(file, module.rstrip("/"), imported.name or "")] = None
        return list(found)

    def unreadable(self, files: Iterable[str]) -> dict[str, SyntaxProblem]:
        """Those of `files` that Python cannot read, and why."""
        found = {file: self._sources.syntax_of(file) for file in sorted(files)}
        return {file: syntax for file, syntax in found.items() if isinstance(syntax, SyntaxProblem)}

    def sources(self, resource: ResourceSpec) -> dict[str, str]:
        """Every file of its closure, with 12 hex of its bytes; an unreadable one has none."""
        return {file: self._digest(file).hex()[:12] for file in sorted(self.of(resource))}

    def source_fingerprint(self) -> str:
        """64 hex over every Python file of the project."""
        total = hashlib.sha256()
        for file in self._project.files:
            total.update(file.encode() + b"\0" + self._digest(file))
        return total.hexdigest()

    def _digest(self, file: str) -> bytes:
        try:
            return self._sources.read(file).digest
        except OSError:
            return b""

    def _imports_of(self, file: str) -> tuple[str, ...]:
        found = self._imports.get(file)
        if found is None:
            syntax = self._sources.syntax_of(file)
            reached = dict.fromkeys(self._finder.packages_of(file))
            if isinstance(syntax, ModuleSyntax):
                for imported in syntax.imports:
                    reached |= dict.fromkeys(self._files_of(imported, file))
            found = self._imports[file] = tuple(reached)
        return found

    def _files_of(self, imported: Import, importer: str) -> list[str]:
        """The files an import statement runs: each package on the way, the module, and a submodule imported by name."""
        if imported.level == 0 and imported.module.partition(".")[0] in PACKAGES:
            return []
        parts = imported.module.split(".") if imported.module else []
        modules = [
            self._finder.find(".".join(parts[:length]), level=imported.level, importer=importer)
            for length in range(0 if imported.level else 1, len(parts) + 1)
        ]
        if imported.name is not None and modules and modules[-1] is not None:
            modules.append(self._finder.submodule(modules[-1], imported.name))
        elif imported.name is not None and imported.level and not parts:
            folder = "/".join(
                importer.split("/")[: -imported.level]
            )  # `from . import x` in a folder without __init__.py
            modules.append(self._finder.at(f"{folder}/{imported.name}".lstrip("/")))
        return [module for module in modules if module is not None and not module.endswith("/")]


def affected(project: Project, changed: Iterable[str]) -> set[EndpointName]:
    """The resources of `project` whose code can reach one of the `changed` files (relative paths)."""
    return Closures(project).affected(set(changed))


def fingerprint(root: Path, resource: ResourceSpec, closure: Collection[str]) -> BuildId:
    """12 hex over the configuration of `resource` and the bytes of `closure`, read from disk now."""

    def digest(file: str) -> bytes:
        try:
            return hashlib.blake2b((root / file).read_bytes(), digest_size=16).digest()
        except OSError:
            return b""

    return _fingerprint(resource, closure, digest)


def _fingerprint(resource: ResourceSpec, closure: Collection[str], digest: Callable[[str], bytes]) -> BuildId:
    config = json.dumps(resource.config.to_dict(), sort_keys=True, default=repr)
    total = hashlib.sha256(config.encode())
    for file in sorted(closure):
        total.update(file.encode() + b"\0" + digest(file))
    return BuildId(total.hexdigest()[:12])
