"""`flash build`: pack a project into what a server, or any image, can serve."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.status import columns

if TYPE_CHECKING:
    from flashmesh.deploy.build import Built
    from flashmesh.functions.config import ResourceConfig
    from flashmesh.project.contents import LeftOut
    from flashmesh.project.model import FunctionSpec, Problem, ResourceSpec

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS: Final = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_SHOWN: Final = 8
_EPILOG = """\b
Examples:
  flash build                              # writes .flash/archive.tar.gz and .flash/manifest.json
  flash build my-app --exclude data,*.csv
  flash build --env-file prod.env          # names enter the manifest, values nothing
  flash build --json | jq -r .build
"""


class Size(click.ParamType[int]):
    """A number of bytes: `500MB`, `2 GB`, `1000000`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no size. Write it as 500MB or 2GB.", param, ctx)
        return int(float(found[1]) * _UNITS[found[2].lower()])


def read_env_file(path: Path) -> dict[str, str]:
    """The variables of an env file. Raises click.UsageError, with the line but never with a value."""
    from dotenv.parser import parse_stream

    values: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as file:
            for binding in parse_stream(file):
                if binding.error or (binding.key is not None and binding.value is None):
                    raise click.UsageError(f"{path}:{binding.original.line}: write it as NAME=value.")
                if binding.key is not None and binding.value is not None:
                    values[binding.key] = binding.value
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is not UTF-8 text.") from error
    return values


def split_patterns(given: Iterable[str]) -> tuple[str, ...]:
    """`--exclude a,b --exclude c` -> a, b, c."""
    return tuple(pattern.strip() for one in given for pattern in one.split(",") if pattern.strip())


@click.command(short_help="Pack the functions of DIR and all they need into one archive.", epilog=_EPILOG)
@click.argument(
    "directory", metavar="[DIR]", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--app", metavar="NAME", help="The app's name (default: FLASH_APP, flash.toml, pyproject.toml, the folder)."
)
@click.option(
    "--exclude", metavar="PATTERNS", multiple=True, help="Leave these out, as in a .gitignore; comma-separated."
)
@click.option(
    "--env-file",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Variables for every resource. Only their names are kept.",
)
@click.option("-o", "--output", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="The archive.")
@click.option(
    "--max-size", metavar="SIZE", type=Size(), default="500MB", show_default=True, help="Of all files packed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def build(
    directory: Path,
    app: str | None,
    exclude: tuple[str, ...],
    env_file: Path | None,
    output: Path | None,
    max_size: int,
    as_json: bool,
    verbose: bool,
) -> None:
    """Pack the functions of DIR (default: this directory) and all they need into one archive.

    Left out: hidden files, what .gitignore and .flashignore name, virtual environments, tests, caches, and secrets.
    """
    set_up_logging(verbose)
    import asyncio  # with what else it takes to build: `flash --help` imports this module

    from flashmesh.deploy import build as building

    env = read_env_file(env_file) if env_file is not None else {}
    try:
        built = asyncio.run(
            building.build(
                directory, app=app, exclude=split_patterns(exclude), env=env, out=output, limit_bytes=max_size
            )
        )
    except OSError as error:
        click.echo(f"Error: {error.filename or directory}: {error.strerror or error}. Nothing was built.", err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(describe(built), indent=2))
    else:
        click.echo(summary(built))
        tell_warnings(built.warnings)
        tell_left_out(built.left_out)
        click.echo(f"\nNext: flash deploy{'' if directory == Path() else f' {directory}'}", err=True)


