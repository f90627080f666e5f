"""What a project and its functions need installed, as requirement lines. Requirements that mean us are left out."""

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OURS = frozenset({"flashmesh", "runpod-flash", "tetra-rp"})
_NAME = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)")
_SEPARATORS = re.compile(r"[-_.]+")
_COMMENT = re.compile(r"(^|\s)#.*$")
_INCLUDE = re.compile(r"^(?:-r|--requirement)[\s=]*(\S+)$")


def project_requirements(root: Path) -> tuple[str, ...]:
    """The project's own: `[project] dependencies` of pyproject.toml, else requirements.txt with what it includes.

    Files that cannot be read or parsed count as empty; options of pip other than `-r` are left out.
    """
    declared = _read_toml(root / "pyproject.toml").get("project", {})
    dependencies = declared.get("dependencies") if isinstance(declared, dict) else None
    if isinstance(dependencies, list):
        return union(line for line in dependencies if isinstance(line, str))
    return union(_read_requirements(root / "requirements.txt", set()))


def union(*groups: Iterable[str]) -> tuple[str, ...]:
    """All requirements of `groups` once each, in the order given, ours left out."""
    lines = (line.strip() for group in groups for line in group)
    return tuple(dict.fromkeys(line for line in lines if line and name_of(line) not in OURS))


def name_of(requirement: str) -> str:
    """The normalised distribution name: `Runpod_Flash[x]>=1` -> `runpod-flash`. Empty for a bare URL or path."""
    match = _NAME.match(requirement)
    return _SEPARATORS.sub("-", match.group(1)).lower() if match else ""


def _read_requirements(path: Path, seen: set[Path]) -> list[str]:
    real = path.resolve()
    if real in seen:
        return []
    seen.add(real)
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return []
    lines: list[str] = []
    for raw in text.replace("\\\n", " ").splitlines():
        line = " ".join(_COMMENT.sub("", raw).split())
        include = _INCLUDE.match(line)
        if include:
            lines += _read_requirements(path.parent / include.group(1), seen)
        elif line and not line.startswith("-"):
            lines.append(line)
    return lines


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
