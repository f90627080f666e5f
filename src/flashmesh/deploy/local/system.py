"""System packages a function declares: looked for, named, never installed."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable

_PACKAGE = re.compile(r"^[A-Za-z0-9][A-Za-z0-9+.\-]*")
_QUERY_LIMIT_S = 5


def missing_system_dependencies(declared: Iterable[str]) -> list[str]:
    """Those that are neither an installed Debian package nor a command in PATH, as written, in their order."""
    wanted = list(dict.fromkeys(item.strip() for item in declared if item.strip()))
    without_command = [item for item in wanted if shutil.which(_name(item)) is None]
    installed = _installed_packages([_name(item) for item in without_command])
    return [item for item in without_command if _name(item) not in installed]


def install_command(missing: Iterable[str], *, as_root: bool | None = None) -> str:
    """The command line that installs them, for people to run."""
    root = os.geteuid() == 0 if as_root is None else as_root
    sudo = "" if root else "sudo "
    return f"{sudo}apt-get update && {sudo}apt-get install -y {shlex.join(missing)}"


def _name(item: str) -> str:
    """`ffmpeg=7:5.1*` and `libc6:amd64` name the packages `ffmpeg` and `libc6`."""
    match = _PACKAGE.match(item)
    return match.group() if match else item


def _installed_packages(names: list[str]) -> set[str]:
    query = shutil.which("dpkg-query")
    if query is None or not names:
        return set()
    command = [query, "-W", "-f=${Package} ${db:Status-Status}\n", "--", *names]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_QUERY_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    lines = (line.split() for line in answer.stdout.splitlines())
    return {parts[0] for parts in lines if len(parts) == 2 and parts[1] == "installed"}
