"""`flash undeploy`: take deployed resources down."""

from pathlib import Path

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.places import place_of, place_options, source_of

_EPILOG = """\b
Examples:
  flash undeploy gpu_worker
  flash undeploy --all --env staging -y
"""


@click.command(short_help="Take deployed resources down.", epilog=_EPILOG)
@click.argument("resources", metavar="[RESOURCE]...", nargs=-1)
@click.option("--all", "all_", is_flag=True, help="Everything of this app's environment, and of no other.")
@click.option("--wait", is_flag=True, help="Wait while another deployment of this environment runs.")
@click.option("-y", "--yes", is_flag=True, help="Ask nothing.")
@place_options
@verbose
def undeploy(
    resources: tuple[str, ...],
    all_: bool,
    wait: bool,
    yes: bool,
    app: str | None,
    environment: str | None,
    server: str | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Take RESOURCEs down: running calls finish, and their addresses answer no more."""
    set_up_logging(verbose)
    from flashmesh.cli.client import NothingDeployedHere, find_server
    from flashmesh.cli.deploying import confirmed, finish, follow, post

    if all_ == bool(resources):
        raise click.UsageError("Name resources, or say --all.")
    here = Path()
    place = place_of(here, app, environment)
    if all_ and not confirmed(f"Take down everything of {place}?", yes=yes, hint="Say -y to take down everything."):
        return
    client = find_server(server, none=NothingDeployedHere)
    body = {
        "app": place.app,
        "environment": place.environment,
        "resources": list(resources),
        "all": all_,
        "source": source_of(here),
    }
    begun = post(client, "/v1/undeploy", body, wait=wait)
    client, ended = follow(client, begun["id"])
    finish(client, place, ended, begun["plan"], as_json=as_json)
