"""Unpack an artifact that anybody may have made: nothing outside its folder, nothing but plain files, within limits.

An artifact is taken for hostile when it holds anything `pack` does not write: links, devices, absolute paths, `..`, two
entries of one name. What it unpacks to is bounded before it is written: bytes, files, ratio and the memory its headers
take. A folder appears complete, read-only and on disk, or not at all: also after a power cut.
"""

import contextlib
import errno
import gzip
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final, cast

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.files import sync, sync_tree
from flashmesh.project.artifact import LIMIT_FILES, RATIO_FREE_BYTES, RATIO_LIMIT, build_id_of, readable
from flashmesh.project.contents import MANIFEST_NAME, is_usable
from flashmesh.project.model import Manifest
from flashmesh.project.restored import ManifestInvalid, project_of

LIMIT_UNPACKED_BYTES: Final = 2_000_000_000
MANIFEST_LIMIT: Final = 32_000_000
_HEADERS: Final = 128 * 1024
"""What may be read between two files: headers, padding, and the readers' own read-ahead."""
_HEADERS_OF_A_FILE: Final = 8 * 1024
"""The same, on average."""
_BLOCK: Final = 256 * 1024


class HostileArtifact(FlashmeshError, ValueError):
    """The artifact is not one that `flash build` writes, and was not unpacked. Build it again."""

    code = "HOSTILE_ARTIFACT"
    status = 422


