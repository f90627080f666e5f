"""What the commands that deploy share: the server they mean, an app's place, progress, and what serves at the end."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

import click

from flashmesh.cli import EXIT_FAILED, EXIT_INTERRUPTED
from flashmesh.cli.client import NoServer, Refused, ServerClient, find_server, path_name
from flashmesh.cli.places import Place
from flashmesh.functions.errors import FlashmeshError

F = Callable[..., Any]
LOST_LIMIT_S: Final = 60.0
"""How long a deployment is waited for whose server went away."""
OTHERS_START_S: Final = 5.0
"""How long a server is looked for that another command may be starting."""


# The server


def server_or_start(url: str | None) -> ServerClient:
    """The server that is meant; where none is named and none runs on this machine, one is started behind the terminal.

    Raises NoServer when the one that is named does not answer.
    """
    try:
        return find_server(url)
    except NoServer:
        if url:
            raise
    from flashmesh.cli.server import start_detached

    click.echo("No server answers on this machine: starting one.", err=True)
    try:
        address = start_detached()
    except FlashmeshError:
        found = _soon()
        if found is None:
            raise
        return found
    click.echo(f"flash server runs at {address}, behind this terminal. Stop it with `flash server stop`.", err=True)
    return find_server()


def _soon() -> ServerClient | None:
    """A server that somebody else was starting at the same moment."""
    until = time.monotonic() + OTHERS_START_S
    while time.monotonic() < until:
        try:
            return find_server()
        except NoServer:
            time.sleep(0.05)  # nobody tells us of its start
    return None


# Progress

_SIGNS: Final[Mapping[str, tuple[str, str]]] = {
    "deployed": ("+", "green"),
    "updated": ("~", "green"),
    "resized": ("~", "green"),
    "removed": ("-", "yellow"),
    "failed": ("x", "red"),
}


def follow(client: ServerClient, deployment: str, *, quiet: bool = False) -> tuple[ServerClient, dict[str, Any]]:
    """Tell a deployment's progress on stderr until it has ended; its document then, and where the server is now.

    A server that goes away meanwhile is waited for: it takes the deployment up again when it is back. Ctrl-C ends
    the command and not the deployment.
    """
    try:
        return _followed(client, deployment, quiet=quiet)
    except KeyboardInterrupt:
        click.echo(
            f"\nThe deployment {deployment} goes on on the server. `flash status` shows it; `flash rollback` takes it "
            "back.",
            err=True,
        )
        sys.exit(EXIT_INTERRUPTED)


def _followed(client: ServerClient, deployment: str, *, quiet: bool) -> tuple[ServerClient, dict[str, Any]]:
    path = f"/v1/deployments/{path_name(deployment)}/events"
    told: set[tuple[str, str]] = set()
    until = None
    while True:
        try:
            for name, data in client.events("GET", path):
                until = None
                document: dict[str, Any] = json.loads(data)
                if name == "end":
                    if document["status"] != "running":
                        return client, document
                    break
                if not quiet and (document["resource"], document["state"]) not in told:
                    told.add((document["resource"], document["state"]))
                    click.echo(progress_line(document), err=True)
        except (NoServer, Refused) as error:
            if isinstance(error, Refused) and error.http_status != 503:
                raise
            if until is None:
                until = time.monotonic() + LOST_LIMIT_S
                click.echo("The server went away; waiting for it to come back (Ctrl-C: stop waiting).", err=True)
            if time.monotonic() > until:
                raise FlashmeshError(
                    f"The server is away since a minute. The deployment {deployment} goes on when it is back: start it "
                    "with `flash server --detach`, then look with `flash status`."
                ) from error
        time.sleep(0.2)  # nobody tells us that a server is back
        client = _again(client)


def _again(client: ServerClient) -> ServerClient:
    """The same server, which may be back at another port of this machine."""
    if client.address.source != "this machine":
        return client
    try:
        return find_server()
    except NoServer:
        return client


def progress_line(event: Mapping[str, Any]) -> str:
    """`+ cpu deployed`."""
    sign, color = _SIGNS.get(event["state"], ("·", "cyan"))
    text = f"  {click.style(sign, fg=color)} {event['resource']} {event['state']}"
    return f"{text}: {event['error']}" if event.get("error") else text


# Plans


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """A plan for people: a line per resource, and below it what differs."""
    found = []
    for kind, sign, color in (("new", "+", "green"), ("changed", "~", "yellow"), ("removed", "-", "red")):
        for change in plan[kind]:
            was = f" (was {change['was_name']})" if change.get("was_name") else ""
            in_place = ", in place" if change.get("in_place") else ""
            found.append(f"  {click.style(sign, fg=color)} {change['name']}{was}  {kind}{in_place}")
            found += [f"      {line}" for line in change["lines"]]
    unchanged = len(plan["unchanged"])
    if unchanged:
        found.append(f"  = {unchanged} unchanged" if found else f"  nothing to do: {unchanged} unchanged")
    return found


def is_empty(plan: Mapping[str, Any]) -> bool:
    return not (plan["new"] or plan["changed"] or plan["removed"])


# The end


def finish(
    client: ServerClient, place: Place, document: Mapping[str, Any], plan: Mapping[str, Any], *, as_json: bool
) -> NoReturn:
    """Say what came of a deployment, and end with its exit code."""
    from flashmesh.cli.endpoints import endpoint_lines, environment_of

    environment = environment_of(client, place)
    if as_json:
        click.echo(json.dumps({**document, "plan": plan, "endpoints": environment["endpoints"]}, indent=2))
    else:
        took = f" in {document['tookMs'] / 1000:.2f} s" if document.get("tookMs") is not None else ""
        if document["status"] == "succeeded":
            what = {"deploy": "Deployed", "rollback": "Rolled back to", "undeploy": "Undeployed from"}[document["kind"]]
            build = f" build {document['build']} to" if document["kind"] == "deploy" else ""
            back = f" build {document['build']} in" if document["kind"] == "rollback" else ""
            click.echo(f"{what}{build}{back} {place}{took}.", err=True)
        else:
            click.echo(click.style(f"Error: {document['error'] or document['status']}", fg="red"), err=True)
        for line in endpoint_lines(environment):
            click.echo(line)
    sys.exit(0 if document["status"] == "succeeded" else EXIT_FAILED)


def running_deployment(refused: Refused) -> str | None:
    """The deployment that stands in the way of another, by its id."""
    body = refused.body
    if isinstance(body, dict) and body.get("error") == "DEPLOYMENT_RUNNING":
        for detail in body.get("details") or ():
            if str(detail).startswith("deployment: "):
                return str(detail).removeprefix("deployment: ")
    return None


def post(client: ServerClient, path: str, body: Mapping[str, Any], *, wait: bool = False) -> dict[str, Any]:
    """Ask for a change, with `wait` once nobody else's runs; the deployment that begins. Raises Refused."""
    while True:
        try:
            found: dict[str, Any] = client.send("POST", path, json.dumps(body).encode())
            return found
        except Refused as refused:
            running = running_deployment(refused)
            if running is None or not wait:
                raise
        click.echo(f"Another deployment ({running}) of this environment runs; waiting for it.", err=True)
        client, _ = follow(client, running, quiet=True)


def confirmed(question: str, *, yes: bool, hint: str) -> bool:
    """Whether to go on: asked where there is a terminal. Without one, `hint` names the option that says so."""
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(hint)
    return click.confirm(question, default=False, err=True)


def names_of(changes: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(change["name"]) for change in changes)
