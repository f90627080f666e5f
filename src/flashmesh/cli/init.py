"""`flash init`: write a small project that runs."""

import re
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from flashmesh.functions.errors import FlashmeshError

_SUFFIX = ".tmpl"
"""Carried by the template's files: no tool takes them for code of ours, and no hidden one is lost in packaging."""

_EPILOG = """\b
Examples:
  flash init my-app && flash run my-app
  flash init .                  # into this directory
"""


class WouldOverwrite(FlashmeshError):
    """Files are in the way. Choose another directory, or `--force` to overwrite them."""

    code = "WOULD_OVERWRITE"


@click.command(short_help="Write a small project to start from.", epilog=_EPILOG)
@click.argument("directory", metavar="[DIR]", default=".", type=click.Path(file_okay=False, path_type=Path))
@click.option("-f", "--force", is_flag=True, help="Overwrite files that are in the way.")
def init(directory: Path, force: bool) -> None:
    """Write a project into DIR (default: this directory): a CPU worker, a GPU worker, HTTP routes and a test."""
    written = write_project(directory, force=force)
    for path in written:
        click.echo(f"  {path}", err=True)
    enter = "" if directory.resolve() == Path.cwd() else f"cd {directory} && "
    click.echo(f"Wrote {len(written)} files. Next: {enter}flash run", err=True)


def write_project(directory: Path, *, force: bool = False) -> list[Path]:
    """Write the template's files; the paths written, relative to `directory`.

    Raises:
        WouldOverwrite: one of them exists and `force` is not set. Nothing was written then.
    """
    contents = {path: source.read_text(encoding="utf-8") for path, source in _template()}
    name = project_name(directory.resolve().name)
    taken = [path for path in contents if (directory / path).exists()]
    if taken and not force:
        listed = ", ".join(str(path) for path in taken)
        raise WouldOverwrite(f"{directory} has {listed} already. Choose another directory, or `--force` to overwrite.")
    for path, text in contents.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("{{name}}", name), encoding="utf-8")
    return list(contents)


def project_name(folder: str) -> str:
    """A name that pyproject.toml accepts, made of a directory's."""
    return re.sub(r"[^a-z0-9]+", "-", folder.lower()).strip("-") or "app"


def _template() -> list[tuple[Path, Traversable]]:
    found: list[tuple[Path, Traversable]] = []

    def walk(folder: Traversable, at: Path) -> None:
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                walk(entry, at / entry.name)
            elif entry.name.endswith(_SUFFIX):
                name = entry.name.removesuffix(_SUFFIX)
                found.append((at / ("." + name[4:] if name.startswith("dot_") else name), entry))

    walk(files("flashmesh.cli") / "template", Path())
    return found
