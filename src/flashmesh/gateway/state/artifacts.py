"""The artifacts of builds, on disk: one archive per build id, and the folder it was unpacked to once.

`<id>.tar.gz`           the archive, whole: it gets this name when all of it is on disk and its hash is right
`<id>/`                 what was in it, read-only: made under another name and renamed when it is complete
`<id>.damaged-<time>`   an archive whose bytes are no longer what they were
`*.part`, `.*`          an upload, an unpacking under way; what a crash left of one is removed at the next start

Uploads pass through in pieces; nothing here holds an archive in memory.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, TypeVar
from weakref import WeakValueDictionary

from flashmesh.functions.errors import FlashmeshError, PayloadTooLarge
from flashmesh.gateway.state.records import BuildNotFound, Manifest
from flashmesh.kit.files import sync

DEFAULT_LIMIT_BYTES: Final = 500 * 10**6
"""As large as an archive may be: as `flash build` makes them at most."""
ID_LENGTH: Final = 12
ID: Final = re.compile(r"[0-9a-f]{12}")
_PIECE: Final = 1024 * 1024
"""Written and hashed at once, on a thread. More: fewer switches, and so much memory for each upload."""
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_YOUNG_S: Final = 3600.0
"""An archive younger than this is left alone by `sweep`: its build is being written down."""
T = TypeVar("T")
Unpack = Callable[[Path, Path], Manifest]
"""`(archive, folder)`: make the folder, complete or not at all, and give the manifest that is in it."""


class ArtifactRefused(FlashmeshError, ValueError):
    """The artifact is not what its build id says. Build it again with `flash build`."""

    code = "ARTIFACT_REFUSED"
    status = 422


class ArtifactDamaged(FlashmeshError):
    """The artifact on the server's disk is damaged. `flash deploy` brings it there again."""

    code = "ARTIFACT_DAMAGED"
    status = 500


class DiskFull(FlashmeshError):
    """The server's disk is full. Make room there, then try again."""

    code = "DISK_FULL"
    status = 507


