"""Which Python files a project has.

Left out: hidden and ignored paths, virtual environments, installed packages, caches, tests, `__init__.py`. A symbolic
link is followed when it stays inside the root; links inside a linked folder are not, so that links never loop.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from flashmesh.project.ignore import IGNORE_FILES, IgnoreRules, read_lines

SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages", "tests"})
SKIPPED_FILES = frozenset({"__init__.py", "conftest.py"})
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
"""What a folder holds that is a virtual environment."""


class FoundFile(msgspec.Struct, frozen=True):
    """One Python file: its path relative to the root, and what tells whether it changed."""

    path: str
    mtime_ns: int
    size: int


def find_files(root: Path, exclude: Sequence[str] = ()) -> list[FoundFile]:
    """Every file that may declare functions, sorted by path. Folders that cannot be read count as empty.

    exclude: patterns as in a `.gitignore`, which win over those.
    """
    found: list[FoundFile] = []
    walk = _Walk(root=root, real_root=os.path.realpath(root), found=found)
    walk.folder("", IgnoreRules.excluding(exclude), linked=False)
    found.sort(key=lambda file: file.path)
    return found


def is_project_file(root: Path, path: Path) -> bool:
    """Whether a change of `path` can matter to the scan: Python sources and ignore files that are not left out by name.

    Cheap on purpose (a watcher asks for every event): ignore rules are not read.
    """
    try:
        relative = path.relative_to(root)
    except ValueError:
        return False
    *folders, name = relative.parts or ("",)
    if any(part.startswith(".") or part in SKIPPED_FOLDERS for part in folders):
        return False
    return name.endswith(".py") or name in IGNORE_FILES


def skips_file(name: str) -> bool:
    """Whether a file of this name never declares functions."""
    if not name.endswith(".py") or name in SKIPPED_FILES or name.startswith("."):
        return True
    return name.startswith("test_") or name.endswith("_test.py")


class _Walk(msgspec.Struct, frozen=True):
    root: Path
    real_root: str
    found: list[FoundFile]

    def folder(self, folder: str, rules: IgnoreRules, *, linked: bool) -> None:
        """Read one folder (`folder` is empty or ends in a slash), then the folders in it."""
        place = self.root / folder
        try:
            with os.scandir(place) as scanned:
                entries = list(scanned)
        except OSError:
            return
        names = {entry.name for entry in entries}
        if folder and not names.isdisjoint(ENVIRONMENT_MARKS):
            return
        rules = rules.enter(folder, read_lines(place, names))
        for entry in entries:
            try:
                self._entry(folder, entry, rules, linked=linked)
            except OSError:
                continue

    def _entry(self, folder: str, entry: os.DirEntry[str], rules: IgnoreRules, *, linked: bool) -> None:
        name = entry.name
        path = folder + name
        if name.startswith(".") or not is_text(name):
            return
        if entry.is_dir():
            if name in SKIPPED_FOLDERS or rules.ignores(path, is_folder=True):
                return
            is_link = entry.is_symlink()
            if is_link and (linked or not self._inside(path)):
                return
            self.folder(path + "/", rules, linked=linked or is_link)
        elif not skips_file(name) and not rules.ignores(path, is_folder=False):
            if entry.is_symlink() and not self._inside(path):
                return
            if entry.is_file():
                stat = entry.stat()
                self.found.append(FoundFile(path, stat.st_mtime_ns, stat.st_size))

    def _inside(self, path: str) -> bool:
        return is_inside(self.root / path, self.real_root)


def is_inside(path: Path, real_root: str) -> bool:
    """Whether a link leads to something below the root, given the root's real path."""
    return os.path.realpath(path).startswith(real_root.rstrip(os.sep) + os.sep)


def is_text(name: str) -> bool:
    """A name that is not valid UTF-8 cannot be part of a URL or a module."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
