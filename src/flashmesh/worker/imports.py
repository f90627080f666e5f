"""How a project's files become modules: by location, under their dotted names, without shadowing anything.

The project root stands at the end of `sys.path`, so `import queue` in user code is always the standard library's. A
project file whose top-level name is taken by the standard library or by an installed package is registered under a
private name (`__flash__.queue`), relative imports included; every other file under its own name, which is also what
an `import` statement of another project file finds. Parents without `__init__.py` are made up (`01_start`, `my-jobs`).

All files below the root go through `ProjectLoader`, however they come to be imported. It ends an import quietly at the
first decorated call, and asks `on_failure` whether a failed import can be replaced (cross imports, see `stubs.py`).
"""

import ast
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
)
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, Final

from flashmesh.functions.caller import ImportEnded, importing
from flashmesh.worker.siblings import as_relative, neighbours_named

PRIVATE: Final = "__flash__"
"""Package under which project files stand whose own name is taken."""
_SETTLED_S: Final = 2.0
"""Byte code of a source changed less than this long ago is not written: its time stamp counts whole seconds, so a
second edit within the same second would go unseen."""
_FOREIGN_PARTS: Final = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})

FailureHandler = Callable[[ModuleType, ImportError], bool]
"""Told of a project module's failed import; True = the module was made usable, go on."""


class ProjectImports:
    """The import machinery's view of one project. One per process; `install` is idempotent for the same root."""

    def __init__(self, root: Path, *, on_failure: FailureHandler | None = None) -> None:
        self.root = root.resolve()
        self._on_failure = on_failure
        self._taken: dict[str, bool] = {}

    def install(self) -> None:
        """Put the root at the end of `sys.path` and have every file below it loaded by `ProjectLoader`."""
        root = str(self.root)
        sys.path[:] = [entry for entry in sys.path if entry not in ("", root)] + [root]
        sys.path_hooks.insert(0, self._finder_for)
        self._forget_finders()

    def uninstall(self) -> None:
        """Undo `install`; modules that were loaded stay."""
        sys.path_hooks[:] = [hook for hook in sys.path_hooks if hook != self._finder_for]
        self._forget_finders()

    def load(self, module: str, file: Path) -> ModuleType:
        """The module of one project file, imported now unless it is already.

        Args:
            module: its dotted name as written, e.g. `my-worker`, `01_start.cpu`.
        Raises:
            whatever its top level raises.
        """
        name = self.registered_name(module)
        loaded = sys.modules.get(name)
        if loaded is not None:
            return loaded
        self._make_parents(name, file)
        # Parents may have imported it; and its own import may replace it in sys.modules.
        if name not in sys.modules:
            spec = self._spec(name, file)
            created = importlib.util.module_from_spec(spec)
            sys.modules[name] = created
            try:
                assert spec.loader is not None
                # As importlib does, so that a cycle's error says "partially initialized".
                spec._initializing = True  # type: ignore[attr-defined]
                spec.loader.exec_module(created)
            except BaseException:
                sys.modules.pop(name, None)
                raise
            finally:
                spec._initializing = False  # type: ignore[attr-defined]
            self._bind_to_parent(name)
        return sys.modules[name]

    def registered_name(self, module: str) -> str:
        """The name in `sys.modules`: the module's own unless its top-level part is taken."""
        top = module.partition(".")[0]
        return f"{PRIVATE}.{module}" if self._is_taken(top) else module

    def written_name(self, registered: str) -> str:
        """The inverse of `registered_name`: the dotted path as the project writes it."""
        return registered.removeprefix(PRIVATE + ".")

    def owns(self, file: str | None) -> bool:
        """Whether a file is project source: below the root, and in no environment, hidden or vendored folder."""
        if file is None or file.startswith("<"):
            return False
        path = Path(file)
        if not path.is_relative_to(self.root):
            path = path.parent.resolve() / path.name
        if not path.is_relative_to(self.root):
            return False
        prefix = Path(sys.prefix)
        if prefix != self.root and prefix.is_relative_to(self.root) and path.is_relative_to(prefix):
            return False
        parts = path.relative_to(self.root).parts
        return not any(part in _FOREIGN_PARTS or part.startswith(".") for part in parts)

    def has_module(self, module: str) -> bool:
        """Whether a dotted name is a file or folder of the project."""
        path = self.root.joinpath(*module.split("."))
        return path.is_dir() or path.with_name(path.name + ".py").is_file()

    def neighbours(self, file: Path, source: bytes) -> frozenset[str]:
        """The bare names in the import statements of `file` that mean files and folders beside it."""
        return neighbours_named(
            source, file, is_neighbour=lambda name: not self.has_module(name) and not self._is_taken(name)
        )

    def _is_taken(self, top: str) -> bool:
        taken = self._taken.get(top)
        if taken is None:
            taken = self._taken[top] = top in sys.stdlib_module_names or self._is_installed(top)
        return taken

    def _is_installed(self, top: str) -> bool:
        present = sys.modules.get(top)
        if present is not None:
            return not self.owns(getattr(present, "__file__", None)) and not self._is_made_up(present)
        others = [entry for entry in sys.path if entry and not self._is_own_folder(entry)]
        spec = PathFinder.find_spec(top, others)
        # A folder without __init__.py somewhere on the path is no package anybody installed on purpose.
        return spec is not None and spec.loader is not None and spec.origin is not None

    def _is_made_up(self, module: ModuleType) -> bool:
        return getattr(module, "__file__", None) is None and str(self.root) in "".join(getattr(module, "__path__", ()))

    def _is_own_folder(self, entry: str) -> bool:
        return Path(entry).resolve() == self.root or Path(entry) == Path.cwd() == self.root

    def _make_parents(self, name: str, file: Path) -> None:
        parts = name.split(".")
        folders = [file.parent if file.name != "__init__.py" else file.parent.parent]
        while len(folders) < len(parts) - 1:
            folders.append(folders[-1].parent)
        # folders[0] belongs to the nearest parent; walk from the outermost one down.
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent in sys.modules:
                continue
            if parent == PRIVATE:
                sys.modules[parent] = _package(parent, [])
                continue
            self._make_parent(parent, folders[len(parts) - 1 - depth])

    def _make_parent(self, parent: str, folder: Path) -> None:
        init = folder / "__init__.py"
        if init.is_file():
            self.load(self.written_name(parent), init)
        else:
            sys.modules[parent] = _package(parent, [str(folder)])
        self._bind_to_parent(parent)

    def _bind_to_parent(self, name: str) -> None:
        above, _, child = name.rpartition(".")
        if above in sys.modules and name in sys.modules:
            setattr(sys.modules[above], child, sys.modules[name])

    def _spec(self, name: str, file: Path) -> ModuleSpec:
        loader = ProjectLoader(name, str(file), imports=self)
        folders = [str(file.parent)] if file.name == "__init__.py" else None
        spec = importlib.util.spec_from_file_location(name, file, loader=loader, submodule_search_locations=folders)
        assert spec is not None
        return spec

    def _finder_for(self, folder: str) -> FileFinder:
        path = Path(folder)
        if not path.is_dir() or not self.owns(str(path / "x.py")):
            raise ImportError(folder)
        return FileFinder(
            folder,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (partial(ProjectLoader, imports=self), SOURCE_SUFFIXES),  # type: ignore[arg-type]
        )

    def _forget_finders(self) -> None:
        for entry in list(sys.path_importer_cache):
            if self.owns(str(Path(entry) / "x.py")):
                del sys.path_importer_cache[entry]

    def failed(self, module: ModuleType, error: ImportError) -> bool:
        return self._on_failure is not None and self._on_failure(module, error)


