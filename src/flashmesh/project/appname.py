"""What a project is called: `FLASH_APP` aside, flash.toml, else pyproject.toml, else its folder; what names may be."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

from flashmesh.functions.errors import FlashmeshError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")


class BadName(FlashmeshError, ValueError):
    """The name cannot be used. Take 1 to 63 letters, digits, `.`, `_` and `-`, the first a letter or a digit."""

    code = "BAD_NAME"
    status = 400


def check_name(name: str, *, what: Literal["app", "environment"] = "app") -> str:
    """`name`, when an app or an environment may have it. Raises BadName, with the nearest name that it could have."""
    if NAME.fullmatch(name):
        return name
    raise BadName(
        f"{name!r} cannot be the name of an {what}: names have 1 to 63 letters, digits, '.', '_' and '-', "
        f"and begin with a letter or a digit. {_near(name, what)}"
    )


def _near(name: str, what: str) -> str:
    near = _NOT_IN_NAMES.sub("-", name).strip("-._")[:63]
    option = "--app" if what == "app" else "--env"
    return f"Try {option} {near}." if near else f"Choose another one with {option}."


def app_name(root: Path) -> str:
    """The app's name. Files that cannot be read or parsed have no say."""
    return os.environ.get("FLASH_APP") or declared_name(root) or root.resolve().name or "app"


def declared_name(root: Path) -> str | None:
    """The name that the project's files give it, wherever they stand; None when they give none.

    flash.toml: `app = "shop"`, or `name` in a table `[app]` or `[project]`.
    """
    settings = _read(root / "flash.toml")
    app = settings.get("app")
    candidates = [app, _name(app), _name(settings.get("project")), _name(_read(root / "pyproject.toml").get("project"))]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.strip():
            return candidate.strip()
    return None


def _name(table: object) -> object:
    return table.get("name") if isinstance(table, dict) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
