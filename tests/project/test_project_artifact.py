"""What a build packs: all that is needed, the same bytes wherever it is made, and nothing that is secret."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from artifact_fixtures import packed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from project_fixtures import WORKER, write

from flashmesh.project.artifact import ArtifactTooLarge, CannotPack, build_id_of, pack, readable
from flashmesh.project.contents import find_contents
from flashmesh.project.files import find_files
from flashmesh.project.handlers import handler_files
from flashmesh.project.manifest import build_manifest
from flashmesh.project.scan import scan

FILES = {
    "gpu_worker.py": WORKER,
    "lib/text.py": "A = 1\n",
    "lib/__init__.py": "",
    "data/model.bin": bytes(range(256)) * 40,
    "requirements.txt": "rich\n",
    "ein ä.txt": "umlaut",
}


def paths_in(archive: Path) -> list[str]:
    with tarfile.open(archive) as tar:
        return tar.getnames()


def packed_paths(root: Path, files: dict[str, str | bytes]) -> list[str]:
    return [file.path for file in find_contents(write(root, files)).files]


def test_the_archive_holds_the_project_its_manifest_and_a_handler_for_every_resource(tmp_path: Path) -> None:
    artifact = packed(write(tmp_path / "p", FILES), tmp_path / "out.tar.gz")
    assert paths_in(artifact.path) == [
        "flash_manifest.json",
        "data/model.bin",
        "ein ä.txt",
        "gpu_worker.py",
        "handlers/handler_gpu_worker.py",
        "lib/__init__.py",
        "lib/text.py",
        "requirements.txt",
    ]
    assert artifact.files == 6
    assert artifact.bytes == artifact.path.stat().st_size
    assert artifact.largest[0] == ("data/model.bin", 10240)
    assert artifact.build_id == build_id_of(artifact.path)


def test_the_same_sources_make_the_same_bytes_in_another_folder_at_another_time_for_another_umask(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "p", FILES)
    (first / "run.sh").write_text("#!/bin/sh\n")
    (first / "run.sh").chmod(0o755)
    before = packed(first, tmp_path / "one.tar.gz")
    second = tmp_path / "deep" / "er" / "copy"
    shutil.copytree(first, second, copy_function=shutil.copy)
    for number, path in enumerate(sorted(second.rglob("*"), reverse=True)):
        os.utime(path, (1_000_000 + number, 2_000_000 + number))
        if path.is_file():
            path.chmod(0o700 if path.name == "run.sh" else 0o600)
    code = (
        "import os, sys; os.umask(0o077); sys.path[:0] = sys.argv[3].split(':')\n"
        "from pathlib import Path; from artifact_fixtures import packed\n"
        "print(packed(Path(sys.argv[1]), Path(sys.argv[2])).build_id)"
    )
    arguments = [sys.executable, "-c", code, str(second), str(tmp_path / "two.tar.gz"), str(Path(__file__).parent)]
    environ = {**os.environ, "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7", "LC_ALL": "C.UTF-8"}
    answer = subprocess.run(arguments, cwd="/", env=environ, check=True, capture_output=True, text=True)
    assert answer.stdout.strip() == before.build_id
    assert (tmp_path / "two.tar.gz").read_bytes() == before.path.read_bytes()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.dictionaries(st.text("abc/ä", min_size=1, max_size=6), st.binary(max_size=50), max_size=5), st.randoms())
def test_the_order_in_which_files_were_made_does_not_matter(
    tmp_path: Path, contents: dict[str, bytes], random: random.Random
) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        files = [(f"data/{name.replace('/', '_')}.bin", content) for name, content in contents.items()]
        random.shuffle(files)
        write(folder, dict([*files, ("gpu_worker.py", WORKER.encode())]))
    one, two = (packed(folder, folder.with_suffix(".tar.gz")) for folder in folders)
    assert one.build_id == two.build_id


def test_another_byte_makes_another_build(tmp_path: Path) -> None:
    root = write(tmp_path / "p", FILES)
    one = packed(root, tmp_path / "one.tar.gz")
    (root / "data/model.bin").write_bytes(b"other")
    assert packed(root, tmp_path / "two.tar.gz").build_id != one.build_id


@pytest.mark.parametrize(
    "secret",
    [
        ".env",
        ".env.production",
        "prod.env",
        "config/.netrc",
        "_netrc",
        ".pypirc",
        "id_rsa",
        "keys/id_ed25519",
        "server.key",
        "cert.p12",
        "store.jks",
        "secrets.yaml",
        "credentials.json",
        "client_secret_123.json",
        "service-account.json",
    ],
)
def test_what_looks_like_a_secret_is_left_out_and_said(tmp_path: Path, secret: str) -> None:
    contents = find_contents(write(tmp_path, {"a.py": WORKER, secret: "x"}))
    assert [file.path for file in contents.files] == ["a.py"]
    assert [(one.path, one.reason) for one in contents.left_out] == [(secret, "secret")]


def test_a_private_key_is_left_out_whatever_its_file_is_called_and_a_certificate_is_not(tmp_path: Path) -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\nabc\n"
    files = {"deploy/identity.pem": key, "notes": "\n" + key, "ca.pem": "-----BEGIN CERTIFICATE-----\n", "a.py": key}
    contents = find_contents(write(tmp_path, files))
    assert [file.path for file in contents.files] == ["a.py", "ca.pem"]
    assert [one.path for one in contents.left_out] == ["deploy/identity.pem", "notes"]


def test_a_file_that_only_sounds_secret_can_be_taken_back(tmp_path: Path) -> None:
    files = {"a.py": WORKER, "alphabet.key": "abc", ".flashignore": "!alphabet.key\n", ".env": "x"}
    contents = find_contents(write(tmp_path, files))
    assert [file.path for file in contents.files] == ["a.py", "alphabet.key"]
    assert [one.path for one in contents.left_out] == [".env"]


def test_source_code_is_packed_whatever_it_is_called(tmp_path: Path) -> None:
    files = {"id_rsa.py": "", "id_generator.py": "", "secrets.py": "", "env.py": "", "tokens.key.py": ""}
    assert packed_paths(tmp_path, files) == sorted(files)


def test_environments_tests_caches_and_histories_are_left_out(tmp_path: Path) -> None:
    files = {
        "a.py": WORKER,
        "env/pyvenv.cfg": "",
        "env/lib/x.py": "",
        "conda/conda-meta/history": "",
        ".venv/pyvenv.cfg": "",
        ".git/HEAD": "",
        ".mypy_cache/x": "",
        "__pycache__/a.cpython-311.pyc": "",
        "old.pyc": "",
        "node_modules/x/index.js": "",
        "tests/data.json": "",
        "test_a.py": "",
        "a_test.py": "",
        "conftest.py": "",
        "pkg.egg-info/PKG-INFO": "",
        ".flash/archive.tar.gz": "",
        ".DS_Store": "",
        "flash.toml": "[resources.a.env]\nTOKEN = 'x'\n",
    }
    assert packed_paths(tmp_path, files) == ["a.py"]  # type: ignore[arg-type]


def test_ignore_files_and_the_option_leave_out_files(tmp_path: Path) -> None:
    files = {
        "a.py": WORKER,
        ".gitignore": "*.bin\n/out/\n",
        ".flashignore": "!keep.bin\nraw/\n",
        "drop.bin": "",
        "keep.bin": "",
        "out/x": "",
        "raw/x": "",
        "sub/.gitignore": "!special.bin\n",
        "sub/special.bin": "",
        "sub/notes.md": "",
    }
    assert packed_paths(tmp_path, files) == ["a.py", "keep.bin", "sub/notes.md", "sub/special.bin"]  # type: ignore[arg-type]
    excluded = find_contents(tmp_path, exclude=("sub", "keep.*"))
    assert [file.path for file in excluded.files] == ["a.py"]


def test_everything_the_scan_reads_is_packed(tmp_path: Path) -> None:
    files = {
        "a.py": WORKER,
        "build/gen.py": WORKER,
        "docs/conf.py": "",
        ".hidden/x.py": "",
        "tests/t.py": "",
        "x/y/z.py": "",
    }
    write(tmp_path, files)
    assert {file.path for file in find_files(tmp_path)} <= {file.path for file in find_contents(tmp_path).files}


def test_links_inside_the_project_are_packed_as_files_and_others_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a.py": WORKER, "real/data.txt": "x"})
    write(tmp_path, {"outside.txt": "secret", "far/x.txt": "secret"})
    (root / "alias.txt").symlink_to("real/data.txt")
    (root / "folder").symlink_to("real")
    (root / "real" / "again").symlink_to("..")
    (root / "out.txt").symlink_to(tmp_path / "outside.txt")
    (root / "away").symlink_to(tmp_path / "far")
    (root / "broken").symlink_to("nowhere")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "sock"))
    contents = find_contents(root)
    paths = [file.path for file in contents.files]
    assert {"a.py", "alias.txt", "folder/data.txt", "real/data.txt"} <= set(paths)
    assert not any("secret" in (root / path).read_text() for path in paths)
    assert {one.path: one.reason for one in contents.left_out} == {
        "away": "link out of the project",
        "out.txt": "link out of the project",
        "real/again": "link out of the project",
        "folder/again": "link out of the project",
        "broken": "link to nothing",
        "pipe": "not a regular file",
        "sock": "not a regular file",
    }
    with tarfile.open(packed(root, tmp_path / "o.tar.gz").path) as tar:
        assert all(member.isreg() for member in tar)


def test_a_project_that_is_too_large_is_refused_with_its_largest_files_named(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {**FILES, "big.bin": b"x" * 50_000})
    with pytest.raises(ArtifactTooLarge) as refused:
        packed(root, tmp_path / "out" / "o.tar.gz", limit_bytes=55_000)
    lines = str(refused.value).splitlines()
    assert lines[1].split() == ["50.0", "kB", "big.bin"]
    assert "--max-size" in lines[-1]
    assert not (tmp_path / "out").exists()


def test_what_would_be_taken_for_a_bomb_is_not_packed(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a.py": WORKER})
    with (root / "zeros.bin").open("wb") as file:
        file.truncate(70_000_000)
    with pytest.raises(ArtifactTooLarge, match=r"zeros\.bin"):
        packed(root, tmp_path / "o.tar.gz")
    assert [*tmp_path.glob("*.gz*"), *tmp_path.glob(".o*")] == []


def test_a_file_where_a_handler_belongs_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a.py": WORKER, "handlers/handler_a.py": "mine"})
    with pytest.raises(CannotPack, match=r"handlers/handler_a\.py"):
        packed(root, tmp_path / "o.tar.gz")


def test_a_file_that_changes_meanwhile_is_refused_and_the_archive_before_stays(tmp_path: Path) -> None:
    root = write(tmp_path / "p", {"a.py": WORKER})
    before = packed(root, tmp_path / "o.tar.gz")
    contents = find_contents(root)
    (root / "a.py").write_text("x" * (root / "a.py").stat().st_size)
    with pytest.raises(CannotPack, match=r"a\.py changed"):
        pack(contents, {"resources": {}}, {}, out=before.path, digests={"a.py": "0"})
    assert build_id_of(before.path) == before.build_id
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.tar.gz", "p"]


def test_no_room_on_the_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "p", {"a.py": WORKER})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flashmesh.project.artifact._write", full)
    with pytest.raises(OSError, match="No space left"):
        packed(root, tmp_path / "o" / "o.tar.gz")
    assert [*(tmp_path / "o").iterdir()] == []


def test_a_handler_is_valid_python_whatever_files_and_routes_are_called(tmp_path: Path) -> None:
    nasty = 'we"""ird\\.py'
    api = 'from flashmesh import Endpoint\napi = Endpoint(name="api")\n@api.get("/x/{a}")\ndef x(a): ...\n'
    project_files: dict[str, str | bytes] = {"my-worker.py": WORKER, "api/routes.py": api, nasty: WORKER}
    texts = handler_files(build_manifest(scan(write(tmp_path, project_files))))
    assert len(texts) == 3
    for path, text in texts.items():
        compile(text, path, "exec")
    assert "localhost:8000/x/{a}" in texts["handlers/handler_api_routes.py"]
    assert "It imports my-worker " in texts["handlers/handler_my_worker.py"]


def test_the_manifest_in_the_archive_is_json_without_a_time(tmp_path: Path) -> None:
    artifact = packed(write(tmp_path / "p", FILES), tmp_path / "o.tar.gz")
    with tarfile.open(artifact.path) as tar:
        member = tar.extractfile("flash_manifest.json")
        assert member is not None
        assert "generated_at" not in json.load(member)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (250_000, "250 kB"), (5e8, "500 MB"), (2e9, "2.0 GB")],
)
def test_sizes_are_readable(size: float, text: str) -> None:
    assert readable(size) == text
