"""Which files of a project changed, as they change.

Lives in the session's process, never in one that forks: watchfiles runs a thread. Changes that come within 20 ms of
each other are one; a save by an editor (write, rename, chmod) is one, too.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from flashmesh.project.files import is_project_file

STEP_MS = 20
"""Quiet time after which what came is handed on. Higher coalesces more, and every edit is served that much later."""
_LONGEST_MS = 400
"""A stream of changes (a checkout) is handed on in pieces at least this often."""
_SETTINGS = frozenset({"pyproject.toml", "requirements.txt", "flash.toml", ".gitignore", ".flashignore", ".env"})
"""Files of the root that are no Python and still decide what is served."""


async def changes(root: Path, *, on_watching: Callable[[], None]) -> AsyncIterator[frozenset[str]]:
    """Sets of changed paths relative to `root`, with forward slashes; new, edited, renamed and deleted alike.

    A path may be a folder's: whatever is below it changed. `on_watching` is called once, when no later change can be
    missed; what changed before is the caller's to find.
    """
    from watchfiles import Change, awatch  # 30 ms that the first answer need not wait for

    def wanted(_: Change, path: str) -> bool:
        return relevant(root, Path(path))

    watching = awatch(
        root,
        watch_filter=wanted,
        debounce=_LONGEST_MS,
        step=STEP_MS,
        rust_timeout=0,
        ignore_permission_denied=True,
    )
    first = asyncio.ensure_future(anext(watching))
    try:
        await asyncio.sleep(0)  # the first step registers the folders with the kernel
        on_watching()
        found = await first
        while True:
            paths = frozenset(relative(root, (path for _, path in found)))
            if paths:
                yield paths
            found = await anext(watching)
    except StopAsyncIteration:
        return
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await watching.aclose()


def relative(root: Path, paths: Iterable[str]) -> set[str]:
    """Absolute paths as the project knows them."""
    return {Path(path).relative_to(root).as_posix() for path in paths if Path(path).is_relative_to(root)}


def relevant(root: Path, path: Path) -> bool:
    """Whether a change of `path` can change what is served: Python files of the project, its settings, and folders."""
    if path.parent == root and path.name in _SETTINGS:
        return True
    if path.suffix == ".py":
        return is_project_file(root, path)
    return path.suffix == "" and _may_hold_files(root, path)


def _may_hold_files(root: Path, path: Path) -> bool:
    """A folder that came or went brings or takes files that are not reported each; asked by a name inside it."""
    return path != root and (path.is_dir() or not path.exists()) and is_project_file(root, path / "x.py")