class ProjectLoader(SourceFileLoader):
    """Runs a project file's top level under the guard that ends it at a decorated call."""

    def __init__(self, fullname: str, path: str, *, imports: ProjectImports) -> None:
        super().__init__(fullname, path)
        self._imports = imports

    def exec_module(self, module: ModuleType) -> None:
        with importing():
            try:
                super().exec_module(module)
            except ImportEnded:
                pass  # what was defined before the call is served
            except ImportError as error:
                if not self._imports.failed(module, error):
                    raise

    def get_code(self, fullname: str) -> CodeType | None:
        path = Path(self.path)
        if path.parent == self._imports.root:  # beside it is the root, where every import looks
            return super().get_code(fullname)
        source = self.get_data(self.path)
        neighbours = self._imports.neighbours(path, source)
        if not neighbours:
            return super().get_code(fullname)
        # Not cached: the byte code beside the source is also plain Python's, where such a name is a script's neighbour.
        tree = as_relative(ast.parse(source, self.path), neighbours)
        return compile(tree, self.path, "exec", dont_inherit=True)

    def get_data(self, path: str) -> bytes:
        # Byte code no newer than its source may stem from an earlier edit within the same second: compile instead.
        if path.endswith(".pyc") and Path(path).stat().st_mtime_ns <= Path(self.path).stat().st_mtime_ns:
            raise OSError(path)
        return super().get_data(path)

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        if time.time() - Path(self.path).stat().st_mtime > _SETTLED_S:
            super().set_data(path, data, _mode=_mode)


def _package(name: str, folders: list[str]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = folders
    module.__package__ = name
    module.__spec__ = ModuleSpec(name, None, is_package=True)
    module.__spec__.submodule_search_locations = folders
    return module
