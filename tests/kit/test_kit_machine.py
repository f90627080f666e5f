"""Which machine this is, and files made by one of several processes."""

from pathlib import Path

import pytest

from flashmesh.kit.machine import create_once, host_folder, machine_id, replace


def test_the_systems_id_names_the_machine_and_is_not_told(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("0123456789abcdef0123456789abcdef\n")
    name = machine_id(tmp_path / "home", environ={}, files=(file,))
    assert name == machine_id(tmp_path / "elsewhere", environ={}, files=(file,))
    assert len(name) == 16
    assert name not in file.read_text()
    file.write_text("f" * 32)
    assert name != machine_id(tmp_path / "home", environ={}, files=(file,))
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("content", ["", "\n", "uninitialized\n", None])
def test_a_machine_without_an_id_keeps_one_in_the_home(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_text(content)
    home = tmp_path / "home"
    name = machine_id(home, environ={}, files=(file,))
    assert name == machine_id(home, environ={}, files=(file,))
    assert name != machine_id(tmp_path / "other", environ={}, files=(file,))


def test_containers_that_share_an_id_are_told_apart_by_a_variable(tmp_path: Path) -> None:
    names = {machine_id(tmp_path, environ={"FLASH_MACHINE_ID": name}) for name in ("a", "b", "")}
    assert len(names) == 3


def test_only_this_user_looks_into_the_machines_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    folder = host_folder(home, environ={"FLASH_MACHINE_ID": "a"})
    assert folder.parent == home / "hosts"
    assert [path.stat().st_mode & 0o777 for path in (home, home / "hosts", folder)] == [0o700] * 3


def test_asking_for_the_folder_need_not_make_it(tmp_path: Path) -> None:
    assert not host_folder(tmp_path / "home", environ={"FLASH_MACHINE_ID": "a"}, make=False).exists()
    assert not (tmp_path / "home").exists()


def test_a_file_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert create_once(path, lambda: b"one") == b"one"
    assert create_once(path, lambda: b"two") == b"one"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_another_made_meanwhile_wins(tmp_path: Path) -> None:
    path = tmp_path / "key"

    def make() -> bytes:
        path.write_bytes(b"theirs")
        return b"ours"

    assert create_once(path, make) == b"theirs"
    assert [found.name for found in tmp_path.iterdir()] == ["key"]


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace(tmp_path / "key", b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["key"]
