"""System packages are looked for and named, never installed."""

from pathlib import Path

import pytest

from flashmesh.deploy.local.system import install_command, missing_system_dependencies

DPKG = """#!/bin/sh
for name in "$@"; do
  case "$name" in
    libgomp1|ffmpeg) echo "$name installed" ;;
    gone) echo "$name config-files" ;;
  esac
done
exit 1
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def test_a_package_or_a_command_of_that_name_will_do(programs: Path) -> None:
    program(programs, "dpkg-query", DPKG)
    program(programs, "convert")
    assert missing_system_dependencies(["libgomp1", "ffmpeg=7:5.1*", "convert", "gone", "libfoo:amd64", "gone"]) == [
        "gone",
        "libfoo:amd64",
    ]


def test_without_debians_tools_commands_are_looked_for(programs: Path) -> None:
    program(programs, "ffmpeg")
    assert missing_system_dependencies(["ffmpeg", "libgomp1"]) == ["libgomp1"]


def test_nothing_declared_means_nothing_missing(programs: Path) -> None:
    assert missing_system_dependencies([]) == []


def test_the_command_that_installs_them_can_be_pasted() -> None:
    assert install_command(["ffmpeg", "a b"], as_root=True) == "apt-get update && apt-get install -y ffmpeg 'a b'"
    assert install_command(["ffmpeg"], as_root=False) == "sudo apt-get update && sudo apt-get install -y ffmpeg"
