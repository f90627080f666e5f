"""Network volumes as folders of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from flashmesh.deploy.local.volumes import Volumes
from flashmesh.functions.config import ResourceConfig, VolumeConfig


def config(*names: str) -> ResourceConfig:
    volumes = tuple(VolumeConfig(name=name) for name in names)
    return ResourceConfig(resource_type="LiveServerless", volumes=volumes)


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    return tmp_path / "runpod-volume"


def test_a_volume_is_a_folder_reachable_where_flash_puts_it(tmp_path: Path, mount: Path) -> None:
    volumes = Volumes(tmp_path / "home", mount=mount)
    environ = volumes.arrange(config("models"))
    place = tmp_path / "home" / "volumes" / "models"
    assert environ == {"FLASH_VOLUME_PATH": str(place), "RUNPOD_VOLUME_PATH": str(place)}
    (mount / "weights").write_text("w")
    assert (place / "weights").read_text() == "w"
    volumes.close()
    assert not mount.is_symlink()
    assert (place / "weights").exists()


def test_a_resource_without_volume_gets_nothing(tmp_path: Path, mount: Path) -> None:
    assert Volumes(tmp_path, mount=mount).arrange(config()) == {}
    assert not mount.is_symlink()


def test_what_stands_there_already_is_left_alone_and_the_variable_is_named(tmp_path: Path, mount: Path) -> None:
    mount.mkdir()
    notes: list[str] = []
    volumes = Volumes(tmp_path / "home", mount=mount, on_note=notes.append)
    for _ in range(2):
        assert volumes.arrange(config("models"))["FLASH_VOLUME_PATH"].endswith("/volumes/models")
    assert not mount.is_symlink()
    (note,) = notes
    assert "exists already" in note and "FLASH_VOLUME_PATH" in note
    volumes.close()


def test_a_users_own_link_is_left_alone_even_when_it_leads_nowhere(tmp_path: Path, mount: Path) -> None:
    mount.symlink_to(tmp_path / "nowhere")
    Volumes(tmp_path / "home", mount=mount).arrange(config("models"))
    assert mount.readlink() == tmp_path / "nowhere"


def test_the_first_of_two_volumes_has_the_path(tmp_path: Path, mount: Path) -> None:
    notes: list[str] = []
    volumes = Volumes(tmp_path / "home", mount=mount, on_note=notes.append)
    volumes.arrange(config("one"))
    assert volumes.arrange(config("two"))["FLASH_VOLUME_PATH"].endswith("/two")
    assert mount.readlink().name == "one"
    assert "is the volume one already" in notes[0]
    volumes.close()


def test_two_sessions_share_a_volume_and_the_last_takes_the_link_away(tmp_path: Path, mount: Path) -> None:
    first, second, other = (Volumes(tmp_path / "home", mount=mount) for _ in range(3))
    first.arrange(config("models"))
    second.arrange(config("models"))
    other.arrange(config("data"))
    assert mount.readlink().name == "models"
    first.close()
    assert mount.is_symlink()
    second.close()
    assert not mount.is_symlink()
    other.close()


def test_a_link_left_by_a_killed_session_is_taken_over(tmp_path: Path, mount: Path) -> None:
    source = (
        "import os, pathlib\nfrom flashmesh.deploy.local.volumes import Volumes\n"
        "from flashmesh.functions.config import ResourceConfig, VolumeConfig\n"
        f"volumes = Volumes(pathlib.Path({str(tmp_path / 'home')!r}), mount=pathlib.Path({str(mount)!r}))\n"
        "volumes.arrange(ResourceConfig(resource_type='x', volumes=(VolumeConfig(name='old'),)))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", source], check=False).returncode == -9
    assert mount.readlink().name == "old"
    newer = Volumes(tmp_path / "home", mount=mount)
    newer.arrange(config("new"))
    assert mount.readlink().name == "new"
    newer.close()


def test_a_link_that_a_killed_session_with_another_home_left_is_taken_over(tmp_path: Path, mount: Path) -> None:
    other = Volumes(tmp_path / "other", mount=mount)
    other.arrange(config("models"))
    mine = Volumes(tmp_path / "home", mount=mount)
    mine.arrange(config("models"))
    assert mount.readlink() == tmp_path / "other" / "volumes" / "models", "the other session still lives"
    left_to = mount.readlink()
    other.close()
    mount.symlink_to(left_to)
    again = Volumes(tmp_path / "home", mount=mount)
    again.arrange(config("models"))
    assert mount.readlink() == tmp_path / "home" / "volumes" / "models"
    again.close()


@pytest.mark.parametrize("name", ["../../etc", "a/b", "..", ".hidden", "my vol", "größe"])
def test_no_name_leads_out_of_the_folder_of_volumes(tmp_path: Path, mount: Path, name: str) -> None:
    volumes = Volumes(tmp_path, mount=mount)
    place = volumes.folder_of(VolumeConfig(name=name))
    assert place.parent == tmp_path / "volumes"
    assert place.name not in ("..", ".") and not place.name.startswith(".")
    assert place != volumes.folder_of(VolumeConfig(name=place.name + "x"))
