"""`flash deploy`: bring a directory's functions to a server, and see them serve."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.places import Place, place_of, place_options, source_of

if TYPE_CHECKING:
    from flashmesh.cli.client import ServerClient
    from flashmesh.deploy.build import Built

_EPILOG = """\b
Examples:
  flash deploy                               # this directory, to this machine's server
  flash deploy my-app --env staging
  flash deploy --env-file prod.env           # values of variables; only their names are shown
  flash deploy --server https://box.lan:7470
  flash deploy --json | jq -r '.endpoints[].url'
  flash rollback                             # take it back
"""

DIRECTORY = click.argument(
    "directory", metavar="[DIR]", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
_MISSING = frozenset({"BUILD_NOT_FOUND", "ARTIFACT_DAMAGED"})


def build_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--env-file`, `--exclude`."""
    for option in (
        click.option(
            "--exclude", metavar="PATTERNS", multiple=True, help="Leave these out, as in a .gitignore; comma-separated."
        ),
        click.option(
            "--env-file",
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Variables for every resource. Their values go to the server and are never shown.",
        ),
    ):
        command = option(command)
    return command


def _known_target(_context: click.Context, _option: click.Parameter, target: str) -> str:
    if target != "local":
        raise click.UsageError(
            f"There is no target {target!r}. There is `local`: endpoints run on the server's machine, which `--server` "
            "names. Leave out `--target`, and FLASH_TARGET."
        )
    return target


@click.command(short_help="Build DIR and serve it from a server; replace what changed.", epilog=_EPILOG)
@DIRECTORY
@build_options
@click.option(
    "--target",
    metavar="[local]",
    callback=_known_target,
    envvar="FLASH_TARGET",
    default="local",
    help="Where they run: `local`, the server's machine, is what there is.  [default: FLASH_TARGET, local]",
)
@click.option(
    "--allow-cpu", is_flag=True, envvar="FLASH_ALLOW_CPU", help="Serve GPU resources also where their GPU is not."
)
@click.option("--replace", is_flag=True, help="Also remove what was deployed from another directory.")
@click.option("--wait", is_flag=True, help="Wait while another deployment of this environment runs.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing.")
@place_options
@verbose
def deploy(
    directory: Path,
    app: str | None,
    environment: str | None,
    server: str | None,
    env_file: Path | None,
    exclude: tuple[str, ...],
    target: str,
    allow_cpu: bool,
    replace: bool,
    wait: bool,
    yes: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Build DIR (default: this directory) and serve it: what changed is replaced while calls go on.

    Where no server answers on this machine, one is started. Exit code 1: some resource failed; what served before
    serves on.
    """
    set_up_logging(verbose)
    import asyncio

    from flashmesh.cli.build import tell_warnings
    from flashmesh.cli.deploying import finish, follow, plan_lines, server_or_start

    place = place_of(directory, app, environment)
    built = asyncio.run(built_of(directory, place, env_file=env_file, exclude=exclude))
    tell_warnings(built.warnings)
    client = server_or_start(server)
    upload(client, place, built)
    body = {
        "app": place.app,
        "environment": place.environment,
        "build": built.artifact.build_id,
        "env": values_of(built),
        "source": source_of(directory),
        "replace": replace,
        "allowCpu": allow_cpu,
    }
    begun = _begin(client, place, built, body, wait=wait, yes=yes)
    click.echo(f"Deploying build {built.artifact.build_id} to {place}", err=True)
    for line in plan_lines(begun["plan"]):
        click.echo(line, err=True)
    client, ended = follow(client, begun["id"])
    finish(client, place, ended, begun["plan"], as_json=as_json)


async def built_of(directory: Path, place: Place, *, env_file: Path | None, exclude: tuple[str, ...]) -> "Built":
    """The directory's build, under the app's name. Raises what `deploy.build.build` raises."""
    from flashmesh.cli.build import read_env_file, split_patterns
    from flashmesh.deploy.build import build

    env = read_env_file(env_file) if env_file is not None else {}
    return await build(directory, app=place.app, exclude=split_patterns(exclude), env=env)


def values_of(built: "Built") -> dict[str, dict[str, str]]:
    """Values of environment variables of every resource, of those without any too: then it shall have none."""
    from flashmesh.project.identity import identity_of

    identities = [identity_of(entry) for entry in built.manifest["resources"].values()]
    return {identity: dict(built.env.get(identity, {})) for identity in identities}


def plan_body(built: "Built", place: Place) -> dict[str, Any]:
    """The body of `/v1/plan`."""
    return {
        "app": place.app,
        "environment": place.environment,
        "manifest": built.manifest,
        "env": values_of(built),
    }


def upload(client: "ServerClient", place: Place, built: "Built", *, again: bool = False) -> None:
    """Bring the artifact to the server, unless it is there. Raises Refused."""
    from flashmesh.cli.client import Refused, path_name

    artifact = built.artifact
    try:
        known = [] if again else client.get("/v1/builds", app=place.app)
    except Refused as refused:
        if refused.http_status != 404:
            raise
        known = []
    if any(build["id"] == artifact.build_id for build in known):
        return
    path = f"/v1/builds/{artifact.build_id}/artifact?app={path_name(place.app)}"
    client.upload(path, artifact.path)


def _begin(
    client: "ServerClient", place: Place, built: "Built", body: dict[str, Any], *, wait: bool, yes: bool
) -> dict[str, Any]:
    from flashmesh.cli.client import Refused
    from flashmesh.cli.deploying import confirmed, post

    try:
        return post(client, "/v1/deployments", body, wait=wait)
    except Refused as refused:
        word = refused.body.get("error") if isinstance(refused.body, dict) else None
        if word in _MISSING:
            upload(client, place, built, again=True)
        elif word == "REPLACE_NEEDED":
            click.echo(str(refused), err=True)
            if not confirmed("Remove them?", yes=yes, hint="Say `--replace` to remove them, or name another `--app`."):
                sys.exit(1)
            body = {**body, "replace": True}
        else:
            raise
    return post(client, "/v1/deployments", body, wait=wait)
