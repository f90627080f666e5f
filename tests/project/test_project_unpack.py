"""Nothing an artifact holds gets out of its folder, and a folder is there complete or not at all."""

import errno
import gzip
import io
import json
import os
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from artifact_fixtures import Entry, archive, good_entries, good_manifest, packed, special
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project_fixtures import WORKER, write

from flashmesh.project.contents import MANIFEST_NAME
from flashmesh.project.unpack import HostileArtifact, read_manifest, remove, unpack

FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where builds are unpacked to; nothing else may ever be in it."""
    folder = tmp_path / "builds"
    folder.mkdir()
    yield folder
    for build in folder.iterdir():
        remove(build)


def refused(place: Path, path: Path, **limits: int) -> str:
    with pytest.raises(HostileArtifact) as error:
        unpack(path, place / "build", **limits)
    assert [*place.iterdir()] == []
    assert [one.name for one in place.parent.iterdir() if one.name in ("evil", "evil.py")] == []
    return str(error.value)


def test_what_was_packed_is_unpacked_and_cannot_be_changed(tmp_path: Path, place: Path) -> None:
    files = {"a.py": WORKER, "lib/x.bin": bytes(range(256)) * 999, "lib/ein ä.txt": "ä", "run.sh": "#!/bin/sh\n"}
    root = write(tmp_path / "p", files)
    (root / "run.sh").chmod(0o755)
    artifact = packed(root, tmp_path / "o.tar.gz")
    manifest = unpack(artifact.path, place / "build", build_id=artifact.build_id)
    assert manifest == read_manifest(place / "build")
    assert [*manifest["resources"]] == ["a"]
    found = {
        path.relative_to(place / "build").as_posix(): path for path in (place / "build").rglob("*") if path.is_file()
    }
    assert found.keys() == {*files, MANIFEST_NAME, "handlers/handler_a.py"}
    assert all(found[name].read_bytes() == (root / name).read_bytes() for name in files)
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}
    assert (modes["run.sh"], modes["a.py"]) == (0o500, 0o400)
    assert stat.S_IMODE((place / "build").stat().st_mode) == 0o500
    assert stat.S_IMODE((place / "build" / "lib").stat().st_mode) == 0o500


def test_a_folder_that_is_there_after_a_power_cut_is_whole(
    tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst a disk may do: the new name is kept, and of all that was not synced before it nothing is."""
    synced: set[int] = set()
    before_its_name: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    def renamed(self: Path, target: Path) -> Path:
        before_its_name.update(synced)
        synced.clear()
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", renamed)
    files = {"a.py": WORKER, "lib/x.bin": b"x" * 99999, "lib/deep/er/y.txt": "y"}
    unpack(packed(write(tmp_path / "p", files), tmp_path / "o.tar.gz").path, place / "build")
    whole = snapshot(place / "build")
    lose_all_but(before_its_name, place / "build")
    assert snapshot(place / "build") == whole
    assert whole["lib/deep/er/y.txt"] == b"y"
    assert place.stat().st_ino in synced  # its name is on disk too when it is said to be there


def lose_all_but(on_disk: set[int], folder: Path) -> None:
    """What a power cut leaves of a folder of which only the files and folders with these inodes were synced."""
    for parent, folders, files in os.walk(folder):
        if Path(parent).stat().st_ino not in on_disk:
            Path(parent).chmod(0o700)
            for name in (*folders, *files):
                Path(parent, name).rename(folder.parent / f".lost-{name}")
            continue
        for path in (Path(parent, name) for name in files):
            if path.stat().st_ino not in on_disk:
                path.chmod(0o600)
                path.write_bytes(b"")


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    artifact = packed(write(tmp_path / "p", {"a.py": WORKER}), tmp_path / "o.tar.gz")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        unpack(artifact.path, place / "build")
    assert [*place.iterdir()] == []


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path, place: Path) -> None:
    artifact = packed(write(tmp_path / "p", {"a.py": WORKER}), tmp_path / "o.tar.gz")
    unpack(artifact.path, place / "build")
    before = (place / "build").stat().st_ino
    assert unpack(artifact.path, place / "build")["resources"].keys() == {"a"}
    assert (place / "build").stat().st_ino == before


def test_many_who_unpack_at_once_end_with_one_whole_folder(tmp_path: Path, place: Path) -> None:
    artifact = packed(write(tmp_path / "p", {"a.py": WORKER, "x.bin": b"x" * 99999}), tmp_path / "o.tar.gz")
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(unpack(artifact.path, place / "build")["version"]))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["1.0"] * 6
    assert [path.name for path in place.iterdir()] == ["build"]


