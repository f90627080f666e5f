"""The systemd unit: what it says, where it goes, and that it is taken away again."""

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from flashmesh.cli.server import server
from flashmesh.gateway import install as units
from flashmesh.gateway.install import Unit, variables_to_keep


def unit(**fields: object) -> Unit:
    values: dict[str, object] = {"system": False, "arguments": (), "environment": {}, "drain_s": 30.0}
    return Unit(**{**values, **fields})  # type: ignore[arg-type]


def parsed(text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


def test_the_unit_starts_this_installation_and_waits_for_its_drain() -> None:
    service = parsed(unit(arguments=("--project", "/srv/app"), drain_s=120.0).text())["Service"]
    assert service["ExecStart"].endswith("-m flashmesh.cli server --project /srv/app")
    assert service["Type"] == "notify"
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"  # the server ends its workers itself, after the drain
    assert int(service["TimeoutStopSec"]) > 120


def test_a_unit_that_keeps_endpoints_ends_the_server_alone_and_says_which_end_is_a_restart() -> None:
    """systemd would end every process of the unit with the server."""
    service = parsed(unit(keep_endpoints=True).text())["Service"]
    assert (service["KillMode"], service["RestartKillSignal"]) == ("process", "SIGUSR1")
    assert "RestartKillSignal" not in parsed(unit().text())["Service"]


@pytest.mark.parametrize(
    ("options", "env", "mode"),
    [
        ([], {}, "mixed"),
        (["--keep-endpoints"], {}, "process"),
        ([], {"FLASH_SERVER_KEEP_ENDPOINTS": "yes"}, "process"),
    ],
)
def test_the_printed_unit_says_what_becomes_of_endpoints(
    tmp_path: Path, options: list[str], env: dict[str, str], mode: str
) -> None:
    """However the setting was given."""
    done = CliRunner().invoke(server, ["install", "--print", *options], env={"FLASH_HOME": str(tmp_path), **env})
    assert done.exit_code == 0, done.output
    service = parsed(done.output)["Service"]
    assert service["KillMode"] == mode
    assert ("--keep-endpoints" in service["ExecStart"]) is bool(options)


def test_a_system_unit_is_hardened_and_runs_as_its_user() -> None:
    found = parsed(unit(system=True, user="ada").text())
    assert found["Service"]["User"] == "ada"
    assert found["Service"]["ProtectSystem"] == "full"
    assert found["Install"]["WantedBy"] == "multi-user.target"
    assert "ProtectSystem" not in parsed(unit().text())["Service"]


def test_words_mean_themselves_to_systemd() -> None:
    text = unit(arguments=("--data", "/a b%c$d"), environment={"FLASH_HOME": '/x "y" $z'}).text()
    assert '"/a b%%c$$d"' in text
    assert 'Environment="FLASH_HOME=/x \\"y\\" $z"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    path = tmp_path / units.UNIT
    path.write_text(unit(system=True, arguments=("--data", "/a b"), keep_endpoints=True).text())
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False)
    assert units.UNIT not in done.stderr


def test_settings_of_the_moment_become_the_units_and_tokens_do_not() -> None:
    env = {"FLASH_HOME": "/h", "FLASH_SERVER_PORT": "1", "FLASH_TOKEN": "t", "RUNPOD_API_KEY": "k", "PATH": "/bin"}
    assert variables_to_keep(env) == {"FLASH_HOME": "/h", "FLASH_SERVER_PORT": "1"}


def test_without_systemd_the_file_is_written_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(units, "has_systemd", lambda system: False)
    path = tmp_path / "systemd" / "user" / units.UNIT
    said = units.install(unit())
    assert path.read_text() == unit().text()
    assert str(path) in said[0]
    assert "systemd does not run here" in said[1]
    units.uninstall(system=False)
    assert not path.exists()
    assert units.uninstall(system=False) == [f"There is no {path}."]


def test_with_systemd_it_is_enabled_started_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`systemctl` is a program that writes down what it was told."""
    tools = tmp_path / "bin"
    tools.mkdir()
    record = tmp_path / "told"
    (tools / "systemctl").write_text(f'#!/bin/sh\necho "$@" >> {record}\n')
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(units, "has_systemd", lambda system: True)
    units.install(unit())
    units.uninstall(system=False)
    assert record.read_text().splitlines() == [
        "--user daemon-reload",
        f"--user enable {units.UNIT}",
        f"--user restart {units.UNIT}",
        f"--user disable --now {units.UNIT}",
        "--user daemon-reload",
    ]


def test_what_systemd_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "systemctl").write_text("#!/bin/sh\necho Access denied >&2\nexit 1\n")
    (tools / "systemctl").chmod(0o755)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setattr(units, "has_systemd", lambda system: True)
    with pytest.raises(units.NotInstalled, match="daemon-reload` failed: Access denied"):
        units.install(unit())
