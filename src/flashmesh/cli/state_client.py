"""What `flash app` and `flash env` share: questions to a server's State Manager, and how its answers are shown."""

import os
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from flashmesh.cli import EXIT_USAGE
from flashmesh.functions.errors import FlashmeshError

_ENVIRONMENT = """
    id name state createdAt activeBuildId
    endpoints { id name url status error }
"""
_DEPLOYMENT = "id number kind flashBuildId status error by startedAt finishedAt"
ENVIRONMENT_FIELDS = f"{_ENVIRONMENT} flashDeployments {{ {_DEPLOYMENT} }}"
APP_FIELDS = f"""
    id name createdAt
    flashEnvironments {{ {_ENVIRONMENT} flashDeployments(limit: 1) {{ {_DEPLOYMENT} }} }}
    flashBuilds {{ id createdAt bytes }}
"""


class StateRefused(FlashmeshError):
    """The State Manager refused."""

    code = "REFUSED"


class AppUnclear(FlashmeshError):
    """Several apps could be meant. Name one with --app."""

    code = "APP_UNCLEAR"


class StateClient:
    """GraphQL over the server that commands of this directory mean, or of `url`."""

    def __init__(self, url: str | None) -> None:
        from flashmesh.cli.client import NothingDeployedHere, find_server

        self._client = find_server(url, none=NothingDeployedHere)

    def ask(self, document: str, **variables: Any) -> Any:
        """The data. Raises StateRefused with what the server says, Refused, NoServer."""
        import json

        from flashmesh.cli.client import Refused, message_of

        body = json.dumps({"query": document, "variables": variables}).encode()
        status, answer = self._client.exchange("POST", "/graphql", body)
        errors = answer.get("errors") if isinstance(answer, Mapping) else None
        if errors:
            raise StateRefused(str(errors[0].get("message")))
        if status >= 400:
            raise Refused(message_of(answer, status), status=status, body=answer)
        return answer["data"]

    def apps(self) -> list[dict[str, Any]]:
        """With their environments and builds."""
        return list(self.ask(f"{{ flashApps {{ {APP_FIELDS} }} }}")["flashApps"])

    def app(self, name: str) -> dict[str, Any]:
        document = f"query($name: String!) {{ flashAppByName(flashAppName: $name) {{ {APP_FIELDS} }} }}"
        return dict(self.ask(document, name=name)["flashAppByName"])

    def environment(self, app: str, name: str) -> dict[str, Any]:
        document = f"""
            query($input: FlashEnvironmentByNameInput!) {{
                flashEnvironmentByName(input: $input) {{ {ENVIRONMENT_FIELDS} }}
            }}
        """
        return dict(self.ask(document, input={"flashAppName": app, "name": name})["flashEnvironmentByName"])

    def app_meant(self, given: str | None) -> str:
        """`given` (--app), else FLASH_APP, else this directory's app if the server knows it, else the only one.

        Raises AppUnclear.
        """
        if given or os.environ.get("FLASH_APP"):
            return given or os.environ["FLASH_APP"]
        from flashmesh.project.appname import app_name

        known = [str(app["name"]) for app in self.ask("{ flashApps { name } }")["flashApps"]]
        here = app_name(Path.cwd())
        if here in known:
            return here
        if len(known) == 1:
            return known[0]
        if not known:
            raise AppUnclear("The server has no app yet. Make one with `flash app create NAME`, or `flash deploy`.")
        raise AppUnclear(f"Name the app with --app: there are {', '.join(known)}.")


def when(text: str | None) -> str:
    """A moment in this machine's time, to the minute."""
    if not text:
        return "-"
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def state_word(environment: Mapping[str, Any]) -> str:
    return str(environment["state"]).lower()


def last_deployment(environment: Mapping[str, Any]) -> str:
    """Of an environment, in a few words."""
    for one in environment["flashDeployments"]:
        return f"#{one['number']} {one['kind']} {one['status']}, {when(one['startedAt'])}"
    return "-"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def confirmed(question: str, yes: bool) -> None:
    """Ask, unless `yes` (-y). Without a terminal nothing is asked: the flag has to be there. Leaves when it is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        click.echo(f"Error: {question} Say so with -y.", err=True)
        sys.exit(EXIT_USAGE)
    click.confirm(question, abort=True, err=True)


server_option = click.option(
    "--server", "url", metavar="URL", help="The server; default: FLASH_SERVER, `flash login`, this machine's."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
