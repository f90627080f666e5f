"""`flash env`: environments of apps, and what serves in them."""

import json
from collections.abc import Mapping
from typing import Any

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.state_client import (
    StateClient,
    confirmed,
    json_option,
    last_deployment,
    server_option,
    state_word,
    when,
    yes_option,
)

_SHOWN_DEPLOYMENTS = 10
_EPILOG = """\b
Examples:
  flash env list
  flash env get production
  flash env create staging --app shop
  flash env delete staging             # after `flash undeploy --all --env staging`
"""
app_option = click.option("--app", help="The app; default: FLASH_APP, this directory's, or the only one.")


@click.group(epilog=_EPILOG)
def env() -> None:
    """Environments of apps. `flash deploy --env NAME` makes one by itself."""


@env.command(
    "list",
    short_help="Show environments, and how each stands.",
    epilog="\b\nExamples:\n  flash env list --app shop\n  flash env list --json | jq -r '.[].name'",
)
@click.option("--app", help="Only this app's.")
@server_option
@json_option
@verbose
def list_environments(app: str | None, url: str | None, as_json: bool, verbose: bool) -> None:
    """Show environments: what each was brought to last, and how it stands."""
    set_up_logging(verbose)
    client = StateClient(url)
    apps = [client.app(app)] if app else client.apps()
    found = [(one["name"], environment) for one in apps for environment in one["flashEnvironments"]]
    if as_json:
        click.echo(json.dumps([_document(name, one) for name, one in found], indent=2))
        return
    if not found:
        click.echo("No environments yet. `flash deploy` makes one.", err=True)
        return
    from flashmesh.cli.status import columns

    rows = [
        (
            name,
            one["name"],
            state_word(one),
            one["activeBuildId"] or "-",
            str(len(one["endpoints"])),
            last_deployment(one),
        )
        for name, one in found
    ]
    click.echo(columns([("App", "Environment", "State", "Build", "Resources", "Last deployment"), *rows]))


@env.command(epilog="\b\nExamples:\n  flash env create staging --app shop")
@click.argument("name")
@app_option
@server_option
@json_option
@verbose
def create(name: str, app: str | None, url: str | None, as_json: bool, verbose: bool) -> None:
    """Make an environment. `flash deploy --env NAME` does it by itself."""
    set_up_logging(verbose)
    client = StateClient(url)
    meant = client.app(client.app_meant(app))
    document = """
        mutation($input: CreateFlashEnvironmentInput!) {
            createFlashEnvironment(input: $input) { id name createdAt }
        }
    """
    made = client.ask(document, input={"flashAppId": meant["id"], "name": name})["createFlashEnvironment"]
    if as_json:
        told = {"id": made["id"], "app": meant["name"], "name": made["name"], "created": made["createdAt"]}
        click.echo(json.dumps(told, indent=2))
        return
    click.echo(
        f"Made the environment {meant['name']}/{made['name']} ({made['id']}). "
        f"Deploy to it: `flash deploy --app {meant['name']} --env {made['name']}`.",
        err=True,
    )


@env.command(
    short_help="Show what serves in an environment.",
    epilog="\b\nExamples:\n  flash env get production --app shop --json",
)
@click.argument("name", default="production")
@app_option
@server_option
@json_option
@verbose
def get(name: str, app: str | None, url: str | None, as_json: bool, verbose: bool) -> None:
    """Show an environment: what serves in it, and its latest deployments."""
    set_up_logging(verbose)
    client = StateClient(url)
    meant = client.app_meant(app)
    found = client.environment(meant, name)
    if as_json:
        click.echo(json.dumps(_document(meant, found), indent=2))
        return
    from flashmesh.cli.status import columns

    build = f"  build {found['activeBuildId']}" if found["activeBuildId"] else ""
    click.echo(f"{meant}/{found['name']}  {found['id']}  {state_word(found)}{build}")
    if found["endpoints"]:
        click.echo()
        rows = [(one["name"], one["status"] or "-", one["id"], one["url"] or "-") for one in found["endpoints"]]
        click.echo(columns([("Resource", "Status", "Endpoint", "Address"), *rows]))
    for one in found["endpoints"]:
        if one["error"]:
            click.echo(f"\n{one['name']}: {one['error']}")
    if found["flashDeployments"]:
        click.echo()
        deployments = [
            (
                f"#{one['number']}",
                one["kind"],
                one["status"],
                one["flashBuildId"] or "-",
                when(one["startedAt"]),
                one["by"] or "-",
            )
            for one in found["flashDeployments"][:_SHOWN_DEPLOYMENTS]
        ]
        click.echo(columns([("Deployment", "Kind", "Status", "Build", "Begun", "By"), *deployments]))


@env.command(epilog="\b\nExamples:\n  flash env delete staging --app shop -y")
@click.argument("name")
@app_option
@yes_option
@server_option
@json_option
@verbose
def delete(name: str, app: str | None, yes: bool, url: str | None, as_json: bool, verbose: bool) -> None:
    """Remove an environment and what is remembered of its deployments. Refused while something is deployed there."""
    set_up_logging(verbose)
    client = StateClient(url)
    meant = client.app_meant(app)
    found = client.environment(meant, name)
    confirmed(f"Delete the environment {meant}/{name}?", yes)
    client.ask("mutation($id: String!) { deleteFlashEnvironment(flashEnvironmentId: $id) }", id=found["id"])
    if as_json:
        click.echo(json.dumps({"deleted": f"{meant}/{name}"}))
    else:
        click.echo(f"Deleted the environment {meant}/{name}.", err=True)


def _document(app: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """An environment; in a list of them with its last deployment only."""
    return {
        "id": found["id"],
        "app": app,
        "name": found["name"],
        "state": state_word(found),
        "created": found["createdAt"],
        "build": found["activeBuildId"],
        "resources": [
            {key: one[key] for key in ("name", "status", "error", "url")} | {"endpoint": one["id"]}
            for one in found["endpoints"]
        ],
        "deployments": [
            {
                "id": one["id"],
                "number": one["number"],
                "kind": one["kind"],
                "build": one["flashBuildId"],
                "status": one["status"],
                "error": one["error"],
                "by": one["by"],
                "started": one["startedAt"],
                "finished": one["finishedAt"],
            }
            for one in found["flashDeployments"]
        ],
    }
