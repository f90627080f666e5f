"""Which file of the project an import statement means: one found from the root, else one beside the importing file."""

import os
import sys
from collections.abc import Collection
from pathlib import Path


class ModuleFinder:
    """Resolves imports against the files of one project. Looks at the disk only for what the scan did not list."""

    def __init__(self, root: Path, files: Collection[str]) -> None:
        self._root = root
        self._known: dict[str, bool] = dict.fromkeys(files, True)
        self._folders: dict[str, bool] = {}

    def find(self, module: str, *, level: int = 0, importer: str) -> str | None:
        """The file of a module (`a/b.py`, `a/__init__.py`), its folder (`a/`) when it has none, else None.

        Args:
            module: dotted, as written after the leading dots; may be empty.
            level: leading dots; 0 = from the root, and from the importer's folder for a name the root does not have.
                A standard library module is never the project's.
            importer: the file that holds the statement.
        """
        if level == 0:
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names:
                return None
            base = "" if self.at(top) is not None else importer.rpartition("/")[0]
        else:
            folders = importer.split("/")[:-1]
            if level - 1 > len(folders):
                return None
            base = "/".join(folders[: len(folders) - (level - 1)])
        path = "/".join(part for part in (base, module.replace(".", "/")) if part)
        return self.at(path)

    def at(self, path: str) -> str | None:
        """The module that lives at `path` (no suffix, relative to the root; empty = the root as a package)."""
        if not path:
            return "__init__.py" if self._is_file("__init__.py") else None
        if self._is_file(f"{path}/__init__.py"):
            return f"{path}/__init__.py"
        if self._is_file(f"{path}.py"):
            return f"{path}.py"
        return f"{path}/" if self._is_folder(path) else None

    def submodule(self, module: str, name: str) -> str | None:
        """The module `name` inside `module` (as `find` returned it), or None."""
        if module.endswith("__init__.py"):
            return self.at(f"{module.removesuffix('__init__.py')}{name}")
        return self.at(f"{module}{name}") if module.endswith("/") else None

    def packages_of(self, file: str) -> list[str]:
        """The `__init__.py` files that are run before `file` is."""
        folders = file.split("/")[:-1]
        paths = ("/".join([*folders[: depth + 1], "__init__.py"]) for depth in range(len(folders)))
        return [path for path in paths if path != file and self._is_file(path)]

    def _is_file(self, path: str) -> bool:
        known = self._known.get(path)
        if known is None:
            known = self._known[path] = (self._root / path).is_file()
        return known

    def _is_folder(self, path: str) -> bool:
        known = self._folders.get(path)
        if known is None:
            known = self._folders[path] = os.path.isdir(self._root / path)  # noqa: PTH112 - half the cost of Path.is_dir
        return known
