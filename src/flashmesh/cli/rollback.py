"""`flash rollback`: what an earlier deployment made of an environment serves again."""

from pathlib import Path

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.places import place_of, place_options, source_of

_EPILOG = """\b
Examples:
  flash rollback                  # to what served before the last deployment
  flash rollback 1f0c22ab3d44     # to that build
  flash rollback --env staging
"""


@click.command(short_help="Bring an environment back to an earlier deployment.", epilog=_EPILOG)
@click.argument("build", required=False)
@click.option("--wait", is_flag=True, help="Wait while another deployment of this environment runs.")
@place_options
@verbose
def rollback(
    build: str | None,
    wait: bool,
    app: str | None,
    environment: str | None,
    server: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Bring an environment back to its deployment before the last, or to BUILD, values of variables included."""
    set_up_logging(verbose)
    from flashmesh.cli.client import NothingDeployedHere, find_server
    from flashmesh.cli.deploying import finish, follow, plan_lines, post

    here = Path()
    place = place_of(here, app, environment)
    client = find_server(server, none=NothingDeployedHere)
    body = {
        "app": place.app,
        "environment": place.environment,
        "build": build,
        "rollback": True,
        "source": source_of(here),
    }
    begun = post(client, "/v1/deployments", body, wait=wait)
    click.echo(f"Rolling {place} back to build {begun['build']}", err=True)
    for line in plan_lines(begun["plan"]):
        click.echo(line, err=True)
    client, ended = follow(client, begun["id"])
    finish(client, place, ended, begun["plan"], as_json=as_json)
