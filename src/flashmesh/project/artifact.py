"""The artifact of a build: one `tar.gz` of what workers need, with the manifest and the handlers in it. Reproducible.

The same files make the same bytes wherever and whenever they are packed: entries are sorted, belong to nobody, bear no
time, and have one of two modes. (The bytes also depend on the zlib of the Python that packs; another one makes another
build id, and a plan that changes nothing, because that goes by `config_hash`.)
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, cast

import msgspec

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import BuildId
from flashmesh.project.contents import MANIFEST_NAME, Contents, PackedFile, new_digest
from flashmesh.project.model import Manifest

LIMIT_BYTES: Final = 500_000_000
"""Of everything packed, before compression. More is slow to send and to unpack on every machine."""
LIMIT_FILES: Final = 50_000
RATIO_LIMIT: Final = 250
RATIO_FREE_BYTES: Final = 64_000_000
"""Whoever unpacks takes more than this, at more than RATIO_LIMIT to one, for a bomb."""
_LARGEST: Final = 10
_LEVEL: Final = 6


class ArtifactTooLarge(FlashmeshError):
    """The files of the project are more than an artifact may hold. Leave some out by `.flashignore` or `--exclude`."""

    code = "ARTIFACT_TOO_LARGE"
    status = 413


class CannotPack(FlashmeshError):
    """The project cannot be packed as it is."""

    code = "CANNOT_PACK"


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A packed build on disk."""

    build_id: BuildId
    """The first 12 hex of the SHA-256 of its bytes."""
    path: Path
    bytes: int
    """Of the archive."""
    files: int
    """The project's own, without manifest and handlers."""
    unpacked_bytes: int
    largest: tuple[tuple[str, int], ...]
    """The largest files (path, bytes), largest first."""


def pack(
    contents: Contents,
    manifest: Manifest,
    handlers: Mapping[str, str],
    *,
    out: Path,
    digests: Mapping[str, str],
    limit_bytes: int = LIMIT_BYTES,
) -> Artifact:
    """Write the archive to `out`, wholly or not at all.

    Args:
        manifest: goes in as `flash_manifest.json`, without its `generated_at`.
        handlers: path -> text of the files that start each endpoint.
        digests: what `manifest` was computed from; a file that is no longer so is refused.
    Raises:
        ArtifactTooLarge: with the largest files named.
        CannotPack: a file is in the way of a handler, or changed while it was packed.
        OSError: a file cannot be read, or `out` not be written.
    """
    largest = tuple((file.path, file.size) for file in sorted(contents.files, key=_by_size)[:_LARGEST])
    _check(contents, handlers, largest, limit_bytes)
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(handle, "wb") as raw:
            _write(raw, contents, _own_files(manifest, handlers), digests)
            written = raw.tell()
        if contents.total_bytes > RATIO_FREE_BYTES and contents.total_bytes > RATIO_LIMIT * written:
            raise ArtifactTooLarge(
                f"The files compress to less than a {RATIO_LIMIT}th: whoever unpacks them would suspect an attack. "
                f"Leave out {largest[0][0]}, or make it where it is used."
            )
        build_id = build_id_of(Path(temporary))
        os.chmod(temporary, 0o644)  # noqa: PTH101 - a temporary name, no Path was made
        os.replace(temporary, out)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return Artifact(
        build_id=build_id,
        path=out,
        bytes=written,
        files=len(contents.files),
        unpacked_bytes=contents.total_bytes,
        largest=largest,
    )


def build_id_of(archive: Path) -> BuildId:
    """What a build is called, from the bytes of its artifact."""
    with archive.open("rb") as file:
        return BuildId(hashlib.file_digest(file, "sha256").hexdigest()[:12])


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as it stands in an artifact: the same text for the same content."""
    document = {name: value for name, value in manifest.items() if name != "generated_at"}
    return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def readable(size: float) -> str:
    """Bytes for people: `512 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _by_size(file: PackedFile) -> tuple[int, str]:
    return (-file.size, file.path)


def _check(
    contents: Contents, handlers: Mapping[str, str], largest: tuple[tuple[str, int], ...], limit_bytes: int
) -> None:
    if contents.total_bytes > limit_bytes:
        listed = "".join(f"\n  {readable(size):>8}  {path}" for path, size in largest)
        raise ArtifactTooLarge(
            f"The project's files are {readable(contents.total_bytes)}, and a build may have {readable(limit_bytes)}. "
            f"The largest are:{listed}\nLeave some out with .flashignore or --exclude, keep data on a volume "
            "(NetworkVolume), or raise the limit with --max-size."
        )
    if len(contents.files) + len(handlers) >= LIMIT_FILES:
        raise ArtifactTooLarge(
            f"The project has {len(contents.files)} files, and a build may have {LIMIT_FILES}. "
            "Leave some out with .flashignore or --exclude, or keep them on a volume (NetworkVolume)."
        )
    taken = handlers.keys() & {file.path for file in contents.files}
    if taken:
        raise CannotPack(f"The build writes {', '.join(sorted(taken))} itself. Give your own file another name.")


def _own_files(manifest: Manifest, handlers: Mapping[str, str]) -> dict[str, bytes]:
    return {MANIFEST_NAME: manifest_bytes(manifest), **{path: text.encode() for path, text in handlers.items()}}


def _write(raw: IO[bytes], contents: Contents, own: Mapping[str, bytes], digests: Mapping[str, str]) -> None:
    """The manifest first, so that who reads the stream knows it early; then everything by path."""
    entries: dict[str, PackedFile | bytes] = {**own, **{file.path: file for file in contents.files}}
    order = sorted(entries, key=lambda path: (path != MANIFEST_NAME, path))
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=cast("Any", raw), mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in order:
            entry = entries[path]
            if isinstance(entry, bytes):
                tar.addfile(_info(path, len(entry), executable=False), io.BytesIO(entry))
                continue
            with (contents.root / path).open("rb") as file:
                digesting = _Digesting(file)
                same = os.fstat(file.fileno()).st_size == entry.size
                if same:
                    tar.addfile(_info(path, entry.size, executable=entry.executable), cast("Any", digesting))
                if not same or digesting.hexdigest() != digests[path]:
                    raise CannotPack(f"{path} changed while it was packed. Build again.")


class _Digesting:
    """A file whose bytes are digested as they are read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._total = new_digest()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._total.update(data)
        return data

    def hexdigest(self) -> str:
        return self._total.hexdigest()[:12]


def _info(path: str, size: int, *, executable: bool) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size = size
    info.mode = 0o755 if executable else 0o644
    info.mtime = 0
    return info