class ArtifactStore:
    """A directory of artifacts. Everything is called on the event loop; what takes long runs on a thread.

    Args:
        folder: made when it is not there.
        limit_bytes: of one archive.
        unpack: see `Unpack`.
    """

    def __init__(self, folder: Path, *, unpack: Unpack, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self._unpack = unpack
        self._whole: dict[str, tuple[int, int, int]] = {}
        """Archives whose bytes were looked at, as they stood then: inode, size, time."""
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in (*folder.glob("*.part"), *folder.glob(".*")):
            _remove(left)

    async def receive(self, pieces: AsyncIterator[bytes], expected: str | None = None) -> str:
        """Keep an archive; its id. One that is there stays there until this one is whole.

        Args:
            expected: the id it has to have; None: whichever it has.
        Raises:
            ArtifactRefused: its bytes do not hash to `expected`, or that is no id.
            PayloadTooLarge, DiskFull. Whatever `pieces` raises. Nothing is left of it then.
        """
        if expected is not None:
            check_id(expected)
        part = self.folder / f"{token_hex(8)}.part"
        try:
            id = (await self._write(part, pieces))[:ID_LENGTH]
            if expected not in (None, id):
                raise ArtifactRefused(
                    f"The artifact that came is {id} and not {expected}: it was changed or cut on its way. Send it "
                    "again."
                )
            async with self._turn(id):
                await _on_a_thread(self._adopt, part, id)
            return id
        except OSError as error:
            raise _translated(error, self.folder) from error
        finally:
            await _on_a_thread(_remove, part)

    async def _write(self, part: Path, pieces: AsyncIterator[bytes]) -> str:
        """Its SHA-256."""
        digest = hashlib.sha256()
        size = 0
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.closing(_Gathered()) as gathered:
                async for piece in pieces:
                    size += len(piece)
                    if size > self.limit_bytes:
                        raise too_large(self.limit_bytes)
                    if gathered.add(piece) >= _PIECE:
                        await _on_a_thread(_append, descriptor, digest, gathered.take())
                await _on_a_thread(_append, descriptor, digest, gathered.take())
            await _on_a_thread(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        return digest.hexdigest()

    def _adopt(self, part: Path, id: str) -> None:
        part.chmod(0o400)
        archive = self._archive(id)
        part.replace(archive)
        sync(self.folder)
        self._whole[id] = _mark(archive)

    async def archive(self, id: str) -> Path:
        """The archive, whose bytes are right. Raises BuildNotFound, ArtifactDamaged."""
        check_id(id)
        async with self._turn(id):
            return await _on_a_thread(self._checked, id)

    def _checked(self, id: str) -> Path:
        archive = self._archive(id)
        try:
            mark = _mark(archive)
            if self._whole.get(id) == mark:
                return archive
            with archive.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise BuildNotFound(
                f"The artifact of the build {id} is not on this server. `flash deploy` brings it here."
            ) from error
        except OSError as error:
            raise ArtifactDamaged(f"{archive} cannot be read: {error.strerror}. Look at the server's disk.") from error
        if not found.startswith(id):
            kept = archive.with_name(f"{id}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
            archive.rename(kept)
            raise ArtifactDamaged(
                f"The artifact of the build {id} on the server's disk is damaged (its bytes are {found[:12]} now); it "
                f"was moved to {kept}. `flash deploy` from the same sources, or a backup, brings it back."
            )
        self._whole[id] = mark
        return archive

    async def unpacked(self, id: str) -> Path:
        """The folder with what is in the archive, unpacked at the first time. Its files are read-only.

        Raises BuildNotFound, ArtifactDamaged, DiskFull, and what `unpack` raises for an archive that is not ours.
        """
        check_id(id)
        folder = self.folder / id
        async with self._turn(id):
            if not folder.is_dir():
                archive = await _on_a_thread(self._checked, id)
                try:
                    await _on_a_thread(self._unpack, archive, folder)
                except OSError as error:
                    raise _translated(error, self.folder) from error
        return folder

    async def drop(self, id: str) -> None:
        """Remove an archive and its folder. Idempotent."""
        check_id(id)
        async with self._turn(id):
            self._whole.pop(id, None)
            await _on_a_thread(_remove, self._archive(id))
            await _on_a_thread(_remove, self.folder / id)

    async def sweep(self, in_use: Collection[str], *, young_s: float = _YOUNG_S) -> list[str]:
        """Remove what no build in use needs and is older than `young_s` seconds; the ids that went."""
        there = await _on_a_thread(self._ids, time.time() - young_s)
        unused = sorted(there - set(in_use))
        for id in unused:
            await self.drop(id)
        return unused

    def _ids(self, before: float) -> set[str]:
        found = set()
        for path in self.folder.iterdir():
            id = path.name.removesuffix(".tar.gz")
            with contextlib.suppress(FileNotFoundError):
                if ID.fullmatch(id) and path.stat().st_mtime < before:
                    found.add(id)
        return found

    def _archive(self, id: str) -> Path:
        return self.folder / f"{id}.tar.gz"

    @contextlib.asynccontextmanager
    async def _turn(self, id: str) -> AsyncIterator[None]:
        """One at a time for each build."""
        lock = self._busy.setdefault(id, asyncio.Lock())
        async with lock:
            yield


async def _on_a_thread(work: Callable[..., T], *args: Any) -> T:
    """As asyncio.to_thread; who is cancelled meanwhile waits for the thread, which still uses what it was given."""
    task = asyncio.ensure_future(asyncio.to_thread(work, *args))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class _Gathered:
    """Small pieces, until they are worth a thread's time."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> int:
        """How much there is now."""
        self._pieces.append(piece)
        self._size += len(piece)
        return self._size

    def take(self) -> bytes:
        whole = b"".join(self._pieces)
        self.close()
        return whole

    def close(self) -> None:
        self._pieces, self._size = [], 0


def check_id(id: str) -> None:
    """Raises ArtifactRefused."""
    if not ID.fullmatch(id):
        raise ArtifactRefused(
            f"{id[:40]!r} is not a build id: it is the first 12 hex digits of the artifact's SHA-256."
        )


def too_large(limit_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"The artifact is larger than {limit_bytes} bytes. Leave out what the functions do not need (`flash build` "
        "names the largest files; `--exclude` and .flashignore leave them out), or raise "
        "FLASH_SERVER_MAX_ARTIFACT_BYTES on the server."
    )


def _append(descriptor: int, digest: Any, data: bytes) -> None:
    digest.update(data)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _mark(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _translated(error: OSError, folder: Path) -> FlashmeshError:
    """The error for whoever uploads or deploys."""
    if error.errno in _FULL:
        return DiskFull(f"There is no room left for the artifact in {folder} on the server. Make room, then try again.")
    return FlashmeshError(f"The artifact cannot be kept in {folder} on the server: {error.strerror or error}.")


def _remove(path: Path) -> None:
    """A file or a folder, read-only ones too; nothing when it is not there."""
    if path.is_dir() and not path.is_symlink():
        for folder in [path, *_folders(path)]:
            folder.chmod(stat.S_IRWXU)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _folders(path: Path) -> Iterator[Path]:
    for parent, names, _ in os.walk(path):
        for name in names:
            folder = Path(parent, name)
            if not folder.is_symlink():
                folder.chmod(stat.S_IRWXU)  # before it is walked into
                yield folder
