"""The import machinery of the project in the dev server's process, as a worker has it: files by location, and a file of
another resource whose packages are not installed here imported as stubs."""

import threading
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from flashmesh.dev.server.door import SessionDoor
from flashmesh.dev.server.lb_loading import LoadProblem
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

if TYPE_CHECKING:
    from flashmesh.worker.imports import ProjectImports

MANIFEST_FILE = "manifest.json"
"""Beside the link's socket."""


class UserCode:
    """Imports project files into this process. One per server; installed at its first use."""

    def __init__(self, root: Path, files: Iterable[str], door: SessionDoor) -> None:
        """Take what will be imported.

        Args:
            files: those whose bodies run here (relative to the root); never replaced by stubs.
        """
        self._root = root
        self._files = tuple(dict.fromkeys(files))
        self._door = door
        self._installing = threading.Lock()
        self._machinery: ProjectImports | None = None

    @property
    def machinery(self) -> "ProjectImports":
        with self._installing:
            if self._machinery is None:
                self._machinery = self._install()
            return self._machinery

    def load(self, file: str) -> ModuleType:
        """The module of one file. Raises whatever its top level raises."""
        return self.machinery.load(dotted_name(file), self._root / file)

    def problem_of(self, error: BaseException, file: str) -> LoadProblem:
        """Where in the project an import failed, and why, in one line; the traceback begins at the user's code."""
        from flashmesh.worker.loader import problem_of

        problem = problem_of(error, file=str(self._root / file), imports=self.machinery)
        return LoadProblem(file=problem.file, line=problem.line, reason=problem.reason, traceback=problem.traceback)

    def spec(self, files: Iterable[str], functions: Iterable[str] = ()) -> WorkerSpec:
        """What a worker would be told to serve these functions."""
        link = self._door.link
        return WorkerSpec(
            endpoint="",
            build="",
            generation=0,
            project_root=str(self._root),
            sys_path=[str(self._root)],
            modules=[ModuleSpec(module=dotted_name(file), file=str(self._root / file)) for file in files],
            functions=list(functions),
            link=str(link or ""),
            manifest=str(link.parent / MANIFEST_FILE) if link is not None else "",
            socket_path="",
        )

    def _install(self) -> "ProjectImports":
        from flashmesh.worker.imports import ProjectImports  # only where user code is imported
        from flashmesh.worker.stubs import CrossImports

        crossing = CrossImports(self.spec(self._files))
        machinery = ProjectImports(self._root, on_failure=crossing.replace)
        crossing.imports = machinery
        machinery.install()
        return machinery


def dotted_name(file: str) -> str:
    """`api.routes` of `api/routes.py`."""
    return file.removesuffix(".py").replace("/", ".")
