"""`flash plan`: what a deploy would change, before it happens."""

import json
from pathlib import Path

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.deploy import DIRECTORY, build_options, built_of, plan_body
from flashmesh.cli.places import place_of, place_options

_EPILOG = """\b
Examples:
  flash plan
  flash plan my-app --env staging
  flash plan --json | jq .plan.changed
"""


@click.command(short_help="Show what `flash deploy` would change.", epilog=_EPILOG)
@DIRECTORY
@build_options
@place_options
@verbose
def plan(
    directory: Path,
    app: str | None,
    environment: str | None,
    server: str | None,
    env_file: Path | None,
    exclude: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Show what `flash deploy` would change: new, changed, removed and unchanged resources, and what differs."""
    set_up_logging(verbose)
    import asyncio

    from flashmesh.cli.client import NoServer, find_server
    from flashmesh.cli.deploying import is_empty, plan_lines

    place = place_of(directory, app, environment)
    built = asyncio.run(built_of(directory, place, env_file=env_file, exclude=exclude))
    try:
        document = find_server(server).send("POST", "/v1/plan", json.dumps(plan_body(built, place)).encode())
    except NoServer:
        if server:
            raise
        from flashmesh.gateway.deployments.documents import plan_document
        from flashmesh.project.plan import plan as planned

        click.echo("No server answers, so nothing is deployed here: everything is new.", err=True)
        found = plan_document(planned(None, built.manifest, {}))
        document = {"app": place.app, "environment": place.environment, "plan": found}
    if as_json:
        click.echo(json.dumps({**document, "build": built.artifact.build_id}, indent=2))
        return
    click.echo(f"{place}: build {built.artifact.build_id}")
    for line in plan_lines(document["plan"]):
        click.echo(line)
    if not is_empty(document["plan"]):
        click.echo("\nNext: flash deploy", err=True)
