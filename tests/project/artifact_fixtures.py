"""Artifacts, good and bad."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from project_fixtures import WORKER, write

from flashmesh.project.artifact import Artifact, pack
from flashmesh.project.closure import Closures
from flashmesh.project.contents import MANIFEST_NAME, find_contents
from flashmesh.project.handlers import handler_files
from flashmesh.project.manifest import build_manifest
from flashmesh.project.scan import scan

Entry = tuple[str | tarfile.TarInfo, bytes]


def packed(root: Path, out: Path, **options: Any) -> Artifact:
    """The artifact of the project in `root`."""
    project = scan(root)
    contents = find_contents(root, exclude=options.pop("exclude", ()))
    digests = contents.digests()
    manifest = build_manifest(project, closures=Closures(project), files=digests)
    del manifest["project_name"]  # that of the folder
    return pack(contents, manifest, handler_files(manifest), out=out, digests=digests, **options)


def good_manifest(root: Path) -> bytes:
    """The manifest of a project of one file, `a.py`, made below `root`."""
    return json.dumps(build_manifest(scan(write(root / "of-the-manifest", {"a.py": WORKER})))).encode()


def good_entries(root: Path) -> list[Entry]:
    return [(MANIFEST_NAME, good_manifest(root)), ("a.py", b"x = 1\n")]


def archive(path: Path, entries: Iterable[Entry], *, change: Callable[[bytes], bytes] = bytes) -> Path:
    """A tar.gz of `entries` (names, or headers with their content), whose tar `change` may spoil."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    path.write_bytes(gzip.compress(change(raw.getvalue()), mtime=0))
    return path


def special(name: str, kind: bytes, target: str = "") -> Entry:
    """A member that is no plain file."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, b""
