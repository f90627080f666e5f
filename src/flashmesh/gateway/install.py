"""`flash server install`: a systemd unit that starts the server with the machine or with the user's session."""

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError

UNIT: Final = "flash-server.service"
_SYSTEM_FOLDER: Final = Path("/etc/systemd/system")
_HARDENED: Final = (
    "# What functions may do is what this user may do; the system itself stays out of reach.",
    "ProtectSystem=full",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectControlGroups=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
)
"""A user's own systemd cannot make these promises."""
_KEPT_VARIABLES: Final = ("FLASH_HOME", "LOG_LEVEL")


class NotInstalled(FlashmeshError):
    """The unit could not be installed."""

    code = "NOT_INSTALLED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What the unit is made of.

    Attributes:
        system: started with the machine, else with its user's first session.
        arguments: of `flash server`.
        environment: variables that the settings were given by.
        drain_s: how long stopping may take before systemd loses patience.
    """

    system: bool
    arguments: Sequence[str]
    environment: Mapping[str, str]
    drain_s: float
    user: str = ""
    """Who it runs as; a system unit's only."""
    keep_endpoints: bool = False
    """Its workers outlive it when it crashes or is started again, and end when it is stopped."""

    @property
    def path(self) -> Path:
        """Where its file stands."""
        if self.system:
            return _SYSTEM_FOLDER / UNIT
        configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(configuration) / "systemd" / "user" / UNIT

    def text(self) -> str:
        """The file."""
        command = [sys.executable, "-P", "-m", "flashmesh.cli", "server", *self.arguments]
        lines = [
            "[Unit]",
            "Description=flashmesh server: functions API, queues and local workers",
            *(["After=network-online.target", "Wants=network-online.target"] if self.system else []),
            "",
            "[Service]",
            "Type=notify",
            "ExecStart=" + " ".join(quote(word).replace("$", "$$") for word in command),
            *(f"Environment={quote(f'{name}={value}')}" for name, value in sorted(self.environment.items())),
            *([f"User={self.user}"] if self.system and self.user else []),
            "Restart=on-failure",
            "RestartSec=1",
            *_ending(self.keep_endpoints),
            f"TimeoutStopSec={int(self.drain_s) + 15}",
            "LimitNOFILE=65536",
            "# A worker that needs too much memory is ended, and not the server with it.",
            "OOMPolicy=continue",
            "NoNewPrivileges=yes",
            *(_HARDENED if self.system else []),
            "",
            "[Install]",
            "WantedBy=multi-user.target" if self.system else "WantedBy=default.target",
        ]
        return "\n".join(lines) + "\n"


def _ending(keep_endpoints: bool) -> tuple[str, ...]:
    """Who is told of the unit's end, and by what."""
    if not keep_endpoints:
        return ("# Running calls may finish; the server itself ends its workers.", "KillMode=mixed")
    return (
        "# Workers serve on while the server is away: its end is no reason to end them. Stopping is, and then the",
        "# server does it; a restart leaves them to the next server.",
        "KillMode=process",
        "RestartKillSignal=SIGUSR1",
    )


def quote(word: str) -> str:
    """A word as systemd reads it: `%` and quotes mean themselves."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if escaped != word or any(letter in word for letter in " \t;'") or not word else word


def install(unit: Unit) -> list[str]:
    """Write the unit, enable it and start it. Returns what was done, a line each.

    Raises NotInstalled: what failed, and what the system said.
    """
    try:
        unit.path.parent.mkdir(parents=True, exist_ok=True)
        unit.path.write_text(unit.text(), encoding="utf-8")
    except OSError as error:
        way = "Run it with sudo, or use --user." if unit.system else "Use --print and place it yourself."
        raise NotInstalled(f"{unit.path} cannot be written: {error.strerror}. {way}") from error
    done = [f"Wrote {unit.path}"]
    if not has_systemd(unit.system):
        return [*done, "systemd does not run here: the unit takes effect where it does."]
    _systemctl(unit.system, "daemon-reload")
    _systemctl(unit.system, "enable", UNIT)
    _systemctl(unit.system, "restart", UNIT)
    done.append(f"Enabled and started {UNIT}: `{_shown(unit.system, 'status', UNIT)}` shows it.")
    if not unit.system:
        done.append("It starts with your session; `loginctl enable-linger` lets it start with the machine.")
    return done


def uninstall(*, system: bool) -> list[str]:
    """Stop and disable the unit and remove its file. Returns what was done, a line each."""
    path = Unit(system=system, arguments=(), environment={}, drain_s=0).path
    if not path.exists():
        return [f"There is no {path}."]
    if has_systemd(system):
        _systemctl(system, "disable", "--now", UNIT)
    try:
        path.unlink()
    except OSError as error:
        raise NotInstalled(f"{path} cannot be removed: {error.strerror}.") from error
    if has_systemd(system):
        _systemctl(system, "daemon-reload")
    return [f"Stopped and removed {path}. Data and tokens are where they were."]


def has_systemd(system: bool) -> bool:
    """Whether systemd runs here, for the machine or for this user."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        return False
    return system or Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}", "systemd").is_dir()


def variables_to_keep(env: Mapping[str, str]) -> dict[str, str]:
    """The settings that are in the environment now and would be missing in a unit's. No tokens, no keys."""
    return {
        name: value
        for name, value in env.items()
        if name in _KEPT_VARIABLES or (name.startswith("FLASH_SERVER_") and value)
    }


def _systemctl(system: bool, *words: str) -> None:
    done = subprocess.run(
        ["systemctl", *([] if system else ["--user"]), *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise NotInstalled(f"`{_shown(system, *words)}` failed: {said}")


def _shown(system: bool, *words: str) -> str:
    return shlex.join(["systemctl", *([] if system else ["--user"]), *words])
