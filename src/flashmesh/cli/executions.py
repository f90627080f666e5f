"""`flash executions`: what ran, what came of it, and another go."""

import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

import click

from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.functions.errors import FlashmeshError

STATUSES = ("queued", "running", "success", "error", "timeout", "cancelled")
_EPILOG = """\b
Examples:
  flash executions list --function hello --status error
  flash executions get 1f0c6c1e-…            # its record and its result
  flash executions cancel 1f0c6c1e-…
  flash executions retry 1f0c6c1e-…          # the same request again
"""


class Executions(Protocol):
    """Where executions are kept: a running `flash run`, or a server. Records as the functions API shows them."""

    def list(self, function: str | None, status: str | None, limit: int) -> list[dict[str, Any]]: ...

    def get(self, id: str) -> dict[str, Any]: ...

    def cancel(self, id: str) -> dict[str, Any]: ...

    def retry(self, id: str) -> dict[str, Any]: ...


class NoRetry(FlashmeshError):
    """`flash run` does not keep requests. Call the function again, or use `flash server`."""

    code = "NO_RETRY"


class OfServer:
    """Over HTTP."""

    def __init__(self, url: str | None) -> None:
        from flashmesh.cli.client import find_server

        self._client = find_server(url)

    def list(self, function: str | None, status: str | None, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        after: str | None = None
        while len(found) < limit:
            page = self._client.get(
                "/v1/executions", function=function, status=status, limit=min(limit - len(found), 100), after=after
            )
            found += page["executions"]
            after = page["next"]
            if after is None:
                break
        return found

    def get(self, id: str) -> dict[str, Any]:
        return dict(self._client.get(self._path(id)))

    def cancel(self, id: str) -> dict[str, Any]:
        return dict(self._client.send("DELETE", self._path(id)))

    def retry(self, id: str) -> dict[str, Any]:
        return dict(self._client.send("POST", self._path(id) + ":retry"))

    def _path(self, id: str) -> str:
        from flashmesh.cli.client import path_name

        return f"/v1/executions/{path_name(id)}"


class OfSession:
    """Over the link of the `flash run` of this directory."""

    def __init__(self) -> None:
        from flashmesh.cli.session import connect

        self._client, _ = connect()

    def list(self, function: str | None, status: str | None, limit: int) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {"limit": limit, "status": status}
        if function is not None:
            wanted["function"] = self._client.query("resolve", name=function)["function"]
        found = self._client.query("executions", **wanted)["executions"]
        return [shown_as_by_a_server(record) for record in found]

    def get(self, id: str) -> dict[str, Any]:
        return shown_as_by_a_server(self._client.query("execution", id=id, payload=True))

    def cancel(self, id: str) -> dict[str, Any]:
        return shown_as_by_a_server(self._client.query("cancel", id=id))

    def retry(self, id: str) -> dict[str, Any]:
        raise NoRetry


def shown_as_by_a_server(record: Mapping[str, Any]) -> dict[str, Any]:
    """A session's record with the functions API's names."""

    def moment(seconds: float | None) -> str | None:
        return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))

    body: dict[str, Any] = {
        "executionId": record["id"],
        "function": record["function"],
        "endpoint": record["endpoint"],
        "kind": record["kind"],
        "status": str(record["status"]).lower(),
        "createdAt": moment(record["created_at"]),
        "startedAt": moment(record["started_at"]),
        "finishedAt": moment(record["ended_at"]),
        "attempt": record["attempt"],
        "queueMs": record["queue_ms"],
        "runMs": record["run_ms"],
    }
    if record.get("worker"):
        body["worker"] = record["worker"]
    if record.get("error"):
        body["error"] = {key: value for key, value in record["error"].items() if value}
    payload = record.get("payload")
    if payload is not None and body["status"] == "success":
        try:
            body["output"] = json.loads(payload)
        except ValueError:
            body["output"] = f"{len(payload)} bytes of {record['content_type']}"
    return body


def _kept(server: str | None) -> Executions:
    from flashmesh.cli.session import find

    return OfServer(server) if server is not None or find() is None else OfSession()


_server = click.option("--server", metavar="URL", help="Of this server.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(short_help="Look at executions; cancel them, or run them again.", epilog=_EPILOG)
def executions() -> None:
    """Look at executions of the `flash run` of this directory; without one, of the server."""


@executions.command(
    "list", epilog="\b\nExamples:\n  flash executions list --status error --json | jq '.[].executionId'"
)
@click.option("--function", help="Of this function: an id, or a name that is unique.")
@click.option("--status", type=click.Choice(STATUSES), help="Those that stand so.")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@_json
@_server
@verbose
def list_executions(
    function: str | None, status: str | None, limit: int, as_json: bool, server: str | None, verbose: bool
) -> None:
    """Show executions, the newest first."""
    set_up_logging(verbose)
    from flashmesh.cli.status import columns

    found = _kept(server).list(function, status, limit)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    heads = ("Id", "Function", "Status", "Created", "Attempt", "Queue ms", "Run ms")
    rows = [
        (
            str(record["executionId"]),
            str(record["function"]),
            str(record["status"]),
            str(record["createdAt"]),
            str(record["attempt"]),
            f"{record['queueMs']:.1f}",
            f"{record['runMs']:.1f}",
        )
        for record in found
    ]
    click.echo(columns([heads, *rows]))


@executions.command(epilog="\b\nExamples:\n  flash executions get 1f0c6c1e-… --json | jq .output")
@click.argument("id")
@_json
@_server
@verbose
def get(id: str, as_json: bool, server: str | None, verbose: bool) -> None:
    """Show one execution with its result."""
    set_up_logging(verbose)
    _show(_kept(server).get(id), as_json=as_json)


@executions.command(epilog="\b\nExamples:\n  flash executions cancel 1f0c6c1e-…")
@click.argument("id")
@_json
@_server
@verbose
def cancel(id: str, as_json: bool, server: str | None, verbose: bool) -> None:
    """Stop an execution. One that has ended stays as it is."""
    set_up_logging(verbose)
    record = _kept(server).cancel(id)
    if record["status"] not in ("queued", "running", "cancelled"):
        click.echo(f"It had ended before ({record['status']}); nothing was cancelled.", err=True)
    _show(record, as_json=as_json)


@executions.command(
    short_help="Run an ended execution's request again.",
    epilog="\b\nExamples:\n  flash executions retry 1f0c6c1e-…",
)
@click.argument("id")
@_json
@_server
@verbose
def retry(id: str, as_json: bool, server: str | None, verbose: bool) -> None:
    """Run an ended execution's request again, as a new execution; prints its id."""
    set_up_logging(verbose)
    accepted = _kept(server).retry(id)
    if as_json:
        click.echo(json.dumps(accepted, indent=2))
    else:
        click.echo(accepted["executionId"])


def _show(record: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(record, indent=2, ensure_ascii=False))
        return
    width = max(len(name) for name in record)
    for name, value in record.items():
        if name == "error" and isinstance(value, dict):
            click.echo(f"{name:<{width}}  {value.get('type') or value.get('code')}: {value.get('message')}")
            if value.get("traceback"):
                click.echo(str(value["traceback"]).rstrip())
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            click.echo(f"{name:<{width}}  {text}")
