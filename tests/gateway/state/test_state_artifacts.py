"""Artifacts on disk: whole, right, once, and nothing half."""

import asyncio
import errno
import os
import stat
import tracemalloc
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from state_fixtures import on_a_loop, packed, pieces, plain_unpack

from flashmesh.functions.errors import PayloadTooLarge
from flashmesh.gateway.state import artifacts
from flashmesh.gateway.state.artifacts import ArtifactDamaged, ArtifactRefused, ArtifactStore, DiskFull
from flashmesh.gateway.state.records import BuildNotFound

FILES = {"flash_manifest.json": b'{"version": "1.0"}', "gpu.py": b"print(1)\n" * 1000}


async def stream(data: bytes | Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces(data) if isinstance(data, bytes) else data:
        await asyncio.sleep(0)
        yield piece


def names(store: ArtifactStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def store_in(folder: Path, **more: Any) -> ArtifactStore:
    return ArtifactStore(folder / "artifacts", unpack=more.pop("unpack", plain_unpack), **more)


@on_a_loop
async def test_what_was_sent_is_there_under_its_hash(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    data, id = packed(FILES)
    assert await store.receive(stream(data), id) == id
    assert (await store.archive(id)).read_bytes() == data
    assert names(store) == {f"{id}.tar.gz"}


@on_a_loop
async def test_bytes_that_are_not_the_build_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    data, id = packed(FILES)
    with pytest.raises(ArtifactRefused, match="changed or cut"):
        await store.receive(stream(data[:-1]), id)
    with pytest.raises(ArtifactRefused, match="not a build id"):
        await store.receive(stream(data), "../../etc/pw")
    assert names(store) == set()
    with pytest.raises(BuildNotFound, match="flash deploy"):
        await store.archive(id)


@on_a_loop
async def test_a_larger_one_than_allowed_is_refused_before_it_is_all_here(tmp_path: Path) -> None:
    store = store_in(tmp_path, limit_bytes=100_000)
    sent = 0

    def endless() -> Iterable[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield bytes(10_000)

    with pytest.raises(PayloadTooLarge, match="FLASH_SERVER_MAX_ARTIFACT_BYTES"):
        await store.receive(stream(endless()))
    assert sent == 11
    assert names(store) == set()


@on_a_loop
async def test_one_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    class Gone(Exception):
        pass

    async def cut() -> AsyncIterator[bytes]:
        yield bytes(3_000_000)
        raise Gone

    store = store_in(tmp_path)
    with pytest.raises(Gone):
        await store.receive(cut(), "0123456789ab")
    assert names(store) == set()


@on_a_loop
async def test_a_receiver_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    waits = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield bytes(3_000_000)
        waits.set()
        await asyncio.Event().wait()

    store = store_in(tmp_path)
    task = asyncio.ensure_future(store.receive(slow()))
    await waits.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(store) == set()


@on_a_loop
async def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_in(tmp_path)
    data, id = packed(FILES)
    whole = os.write

    def full(descriptor: int, piece: Any) -> int:
        if os.fstat(descriptor).st_size > 0 or len(piece) > 1000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(descriptor, piece)

    monkeypatch.setattr(artifacts.os, "write", full)
    with pytest.raises(DiskFull, match="Make room") as refused:
        await store.receive(stream(bytes(2_000_000)))
    assert refused.value.status == 507
    assert names(store) == set()
    monkeypatch.undo()
    assert await store.receive(stream(data), id) == id


@on_a_loop
async def test_two_uploads_of_one_build_at_once_make_one(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    data, id = packed(FILES)
    assert await asyncio.gather(*(store.receive(stream(data), id) for _ in range(5))) == [id] * 5
    assert names(store) == {f"{id}.tar.gz"}
    assert (await store.archive(id)).read_bytes() == data


@on_a_loop
async def test_an_upload_is_not_held_in_memory(tmp_path: Path) -> None:
    store = store_in(tmp_path)

    async def many() -> AsyncIterator[bytes]:
        piece = bytes(65536)
        for _ in range(800):
            yield piece

    tracemalloc.start()
    try:
        await store.receive(many())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8_000_000  # of 52 MB


@on_a_loop
async def test_a_build_is_unpacked_once_by_whoever_comes_first(tmp_path: Path) -> None:
    unpacked = []

    def counted(archive: Path, folder: Path) -> dict[str, Any]:
        unpacked.append(folder.name)
        return plain_unpack(archive, folder)

    store = store_in(tmp_path, unpack=counted)
    data, id = packed(FILES)
    await store.receive(stream(data), id)
    folders = await asyncio.gather(*(store.unpacked(id) for _ in range(8)))
    assert set(folders) == {store.folder / id}
    assert unpacked == [id]
    assert (folders[0] / "gpu.py").read_bytes() == FILES["gpu.py"]
    assert await store_in(tmp_path, unpack=counted).unpacked(id) == folders[0]
    assert unpacked == [id]


@on_a_loop
async def test_an_archive_that_went_bad_is_found_told_and_kept_aside(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    data, id = packed(FILES)
    await store.receive(stream(data), id)
    archive = await store.archive(id)
    archive.chmod(0o600)
    archive.write_bytes(data[:100] + b"x" + data[101:])
    with pytest.raises(ArtifactDamaged, match=r"moved to (\S+)\..*flash deploy"):
        await store.unpacked(id)
    (kept,) = [name for name in names(store) if ".damaged-" in name]
    assert (store.folder / kept).read_bytes()[100:101] == b"x"
    with pytest.raises(BuildNotFound):
        await store.archive(id)
    await store.receive(stream(data), id)
    assert (await store.unpacked(id)).is_dir()


@on_a_loop
async def test_an_archive_from_an_earlier_life_is_looked_at_before_it_is_used(tmp_path: Path) -> None:
    data, id = packed(FILES)
    await store_in(tmp_path).receive(stream(data), id)
    archive = tmp_path / "artifacts" / f"{id}.tar.gz"
    archive.chmod(0o600)
    archive.write_bytes(b"")
    with pytest.raises(ArtifactDamaged):
        await store_in(tmp_path).archive(id)


@on_a_loop
async def test_what_no_build_needs_is_swept_read_only_folders_too(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    kept, kept_id = packed(FILES)
    gone, gone_id = packed({**FILES, "deep/in/gpu.py": b"2"})
    for data in (kept, gone):
        await store.receive(stream(data))
    for id in (kept_id, gone_id):
        folder = await store.unpacked(id)
        for path in sorted(folder.rglob("*"), reverse=True):
            path.chmod(stat.S_IRUSR | (stat.S_IXUSR if path.is_dir() else 0))
        folder.chmod(0o500)
    assert await store.sweep({kept_id}) == []  # both are too young
    assert await store.sweep({kept_id}, young_s=-1) == [gone_id]
    assert names(store) == {kept_id, f"{kept_id}.tar.gz"}
    for path in (store.folder / kept_id, *(store.folder / kept_id).rglob("*")):
        if path.is_dir():
            path.chmod(0o700)  # pytest removes its folders itself


@on_a_loop
async def test_a_start_removes_what_a_crash_left_half_done(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts"
    (folder / ".0123456789ab.x1").mkdir(parents=True)
    (folder / "abc.part").write_bytes(b"half")
    (folder / "0123456789ab").mkdir()
    store_in(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["0123456789ab"]
