"""Which app and environment a command means. Light: every command that deploys has these options in its help."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

F = Callable[..., Any]


class Place:
    """An environment of an app, as it is asked for."""

    def __init__(self, app: str, environment: str) -> None:
        self.app = app
        self.environment = environment

    def __str__(self) -> str:
        return f"{self.app}/{self.environment}"

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Flash-App": self.app, "X-Flash-Environment": self.environment}


def place_options(command: F) -> F:
    """`--app`, `--env`, `--server`, `--json`."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option("--server", metavar="URL", help="Of this server."),
        click.option("--env", "environment", metavar="NAME", help="The environment.  [default: FLASH_ENV, production]"),
        click.option(
            "--app", metavar="NAME", help="The app.  [default: FLASH_APP, flash.toml, pyproject.toml, the folder]"
        ),
    ):
        command = option(command)
    return command


def place_of(directory: Path, app: str | None, environment: str | None) -> Place:
    """The app and environment that are meant. Raises BadName."""
    from flashmesh.project.appname import app_name, check_name

    name = app or app_name(directory)
    where = environment or os.environ.get("FLASH_ENV", "").strip() or "production"
    return Place(check_name(name, what="app"), check_name(where, what="environment"))


def source_of(directory: Path) -> str:
    """Where a deploy comes from: machine and directory."""
    return f"{socket.gethostname()}:{directory.resolve()}"
