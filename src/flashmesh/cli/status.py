"""`flash status`: endpoints, workers and queues of the running session, or of a server."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from flashmesh.cli.commands import set_up_logging, verbose

if TYPE_CHECKING:
    from flashmesh.cli.client import ServerClient

_COLUMNS = ("Endpoint", "Kind", "State", "Workers", "Running", "Queued", "File")
_SERVER_COLUMNS = ("Endpoint", "Mode", "State", "Workers", "Running", "Queued", "Completed", "Failed")
_EPILOG = """\b
Examples:
  flash status
  flash status --app shop --env staging      # of a server: endpoints, addresses, a curl line per function
  flash status --server http://localhost:7470
  flash status --json | jq '.endpoints'
"""


@click.command(short_help="Show what is served: endpoints, workers, queues.", epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--server", metavar="URL", help="Of this server.")
@click.option("--app", metavar="NAME", help="Only this app of the server.")
@click.option("--env", "environment", metavar="NAME", help="Only this environment of the server's apps.")
@verbose
def status(as_json: bool, server: str | None, app: str | None, environment: str | None, verbose: bool) -> None:
    """Show what the `flash run` of this directory serves; without one, what the server does, by environment."""
    set_up_logging(verbose)
    from flashmesh.cli.session import find

    if server is not None or app is not None or environment is not None or find() is None:
        _of_server(server, app, environment, as_json=as_json)
    else:
        _of_session(as_json=as_json)


def _of_session(*, as_json: bool) -> None:
    from flashmesh.cli.session import connect

    client, session = connect()
    try:
        project, queues = client.query("project"), client.query("status")
    finally:
        client.close()
    document = describe(project, queues)
    document["session"] = {"pid": session.pid, "url": session.url, "started_at": session.started_at}
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"flash run  {session.url or ''}  pid {session.pid}, since {session.started_at}\n")
    rows = [tuple(str(endpoint[column.lower()]) for column in _COLUMNS) for endpoint in document["endpoints"]]
    click.echo(columns([_COLUMNS, *rows]))
    for endpoint in document["endpoints"]:
        if not endpoint["forkable"]:
            click.echo(f"{endpoint['endpoint']}: workers are started afresh, not forked: {endpoint['reason']}")
    for problem in document["problems"]:
        place = problem["file"] if problem["line"] is None else f"{problem['file']}:{problem['line']}"
        click.echo(f"{problem['severity']}: {place}: {problem['reason']}")


def _of_server(server: str | None, app: str | None, environment: str | None, *, as_json: bool) -> None:
    from flashmesh.cli.client import find_server

    client = find_server(server)
    environments = _environments(client, app, environment)
    others = describe_others(client) if app is None and environment is None else {"endpoints": []}
    document = {"server": client.address.url, **others, "environments": environments}
    if as_json:
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"flash server  {client.address.url}")
    _print_environments(environments)
    if document["endpoints"] or not environments:
        click.echo()
        rows = [tuple(str(one[column.lower()]) for column in _SERVER_COLUMNS) for one in document["endpoints"]]
        click.echo(columns([_SERVER_COLUMNS, *rows]))
    for endpoint in document["endpoints"]:
        if endpoint["error"]:
            click.echo(f"error: {endpoint['endpoint']}: {endpoint['error']}")


def _environments(client: "ServerClient", app: str | None, environment: str | None) -> list[dict[str, Any]]:
    """What is deployed, by app and environment. Raises Refused for an app or environment that is not there."""
    from flashmesh.cli.client import Refused
    from flashmesh.cli.endpoints import environment_of
    from flashmesh.cli.places import Place

    try:
        places = client.get("/v1/environments", app=app)["environments"]
    except Refused as refused:
        if refused.http_status in (401, 403) and app is None:
            return []  # with a token that may not look at them, the endpoints it may call are shown all the same
        raise
    found = []
    for place in places:
        if environment in (None, place["environment"]):
            serving = environment_of(client, Place(place["app"], place["environment"]))
            found.append({**serving, "running": place["running"]})
    if environment is not None and not found:
        raise Refused(f"There is no environment {environment!r}. `flash env list` shows them.", status=404, body=None)
    return found


def _print_environments(environments: Sequence[Mapping[str, Any]]) -> None:
    from flashmesh.cli.endpoints import endpoint_lines

    for one in environments:
        build = f"  build {one['build']}" if one["build"] else ""
        running = f"  deployment {one['running']} runs" if one["running"] else ""
        click.echo(f"\n{click.style(one['app'] + '/' + one['environment'], bold=True)}{build}{running}")
        lines = endpoint_lines(one)
        for line in lines[1:] or ["  nothing is deployed here"]:
            click.echo(line)


def describe_others(client: "ServerClient") -> dict[str, Any]:
    """What the server serves beside deployments: a project of its own, and functions made by POST."""
    from flashmesh.cli.client import path_name

    everything = client.get("/v1/functions")
    functions = [function for function in everything if "environment" not in function]
    names = sorted({str(function.get("endpoint") or function["name"]) for function in functions})
    deployed = {function.get("resource") for function in everything if function.get("environment") == "production"}
    health = {}
    for name in names:
        status, found = client.exchange("GET", f"/v2/{path_name(name)}/health")
        if status == 200 and name not in deployed:  # else the name is the deployment's, which is shown with the others
            health[name] = found
    _, readiness = client.exchange("GET", "/readyz")
    reasons = readiness.get("reasons", []) if isinstance(readiness, dict) else []
    return describe_server(functions, health, reasons)


def describe_server(
    functions: Sequence[Mapping[str, Any]],
    health: Mapping[str, Mapping[str, Any]],
    reasons: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """One row per endpoint, from what the server says of functions, of each endpoint's health and of its readiness."""
    broken = {reason["endpoint"]: reason.get("message") or reason["code"] for reason in reasons}
    endpoints = []
    for name, found in health.items():
        own = [function for function in functions if (function.get("endpoint") or function["name"]) == name]
        jobs, workers = found["jobs"], found["workers"]
        state = "failed" if name in broken else "ready" if workers["ready"] else "cold"
        endpoints.append(
            {
                "endpoint": name,
                "mode": own[0].get("executionMode", "WARM"),
                "state": "starting" if state == "cold" and workers["initializing"] else state,
                "workers": workers["ready"],
                "running": jobs["inProgress"],
                "queued": jobs["inQueue"],
                "completed": jobs["completed"],
                "failed": jobs["failed"],
                "functions": [function["name"] for function in own],
                "error": broken.get(name),
            }
        )
    return {"endpoints": endpoints}