def describe(built: "Built") -> dict[str, Any]:
    """The build as one JSON document. Values of environments are not in it."""
    from flashmesh.project.checks import sentences

    artifact = built.artifact
    return {
        "app": built.project.name,
        "build": artifact.build_id,
        "archive": str(artifact.path),
        "bytes": artifact.bytes,
        "files": artifact.files,
        "unpacked_bytes": artifact.unpacked_bytes,
        "largest": [{"path": path, "bytes": size} for path, size in artifact.largest],
        "resources": {
            resource.name: {
                "kind": _kind(resource),
                "file": resource.file,
                "functions": [function.id for function in resource.functions],
                "config_hash": built.manifest["resources"][resource.name]["config_hash"],
                "env": sorted(resource.config.worker_env),
            }
            for resource in built.project.resources
        },
        "warnings": sentences(built.warnings),
        "left_out": [{"path": one.path, "reason": one.reason} for one in built.left_out],
    }


def summary(built: "Built") -> str:
    """What was built, for people: a row per resource, its functions below, the size and the id."""
    from flashmesh.project.artifact import readable

    artifact = built.artifact
    rows = [("Resource", "Kind", "File", "Hardware", "Workers", "Functions")]
    for resource in built.project.resources:
        config, functions = resource.config, [_function(function) for function in resource.functions]
        cells = (resource.name, _kind(resource), resource.file, hardware(config), workers(config))
        rows.append((*cells, functions[0]))
        rows += [("", "", "", "", "", function) for function in functions[1:_SHOWN]]
        if len(functions) > _SHOWN:
            rows.append(("", "", "", "", "", f"and {len(functions) - _SHOWN} more"))
    head, *body = columns(rows).splitlines()
    build_id = click.style(artifact.build_id, bold=True)
    files = "1 file" if artifact.files == 1 else f"{artifact.files} files"
    return "\n".join(
        [
            f"Build {build_id} of {built.project.name}",
            "",
            click.style(f"  {head}", dim=True),
            *(f"  {row}" for row in body),
            "",
            f"{files}, {readable(artifact.unpacked_bytes)} → {_near(artifact.path)} ({readable(artifact.bytes)})",
        ]
    )


def hardware(config: "ResourceConfig") -> str:
    """`2 × ADA_24 or AMPERE_48`, `cpu3g-2-8`."""
    if config.cpus:
        return _either(config.cpus)
    count = f"{config.gpu_count} × " if config.gpu_count > 1 else ""
    return f"{count}{'any GPU' if config.gpus in ((), ('ANY',)) else _either(config.gpus)}"


def workers(config: "ResourceConfig") -> str:
    """`0-3`, and the mode where it is not the usual one."""
    return f"{config.workers_min}-{config.workers_max}" + ("" if config.mode == "WARM" else f" {config.mode}")


def tell_warnings(problems: Sequence["Problem"]) -> None:
    """On stderr, a line each."""
    from flashmesh.project.checks import sentences

    for line in sentences(problems):
        click.echo(f"{click.style('warning:', fg='yellow')} {line}", err=True)


def tell_left_out(left_out: Sequence["LeftOut"]) -> None:
    """On stderr: what looks as if it belonged to the project, by reason."""
    by_reason: dict[str, list[str]] = {}
    for one in left_out:
        by_reason.setdefault(one.reason, []).append(one.path)
    for reason, paths in by_reason.items():
        more = len(paths) - _SHOWN
        listed = ", ".join(paths[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        click.echo(f"Left out ({_PLURAL.get(reason, reason)}): {listed}", err=True)


_PLURAL: Final[Mapping[str, str]] = {
    "secret": "they look like secrets",
    "link out of the project": "links out of the project",
    "link to nothing": "links to nothing",
    "not a regular file": "not regular files",
    "not a usable name": "names that cannot be used",
}


def _kind(resource: "ResourceSpec") -> str:
    return "LB" if resource.is_load_balanced else "QB"


def _function(function: "FunctionSpec") -> str:
    if function.http_method:
        return f"{function.http_method} {function.http_path} → {function.name}"
    if function.kind == "class":
        return f"{function.name}({', '.join(method.name for method in function.methods)})"
    return function.name


def _either(names: Sequence[str], most: int = 2) -> str:
    more = len(names) - most
    return " or ".join(names[:most]) + (f" or {more} more" if more > 0 else "")


def _near(path: Path) -> str:
    """As it is typed from here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