def test_an_artifact_of_another_build_is_refused(tmp_path: Path, place: Path) -> None:
    path = archive(tmp_path / "x.tar.gz", good_entries(tmp_path))
    with pytest.raises(HostileArtifact, match="0123456789ab"):
        unpack(path, place / "build", build_id="0123456789ab")
    assert [*place.iterdir()] == []


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py",
        "a/../../evil.py",
        "/evil",
        "a//b",
        "./a",
        "a/.",
        "..",
        "",
        "a/..",
        "x" * 300,
        "a\nb",
        "a\\b",
        "x/" * 80 + "x",
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, place: Path, name: str) -> None:
    path = archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), (name, b"evil")])
    assert "The artifact" in refused(place, path)


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "../../evil"),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "a.py"),
        (tarfile.LNKTYPE, "a.py"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (b"S", ""),
        (b"V", ""),
    ],
)
def test_anything_but_plain_files_is_refused(tmp_path: Path, place: Path, kind: bytes, target: str) -> None:
    refused(place, archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), special("link", kind, target)]))


def test_a_link_cannot_lend_its_place_to_a_file(tmp_path: Path, place: Path) -> None:
    entries: list[Entry] = [special("evil", tarfile.SYMTYPE, str(tmp_path)), ("evil/evil.py", b"evil")]
    refused(place, archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), *entries]))


@pytest.mark.parametrize("names", [("x", "x"), ("x", "x/y"), ("x/y", "x"), ("x", "./x")])
def test_two_entries_of_one_name_are_refused(tmp_path: Path, place: Path, names: tuple[str, str]) -> None:
    entries: list[Entry] = [(name, b"1") for name in names]
    refused(place, archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), *entries]))


def test_folders_may_be_entries_of_their_own(tmp_path: Path, place: Path) -> None:
    entries: list[Entry] = [special("lib", tarfile.DIRTYPE), ("lib/x.txt", b"1"), special("empty/", tarfile.DIRTYPE)]
    unpack(archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), *entries]), place / "build")
    assert (place / "build" / "empty").is_dir()


def test_too_many_bytes_and_too_many_files_are_refused(tmp_path: Path, place: Path) -> None:
    big: list[Entry] = [("big", os.urandom(100_000))]
    assert "50" in refused(place, archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), *big]), limit_bytes=50_000)
    many: list[Entry] = [(f"f{number}", b"") for number in range(99)]
    assert "more than 50 files" in refused(
        place, archive(tmp_path / "y.tar.gz", [*good_entries(tmp_path), *many]), limit_files=50
    )


def test_a_bomb_is_refused_before_it_is_written(tmp_path: Path, place: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    info = tarfile.TarInfo("zeros")
    info.size = 1_000_000_000
    with gzip.open(path, "wb") as packed_file:
        packed_file.write(info.tobuf() + bytes(1_000_000))
    assert "times its size" in refused(place, path)


def test_a_size_that_only_the_header_claims_is_refused(tmp_path: Path, place: Path) -> None:
    info = tarfile.TarInfo("zeros")
    info.size = 10**15
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(format=tarfile.GNU_FORMAT) + bytes(2048)))
    refused(place, path)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_headers_that_would_fill_the_memory_are_not_read(tmp_path: Path, place: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("header")
    info.type, info.size = kind, 200_000_000
    path = tmp_path / "x.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as packed_file:
        packed_file.write(info.tobuf())
        for _ in range(20):
            packed_file.write(b"1" * 10_000_000)
    assert "headers are larger" in refused(place, path)


def test_many_headers_that_are_each_small_are_too_much_together(tmp_path: Path, place: Path) -> None:
    entries: list[Entry] = []
    for number in range(60):
        info = tarfile.TarInfo(f"f{number}")
        info.pax_headers = {"comment": "x" * 60_000}
        entries.append((info, b""))
    path = archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), *entries])
    assert "headers are larger" in refused(place, path, limit_files=100, limit_bytes=100_000)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "manifest"),
        (b"{}", "version"),
        (b'{"version": "1.0", "resources": {"a": {}}}', "manifest"),
        (b"\xff", "no JSON"),
    ],
)
def test_an_unusable_manifest_is_refused(tmp_path: Path, place: Path, document: bytes, says: str) -> None:
    path = archive(tmp_path / "x.tar.gz", [(MANIFEST_NAME, document), ("a.py", b"")])
    assert says in refused(place, path)


