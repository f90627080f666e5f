"""Files that others read while we write them, or after the power was cut."""

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Final

_SYNCED_AT_ONCE: Final = 16
"""Threads that wait for the disk: what is asked of it at the same time goes into one commit of the file system. A
thousand small files take half a second so on an SSD, and 2 s one after the other."""


def write_atomically(path: Path, text: str, *, mode: int = 0o644) -> None:
    """Replace `path` by a file that holds `text`; a reader sees the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, mode)  # noqa: PTH101 - a descriptor's own temporary name, no Path was made
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108
        raise


def sync(path: Path) -> None:
    """Return when a file's bytes, or the names in a folder, are on disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Return when a folder and everything in it are on disk; not yet its own name. Raises OSError."""
    from concurrent.futures import ThreadPoolExecutor  # not for everybody who writes a file

    places: list[Path] = []
    for place, _, names in os.walk(folder):
        places += (Path(place), *(Path(place, name) for name in names))
    with ThreadPoolExecutor(_SYNCED_AT_ONCE, "sync") as threads:
        for _ in threads.map(sync, places):
            pass
