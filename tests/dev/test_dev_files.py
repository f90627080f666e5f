"""The `.flash/` folder: server.py is ours, everything else the user's; a session that is gone is never found."""

import os
import socket
from pathlib import Path

import pytest

from flashmesh.dev.session.files import (
    SessionFile,
    find_session,
    ignore_folder,
    live_session,
    remove_session,
    write_server,
    write_session,
)


def session_file(link: str, pid: int | None = None) -> SessionFile:
    started = "2026-01-01T00:00:00Z"
    return SessionFile(pid=pid or os.getpid(), link=link, url="http://localhost:8888", started_at=started, version="0")


@pytest.fixture
def listening(tmp_path_factory: pytest.TempPathFactory):
    path = str(tmp_path_factory.mktemp("s") / "link.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.bind(path)
        made.listen()
        yield path


def test_server_py_is_overwritten_and_other_files_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".flash").mkdir()
    (tmp_path / ".flash" / "notes.txt").write_text("mine")
    write_server(tmp_path, "first")
    write_server(tmp_path, "second")
    assert sorted(path.name for path in (tmp_path / ".flash").iterdir()) == ["notes.txt", "server.py"]
    assert (tmp_path / ".flash" / "server.py").read_text() == "second"
    assert (tmp_path / ".flash" / "notes.txt").read_text() == "mine"


def test_the_same_text_is_not_written_again(tmp_path: Path) -> None:
    before = write_server(tmp_path, "same").stat()
    after = write_server(tmp_path, "same").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, b".flash/\n"),
        (b"", b".flash/\n"),
        (b"*.pyc", b"*.pyc\n.flash/\n"),
        (b"*.pyc\r\n", b"*.pyc\r\n.flash/\r\n"),
        (b"a\r\nb", b"a\r\nb\r\n.flash/\r\n"),
        (b".flash/\n*.pyc", b".flash/\n*.pyc"),
        (b"x\n/.flash\n", b"x\n/.flash\n"),
        (b"# .flash/\n", b"# .flash/\n.flash/\n"),
    ],
)
def test_gitignore_gets_the_line_once_and_keeps_content_and_newlines(
    tmp_path: Path, before: bytes | None, after: bytes
) -> None:
    path = tmp_path / ".gitignore"
    if before is not None:
        path.write_bytes(before)
    assert ignore_folder(tmp_path) is (before != after)
    assert path.read_bytes() == after
    assert ignore_folder(tmp_path) is False


def test_a_second_terminal_finds_the_session_from_a_folder_below(tmp_path: Path, listening: str) -> None:
    write_session(tmp_path, session_file(listening))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    found = find_session(below)
    assert found is not None
    assert found[0] == tmp_path.resolve()
    assert found[1].link == listening


def test_a_session_killed_with_9_is_recognised_as_stale(tmp_path: Path) -> None:
    write_session(tmp_path, session_file(str(tmp_path / "gone.sock")))
    assert live_session(tmp_path) is None


def test_a_session_of_a_process_that_ended_is_stale_even_if_something_listens(tmp_path: Path, listening: str) -> None:
    ended = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(ended, 0)
    write_session(tmp_path, session_file(listening, pid=ended))
    assert live_session(tmp_path) is None


def test_an_unreadable_session_file_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / ".flash").mkdir()
    (tmp_path / ".flash" / "session.json").write_text("{")
    assert live_session(tmp_path) is None


def test_the_announcement_is_private_and_only_its_own_session_takes_it_back(tmp_path: Path, listening: str) -> None:
    write_session(tmp_path, session_file(listening))
    path = tmp_path / ".flash" / "session.json"
    assert path.stat().st_mode & 0o777 == 0o600
    remove_session(tmp_path, os.getpid() + 1)
    assert path.exists()
    remove_session(tmp_path, os.getpid())
    assert not path.exists()