def test_an_archive_without_a_manifest_or_with_a_huge_one_is_refused(tmp_path: Path, place: Path) -> None:
    assert "flash build" in refused(place, archive(tmp_path / "x.tar.gz", [("a.py", b"")]))
    huge = b'{"x": "' + b"1" * 33_000_000 + b'"}'
    assert "larger" in refused(place, archive(tmp_path / "y.tar.gz", [(MANIFEST_NAME, huge)]))


def test_a_manifest_that_names_files_outside_or_missing_ones_is_refused(tmp_path: Path, place: Path) -> None:
    assert "a.py, which is not in it" in refused(
        place, archive(tmp_path / "x.tar.gz", [(MANIFEST_NAME, good_manifest(tmp_path))])
    )
    document = json.loads(good_manifest(tmp_path))
    document["resources"]["a"]["functions"][0]["file_path"] = "../../etc/x.py"
    path = archive(tmp_path / "y.tar.gz", [(MANIFEST_NAME, json.dumps(document).encode()), ("a.py", b"")])
    assert "not a Python file inside the project" in refused(place, path)


@pytest.mark.parametrize(
    "spoil", [lambda raw: raw[:700], lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"x" * 999]
)
def test_what_is_no_whole_tar_is_refused(tmp_path: Path, place: Path, spoil: Callable[[bytes], bytes]) -> None:
    refused(place, archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), ("z", b"z" * 5000)], change=spoil))


def test_every_cut_of_a_good_archive_is_refused(tmp_path: Path, place: Path) -> None:
    whole = archive(tmp_path / "x.tar.gz", good_entries(tmp_path)).read_bytes()
    cut = tmp_path / "cut.tar.gz"
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        refused(place, cut)


def test_something_behind_a_good_archive_is_refused_or_harmless(tmp_path: Path, place: Path) -> None:
    whole = archive(tmp_path / "x.tar.gz", good_entries(tmp_path)).read_bytes()
    path = tmp_path / "more.tar.gz"
    path.write_bytes(whole + gzip.compress(b"x" * 1_000_000))
    refused(place, path)
    path.write_bytes(whole + b"garbage")
    refused(place, path)


@FUZZ
@given(st.binary(max_size=3000))
def test_any_bytes_are_refused(tmp_path: Path, place: Path, data: bytes) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(data)
    refused(place, path)
    path.write_bytes(gzip.compress(data))
    refused(place, path)


@FUZZ
@given(st.data())
def test_a_good_archive_with_some_bytes_changed_is_unpacked_or_refused_and_nothing_else(
    tmp_path: Path, place: Path, data: st.DataObject
) -> None:
    raw = bytearray(gzip.decompress(archive(tmp_path / "x.tar.gz", good_entries(tmp_path)).read_bytes()))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "y.tar.gz"
    path.write_bytes(gzip.compress(bytes(raw)))
    before = snapshot(tmp_path)
    try:
        unpack(path, place / "build")
    except HostileArtifact:
        assert [*place.iterdir()] == []
    else:
        remove(place / "build")
    assert snapshot(tmp_path) == before


KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
PARTS = st.sampled_from(["a", "b", "..", ".", "", "evil", "a.py", "\n", "ä", "build"])
MEMBERS = st.tuples(
    st.lists(PARTS, min_size=1, max_size=4).map("/".join), KINDS, st.lists(PARTS, max_size=4).map("/".join)
)


@FUZZ
@given(st.lists(MEMBERS, max_size=6))
def test_whatever_an_archive_holds_nothing_appears_outside_its_folder(
    tmp_path: Path, place: Path, members: list[tuple[str, bytes, str]]
) -> None:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in good_entries(tmp_path):
            info = tarfile.TarInfo(str(name))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 4 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"evil"))
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(raw.getvalue()))
    before = snapshot(tmp_path)
    try:
        unpack(path, place / "build")
    except HostileArtifact:
        pass
    else:
        found = list((place / "build").rglob("*"))
        assert all(one.is_file() or one.is_dir() for one in found)
        assert not any(one.is_symlink() for one in found)
        remove(place / "build")
    assert snapshot(tmp_path) == before


def test_no_room_on_the_disk_leaves_nothing(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), ("lib/z", b"z" * 5000)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flashmesh.project.unpack._make_read_only", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(path, place / "build")
    assert [*place.iterdir()] == []


def test_an_unpacked_build_is_removed_though_it_is_read_only(tmp_path: Path, place: Path) -> None:
    unpack(archive(tmp_path / "x.tar.gz", [*good_entries(tmp_path), ("lib/z", b"z")]), place / "build")
    remove(place / "build")
    remove(place / "build")
    assert [*place.iterdir()] == []


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b"" for path in sorted(root.rglob("*"))
    }