def describe(project: dict[str, Any], queues: dict[str, Any]) -> dict[str, Any]:
    """One row per resource, from what the session says of the project and of its queues. Pure."""
    live = queues["endpoints"]
    endpoints = []
    for name, resource in sorted(project["resources"].items()):
        counts = live.get(name, {})
        endpoints.append(
            {
                "endpoint": name,
                "kind": resource["kind"],
                "state": _state(resource, counts),
                "workers": counts.get("workers", 0),
                "running": counts.get("running", 0),
                "queued": counts.get("queued", 0),
                "file": resource["file"],
                "mode": counts.get("mode", "WARM"),
                "build": counts.get("build", ""),
                "forkable": counts.get("forkable", True),
                "reason": counts.get("reason", ""),
                "processes": counts.get("processes", []),
                "missing": resource["missing"],
                "error": resource["error"],
            }
        )
    problems = list(project["problems"])
    for endpoint in endpoints:
        error = endpoint["error"]
        if error and not any(problem["file"] == error.get("file") for problem in problems):
            found = {"file": error.get("file") or endpoint["file"], "line": error.get("line"), "severity": "error"}
            problems.append({**found, "reason": error.get("reason", "")})
    return {"endpoints": endpoints, "problems": problems}


def _state(resource: dict[str, Any], counts: dict[str, Any]) -> str:
    """What is said of the import when it failed, else how far its workers are. HTTP routes run in the server."""
    if resource["kind"] == "LB":
        return "server"
    if resource["state"] in ("import_failed", "environment_failed"):
        return str(resource["state"])
    if counts.get("state") == "ready" or resource["state"] == "cold":
        return str(counts.get("state", "cold"))
    return "warm"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as text, every column as wide as its widest cell."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows
    )
