"""The data directory: one server at a time, on a disk of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway import data
from flashmesh.gateway.data import DataDirectory, DataDirectoryTaken, NetworkFileSystem, file_system, live_server

HOLDER = """
import sys, pathlib
from flashmesh.gateway.data import DataDirectory
taken = DataDirectory.take(pathlib.Path(sys.argv[1]))
taken.announce(
    url="http://127.0.0.1:7999", link=pathlib.Path("/tmp/x"), project=None, drain_s=1, started_at="", version="1"
)
print("held", flush=True)
sys.stdin.read()
"""


def announce(taken: DataDirectory) -> None:
    taken.announce(
        url="http://127.0.0.1:7470", link=Path("/l"), project=Path("/p"), drain_s=1, started_at="now", version="1"
    )


def test_a_directory_is_made_private_and_announces_its_server(tmp_path: Path) -> None:
    taken = DataDirectory.take(tmp_path / "a" / "server")
    assert (tmp_path / "a" / "server").stat().st_mode & 0o777 == 0o700
    assert live_server(taken.path) is None
    announce(taken)
    found = live_server(taken.path)
    assert found is not None
    assert (found.pid, found.url, found.project) == (os.getpid(), "http://127.0.0.1:7470", "/p")
    taken.close()
    assert live_server(taken.path) is None


def test_a_second_server_is_refused_by_pid_and_address_of_the_first(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DataDirectoryTaken) as raised:
            DataDirectory.take(tmp_path)
        assert str(holder.pid) in str(raised.value)
        assert "http://127.0.0.1:7999" in str(raised.value)
        assert "--data" in str(raised.value)
        holder.kill()
        holder.wait()
        assert live_server(tmp_path) is None  # the file is still there; its server is not
        DataDirectory.take(tmp_path).close()


def test_a_pid_used_again_by_a_stranger_is_no_server(tmp_path: Path) -> None:
    taken = DataDirectory.take(tmp_path)
    announce(taken)
    path = tmp_path / "server.json"
    path.write_text(path.read_text().replace(data.start_time(os.getpid()), "1"))
    assert live_server(tmp_path) is None
    taken.close()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_an_address_file_that_says_nothing_is_no_server(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)
    assert live_server(tmp_path) is None


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p", "ceph"])
def test_a_network_file_system_is_refused_with_the_option_to_use(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/x {tmp_path} {kind} rw 0 0\n")
    monkeypatch.setattr(data.file_system, "__defaults__", (mounts,))
    with pytest.raises(NetworkFileSystem, match=f"{kind}.*--data"):
        DataDirectory.take(tmp_path / "server")
    assert not (tmp_path / "server").exists()


def test_the_deepest_and_latest_mount_decides(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("a / ext4\nb /srv nfs\nc /srv/with\\040space xfs\nd /srv/with\\040space tmpfs\nbroken\n")
    assert file_system(Path("/srv/with space/x"), mounts) == "tmpfs"
    assert file_system(Path("/srv/other"), mounts) == "nfs"
    assert file_system(Path("/srvother"), mounts) == "ext4"
    assert file_system(Path("/srv"), tmp_path / "none") == ""


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FlashmeshError, match=r"cannot be used.*--data"):
        DataDirectory.take(tmp_path / "file" / "server")