def unpack(
    archive: Path,
    folder: Path,
    *,
    build_id: str | None = None,
    limit_bytes: int = LIMIT_UNPACKED_BYTES,
    limit_files: int = LIMIT_FILES,
) -> Manifest:
    """Unpack into `folder`, which appears when everything is in it, read-only; or exists already and stays as it is.

    Args:
        build_id: what the archive's bytes must come to; None: not compared.
        limit_bytes, limit_files: of what is unpacked.
    Returns:
        The manifest of the build.
    Raises:
        HostileArtifact: with the reason. Nothing is left behind.
        OSError: the archive cannot be read, or the disk is full or broken. Nothing is left behind.
    """
    if build_id is not None and (found := build_id_of(archive)) != build_id:
        raise HostileArtifact(f"The artifact is {found} and not {build_id}: it was damaged on its way. Send it again.")
    if folder.is_dir():
        return read_manifest(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _extract(archive, temporary, limit_bytes, limit_files)
        manifest = read_manifest(temporary)
        _check_files(manifest, temporary)
        _make_read_only(temporary)
        sync_tree(temporary)  # before it has its name: after a power cut the name is taken for the whole of it
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            remove(temporary)  # somebody else unpacked it meanwhile
        sync(folder.parent)
        return manifest
    except BaseException:
        with contextlib.suppress(OSError):
            remove(temporary)
        raise


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an unpacked build. Raises HostileArtifact when there is none that can be used."""
    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            text = file.read(MANIFEST_LIMIT + 1)
        if len(text) > MANIFEST_LIMIT:
            raise HostileArtifact(f"The artifact's manifest is larger than {readable(MANIFEST_LIMIT)}.")
        manifest = json.loads(text)
        project_of(manifest, folder)
    except FileNotFoundError:
        raise HostileArtifact(f"The artifact has no {MANIFEST_NAME}: build it with `flash build`.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, HostileArtifact):
            raise
        reason = str(error) if isinstance(error, ManifestInvalid) else f"its manifest is no JSON: {error}"
        raise HostileArtifact(f"The artifact cannot be used: {reason}") from error
    return cast("Manifest", manifest)


def remove(folder: Path) -> None:
    """Delete an unpacked build, read-only as it is. Missing is fine. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        for place, _, _ in os.walk(folder):
            Path(place).chmod(0o700)
        shutil.rmtree(folder)


def _check_files(manifest: Manifest, folder: Path) -> None:
    """Every file the manifest speaks of is there."""
    for entry in manifest["resources"].values():
        for file in (entry["file_path"], *(function["file_path"] for function in entry["functions"])):
            if not (folder / file).is_file():
                raise HostileArtifact(f"The artifact's manifest names {file}, which is not in it.")


def _extract(archive: Path, folder: Path, limit_bytes: int, limit_files: int) -> None:
    packed_bytes = archive.stat().st_size
    with archive.open("rb") as raw:
        metered = _Metered(raw, packed_bytes, limit_bytes, limit_bytes + limit_files * _HEADERS_OF_A_FILE)
        try:
            with tarfile.open(fileobj=cast("Any", metered), mode="r|", errorlevel=2) as tar:
                _extract_all(tar, metered, folder, limit_files)
            metered.allow(_HEADERS)
            while metered.read(_BLOCK):  # to the end: only that shows a cut or damaged archive
                pass
        except (
            tarfile.TarError,
            EOFError,
            zlib.error,
            gzip.BadGzipFile,
            UnicodeError,
            ValueError,
            OverflowError,
        ) as error:
            if isinstance(error, HostileArtifact):
                raise
            raise HostileArtifact(f"The artifact is damaged or no tar.gz: {error}. Send it again.") from error


def _extract_all(tar: tarfile.TarFile, metered: "_Metered", folder: Path, limit_files: int) -> None:
    seen: set[str] = set()
    for member in _members(tar, metered):
        path = _safe(member)
        if path in seen:
            raise HostileArtifact(f"The artifact holds {_shown(path)} twice.")
        seen.add(path)
        if len(seen) > limit_files:
            raise HostileArtifact(f"The artifact holds more than {limit_files} files.")
        target = folder / path
        if member.isdir():
            _make_folder(target, path)
            continue
        if path == MANIFEST_NAME and member.size > MANIFEST_LIMIT:
            raise HostileArtifact(f"The artifact's manifest is larger than {readable(MANIFEST_LIMIT)}.")
        _make_folder(target.parent, path)
        metered.promise(member.size)
        source = tar.extractfile(member)
        if source is None:
            raise HostileArtifact(f"The artifact holds {_shown(path)}, which is no plain file.")
        _write(source, target, path, member)


def _members(tar: tarfile.TarFile, metered: "_Metered") -> Iterator[tarfile.TarInfo]:
    while True:
        metered.allow(_HEADERS)
        member = tar.next()
        if member is None:
            return
        yield member
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it has seen


def _safe(member: tarfile.TarInfo) -> str:
    """The member's path. Raises HostileArtifact for all that does not plainly lie below the folder."""
    path = member.name.rstrip("/") if member.isdir() else member.name
    parts = path.split("/")
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise HostileArtifact(f"The artifact holds {_shown(path)}, which is neither a plain file nor a folder.")
    if path.startswith("/") or "" in parts or "." in parts or ".." in parts:
        raise HostileArtifact(f"The artifact holds {_shown(path)}, which would lie outside its folder.")
    if not is_usable(path):
        raise HostileArtifact(f"The artifact holds {_shown(path)}, which is no usable name.")
    return path


def _shown(path: str) -> str:
    return ascii(path if len(path) <= 120 else path[:120] + "…")


def _make_folder(place: Path, path: str) -> None:
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise HostileArtifact(f"The artifact holds {_shown(path)} below a file.") from None


def _write(source: IO[bytes], target: Path, path: str, member: tarfile.TarInfo) -> None:
    """No link is ever made, and the folder is ours alone: whatever `target` says lies in it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    mode = 0o500 if member.mode & stat.S_IXUSR else 0o400
    try:
        descriptor = os.open(target, flags, mode)
    except (FileExistsError, IsADirectoryError):
        raise HostileArtifact(f"The artifact holds {_shown(path)} twice.") from None
    with os.fdopen(descriptor, "wb") as file:
        left = member.size
        while left:
            data = source.read(min(left, _BLOCK))
            if not data:
                raise HostileArtifact("The artifact ends in the middle of a file: it was cut. Send it again.")
            file.write(data)
            left -= len(data)
        os.fchmod(descriptor, mode)  # whatever the umask is


def _make_read_only(folder: Path) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        Path(place).chmod(0o500)


class _Metered:
    """The unpacked stream, which gives no more than it was allowed: a header that claims gigabytes is not read."""

    def __init__(self, raw: IO[bytes], packed_bytes: int, limit_bytes: int, limit_stream: int) -> None:
        self._stream = gzip.GzipFile(fileobj=raw, mode="rb")
        self._packed_bytes = packed_bytes
        self._limit = limit_bytes
        self._promised = 0
        self._left = _HEADERS
        self._left_altogether = limit_stream

    def allow(self, size: int) -> None:
        """From now on `size` bytes may be read."""
        self._left = size

    def promise(self, size: int) -> None:
        """A file of `size` bytes is about to be read. Raises HostileArtifact when that is too much altogether."""
        self._promised += size
        if self._promised > self._limit:
            raise HostileArtifact(f"The artifact unpacks to more than {readable(self._limit)}.")
        if self._promised > RATIO_FREE_BYTES and self._promised > RATIO_LIMIT * self._packed_bytes:
            raise HostileArtifact(f"The artifact unpacks to more than {RATIO_LIMIT} times its size.")
        self.allow(size + _HEADERS)

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > self._left:
            size = self._left + 1
        data = self._stream.read(size)
        self._left -= len(data)
        self._left_altogether -= len(data)
        if self._left < 0 or self._left_altogether < 0:
            raise HostileArtifact("The artifact's headers are larger than anything `flash build` writes.")
        return data
