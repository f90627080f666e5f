"""`.env` files and the other distribution that claims our module's name."""

import importlib.metadata
import os
from pathlib import Path

import pytest

from flashmesh.functions.environment import conflict_message, find_dotenv, is_mixed, load_dotenv


def test_the_nearest_env_file_upward_is_read_and_set_variables_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (tmp_path / ".env").write_text("FLASHMESH_TEST_ONE=file\nFLASHMESH_TEST_TWO=file\n")
    monkeypatch.setenv("FLASHMESH_TEST_ONE", "set")
    monkeypatch.setenv("FLASHMESH_TEST_TWO", "")
    monkeypatch.delenv("FLASHMESH_TEST_TWO")
    monkeypatch.chdir(deep)
    assert load_dotenv() == str(tmp_path / ".env")
    assert os.environ["FLASHMESH_TEST_ONE"] == "set"
    assert os.environ["FLASHMESH_TEST_TWO"] == "file"
    (deep / ".env").write_text("")
    assert find_dotenv() == str(deep / ".env")


def test_without_an_env_file_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert find_dotenv(str(tmp_path)) != str(tmp_path / ".env")


def test_a_deleted_current_directory_has_no_env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert load_dotenv() is None
    monkeypatch.chdir(tmp_path)


def test_a_second_distribution_is_reported_with_the_two_commands_that_repair_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("runpod-flash")
    assert conflict_message() is None
    installed = tmp_path / "runpod_flash-1.21.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: runpod-flash\nVersion: 1.21.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = conflict_message()
    assert message is not None
    assert "pip uninstall -y runpod-flash" in message
    assert "pip install --force-reinstall --no-deps flashmesh" in message


def test_a_mixed_package_folder_is_recognised(tmp_path: Path) -> None:
    assert not is_mixed(str(tmp_path))
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / "registry.py").touch()
    assert is_mixed(str(tmp_path))
