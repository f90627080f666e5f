"""`flash app`: the apps that a server knows."""

import json
from typing import Any

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.cli.state_client import (
    StateClient,
    confirmed,
    counted,
    json_option,
    last_deployment,
    server_option,
    size,
    state_word,
    when,
    yes_option,
)

_EPILOG = """\b
Examples:
  flash app list
  flash app get shop
  flash app delete shop            # after `flash undeploy --all` in each environment
"""


@click.group(epilog=_EPILOG)
def app() -> None:
    """Apps that a server knows. `flash deploy` makes one by itself."""


@app.command("list", epilog="\b\nExamples:\n  flash app list --json | jq -r '.[].name'")
@server_option
@json_option
@verbose
def list_apps(url: str | None, as_json: bool, verbose: bool) -> None:
    """Show all apps, with their environments."""
    set_up_logging(verbose)
    found = StateClient(url).apps()
    if as_json:
        click.echo(json.dumps([_document(one) for one in found], indent=2))
        return
    if not found:
        click.echo("No apps yet. `flash deploy` in a project's directory makes one.", err=True)
        return
    from flashmesh.cli.status import columns

    rows = [
        (
            one["name"],
            ", ".join(environment["name"] for environment in one["flashEnvironments"]) or "-",
            str(len(one["flashBuilds"])),
            when(one["createdAt"]),
        )
        for one in found
    ]
    click.echo(columns([("App", "Environments", "Builds", "Made"), *rows]))


@app.command(epilog="\b\nExamples:\n  flash app create shop")
@click.argument("name")
@server_option
@json_option
@verbose
def create(name: str, url: str | None, as_json: bool, verbose: bool) -> None:
    """Make an app. `flash deploy` does it by itself."""
    set_up_logging(verbose)
    document = "mutation($input: CreateFlashAppInput!) { createFlashApp(input: $input) { id name createdAt } }"
    made = StateClient(url).ask(document, input={"name": name})["createFlashApp"]
    if as_json:
        click.echo(json.dumps({"id": made["id"], "name": made["name"], "created": made["createdAt"]}, indent=2))
        return
    click.echo(
        f"Made the app {made['name']} ({made['id']}). Deploy to it: `flash deploy --app {made['name']}`.", err=True
    )


@app.command(
    epilog="\b\nExamples:\n  flash app get            # the app of this directory\n  flash app get shop --json"
)
@click.argument("name", required=False)
@server_option
@json_option
@verbose
def get(name: str | None, url: str | None, as_json: bool, verbose: bool) -> None:
    """Show an app: its environments and its builds. Default: the app of this directory."""
    set_up_logging(verbose)
    client = StateClient(url)
    found = client.app(client.app_meant(name))
    if as_json:
        click.echo(json.dumps(_document(found), indent=2))
        return
    from flashmesh.cli.status import columns

    click.echo(f"{found['name']}  {found['id']}  made {when(found['createdAt'])}")
    environments = [
        (
            one["name"],
            state_word(one),
            one["activeBuildId"] or "-",
            str(len(one["endpoints"])),
            last_deployment(one),
        )
        for one in found["flashEnvironments"]
    ]
    if environments:
        click.echo()
        click.echo(columns([("Environment", "State", "Build", "Resources", "Last deployment"), *environments]))
    builds = [(one["id"], size(one["bytes"]), when(one["createdAt"])) for one in found["flashBuilds"]]
    if builds:
        click.echo()
        click.echo(columns([("Build", "Size", "Made"), *builds]))


@app.command(epilog="\b\nExamples:\n  flash app delete shop -y")
@click.argument("name")
@yes_option
@server_option
@json_option
@verbose
def delete(name: str, yes: bool, url: str | None, as_json: bool, verbose: bool) -> None:
    """Remove an app with its environments and builds. Refused while something of it is deployed."""
    set_up_logging(verbose)
    client = StateClient(url)
    found = client.app(name)
    environments, builds = len(found["flashEnvironments"]), len(found["flashBuilds"])
    confirmed(f"Delete the app {name} with {counted(environments, 'environment')} and {counted(builds, 'build')}?", yes)
    client.ask("mutation($id: String!) { deleteFlashApp(flashAppId: $id) }", id=found["id"])
    if as_json:
        click.echo(json.dumps({"deleted": name}))
    else:
        click.echo(f"Deleted the app {name}.", err=True)


def _document(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": found["id"],
        "name": found["name"],
        "created": found["createdAt"],
        "environments": [
            {
                "id": one["id"],
                "name": one["name"],
                "state": state_word(one),
                "build": one["activeBuildId"],
                "resources": len(one["endpoints"]),
            }
            for one in found["flashEnvironments"]
        ],
        "builds": [
            {"id": one["id"], "bytes": int(one["bytes"]), "created": one["createdAt"]} for one in found["flashBuilds"]
        ],
    }
