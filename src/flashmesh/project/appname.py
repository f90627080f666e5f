"""What a project is called: `FLASH_APP` aside, flash.toml, else pyproject.toml, else its folder."""

import os
import tomllib
from pathlib import Path
from typing import Any


def app_name(root: Path) -> str:
    """The app's name. Files that cannot be read or parsed have no say.

    flash.toml: `app = "shop"`, or `name` in a table `[app]` or `[project]`.
    """
    if chosen := os.environ.get("FLASH_APP"):
        return chosen
    settings = _read(root / "flash.toml")
    app = settings.get("app")
    candidates = [app, _name(app), _name(settings.get("project")), _name(_read(root / "pyproject.toml").get("project"))]
    for candidate in candidates:
        if isinstance(candidate, str) and candidate.strip():
            return candidate.strip()
    return root.resolve().name or "app"


def _name(table: object) -> object:
    return table.get("name") if isinstance(table, dict) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
