"""`flash status`: endpoints, workers and queues of the running session."""

import json
from collections.abc import Sequence
from typing import Any

import click

from flashmesh.cli.commands import set_up_logging, verbose

_COLUMNS = ("Endpoint", "Kind", "State", "Workers", "Running", "Queued", "File")
_EPILOG = """\b
Examples:
  flash status
  flash status --json | jq '.endpoints'
"""


@click.command(epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def status(as_json: bool, verbose: bool) -> None:
    """Show what the `flash run` of this directory serves."""
    set_up_logging(verbose)
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
