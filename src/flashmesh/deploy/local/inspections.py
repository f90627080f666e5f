"""Files whose syntax does not tell everything are imported once, in a process of their own, and remembered."""

import asyncio
import dataclasses
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from flashmesh.project.inspect import Inspection, inspect_file
from flashmesh.project.merge import merge_all
from flashmesh.project.model import Problem, Project
from flashmesh.project.naming import prefix_of
from flashmesh.project.resources import setting_problems
from flashmesh.project.settings import with_settings

IMPORT_LIMIT_S: Final = 60.0
_AT_ONCE: Final = 2

_Stamp = tuple[int, int]


class Inspections:
    """What imports told, by file, as long as the file is the same."""

    def __init__(self, *, environ: Mapping[str, str] | None = None) -> None:
        """environ: variables that imports get over this process's own."""
        self._environ = {**os.environ, **environ} if environ else None
        self._known: dict[str, tuple[_Stamp, Inspection]] = {}

    def merged(self, project: Project) -> Project:
        """The project with everything in it that is known already.

        A file that was saved since its import is as that import told until the next one is done: its routes must not
        be gone in between. One that nothing is known of has a problem that says so.
        """
        found = [known[1] for file in incomplete(project) if (known := self._known.get(file))]
        project = merge_all(project, found) if found else project
        waiting = [_unknown(file) for file in project.needs_import]
        return dataclasses.replace(project, problems=(*project.problems, *waiting)) if waiting else project

    def complete(self, project: Project) -> Project:
        """The same with the settings of flash.toml, and with it what is wrong with its resources' settings."""
        project = with_settings(self.merged(project))
        return dataclasses.replace(project, problems=(*project.problems, *setting_problems(project)))

    def missing(self, project: Project) -> list[str]:
        """Files that have to be imported to know what they declare."""
        return [file for file in incomplete(project) if self._current(project.root, file) is None]

    async def import_all(self, root: Path, files: list[str]) -> None:
        """Import these files, a few at a time. Their outcomes are there afterwards, failures too."""
        gate = asyncio.Semaphore(_AT_ONCE)

        async def import_one(file: str) -> None:
            async with gate:
                stamp, over = _stamp(root / file), threading.Event()
                try:
                    found = await asyncio.to_thread(
                        inspect_file, root, file, timeout_s=IMPORT_LIMIT_S, environ=self._environ, over=over
                    )
                finally:
                    over.set()  # whoever cancels this must not have to wait for the import
                self._known[file] = stamp, found

        await asyncio.gather(*(import_one(file) for file in files))

    def _current(self, root: Path, file: str) -> tuple[_Stamp, Inspection] | None:
        known = self._known.get(file)
        return known if known is not None and known[0] == _stamp(root / file) else None


def incomplete(project: Project) -> list[str]:
    """Files with a resource of which syntax cannot tell the kind, or a setting."""
    unresolved = [resource.file for resource in project.resources if resource.unresolved]
    return list(dict.fromkeys([*project.needs_import, *unresolved]))


def _unknown(file: str) -> Problem:
    reason = "it is still being imported, which alone can tell what it declares"
    return Problem(file=file, line=None, reason=reason, severity="warning", prefix=prefix_of(file))


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
