"""`flash token`: who else may use the server of this machine."""

import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flashmesh.cli.commands import set_up_logging, verbose

if TYPE_CHECKING:
    from flashmesh.gateway.access.register import Issued

_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_EPILOG = """\b
Examples:
  flash token create ci                                  # may call, for 90 days
  flash token create deployer --scope admin --expires 1d
  flash token create prometheus --scope metrics --expires never
  flash token list
  flash token revoke ci
"""


def _lifetime(_ctx: click.Context, _option: click.Parameter, text: str) -> float | None:
    """Seconds, or None for ever."""
    if text == "never":
        return None
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise click.BadParameter(f"{text!r} is no lifetime. Say for example 90d, 12h, 30m, 2w, or never.")
    return float(int(found[1]) * _UNITS[found[2]])


@click.group(epilog=_EPILOG)
def token() -> None:
    """Make, list and revoke tokens of this machine's server.

    They are signed with this machine's key, so no server needs to run; a running one notices a revocation at once.
    """


@token.command(epilog="\b\nExamples:\n  flash token create ci --scope call --app shop --expires 90d")
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["call", "admin", "metrics"]),
    default="call",
    show_default=True,
    help="What it may do: call functions and read; all, deploying included; read /metrics.",
)
@click.option("--app", default="", help="Count for this app only.")
@click.option("--env", "environment", default="", help="Count for this environment only.")
@click.option(
    "--expires",
    callback=_lifetime,
    metavar="90d|12h|never",
    default="90d",
    show_default=True,
    help="How long it is valid.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def create(
    name: str, scope: Any, app: str, environment: str, expires: float | None, as_json: bool, verbose: bool
) -> None:
    """Make a token and print it. It is shown this once and not kept."""
    set_up_logging(verbose)
    from flashmesh.gateway.access.keys import TokenKeys
    from flashmesh.gateway.access.register import Register, check_name

    check_name(name)
    folder = _folder()
    text, claims = TokenKeys.open(folder).issue(name, scope, lifetime_s=expires, app=app, environment=environment)
    issued = Register(folder).add(claims)
    if as_json:
        click.echo(json.dumps({**_document(issued), "token": text}, indent=2))
        return
    until = "does not expire" if not issued.expires else f"is valid until {_moment(issued.expires)}"
    click.echo(f"The token {name} ({scope}) {until}. Keep it safe: it is not shown again.", err=True)
    click.echo(text)


@token.command("list", epilog="\b\nExamples:\n  flash token list --json | jq '.[].name'")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def list_tokens(as_json: bool, verbose: bool) -> None:
    """Show the tokens that were made on this machine, not their texts."""
    set_up_logging(verbose)
    from flashmesh.cli.status import columns

    documents = [_document(issued) for issued in _tokens(_folder())]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
        return
    heads = ("Name", "Id", "Scope", "App", "Environment", "State", "Made", "Expires")
    rows = [
        (
            *(str(document[key] or "-") for key in ("name", "id", "scope", "app", "environment", "state")),
            document["issued"][:10],
            (document["expires"] or "never")[:10],
        )
        for document in documents
    ]
    click.echo(columns([heads, *rows]))


@token.command(epilog="\b\nExamples:\n  flash token revoke ci")
@click.argument("name", metavar="NAME|ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def revoke(name: str, as_json: bool, verbose: bool) -> None:
    """Refuse a token from now on. `admin`, this machine's own, is replaced by a new one."""
    set_up_logging(verbose)
    from flashmesh.gateway.access.keys import ADMIN_NAME, TokenKeys, admin_token, renew_admin_token
    from flashmesh.gateway.access.register import Register

    folder = _folder()
    register = Register(folder)
    keys = TokenKeys.open(folder)
    _, own = admin_token(folder, keys)
    if name in (ADMIN_NAME, own.jti):
        issued = register.revoke_claims(own)
        renew_admin_token(folder, keys)
    else:
        issued = register.revoke(name)
    if as_json:
        click.echo(json.dumps(_document(issued), indent=2))
    else:
        click.echo(f"Revoked {issued.name} ({issued.id}).", err=True)


def _folder() -> Path:
    from flashmesh.kit.home import flash_home
    from flashmesh.kit.machine import host_folder

    return host_folder(flash_home())


def _tokens(folder: Path) -> "list[Issued]":
    """This machine's own first."""
    from flashmesh.gateway.access.keys import TokenKeys, admin_token
    from flashmesh.gateway.access.register import Issued, Register

    _, own = admin_token(folder, TokenKeys.open(folder))
    return [Issued.of(own), *Register(folder).read()]


def _document(issued: "Issued") -> dict[str, Any]:
    return {
        "id": issued.id,
        "name": issued.name,
        "scope": issued.scope,
        "app": issued.app or None,
        "environment": issued.environment or None,
        "state": issued.state(time.time()),
        "issued": _moment(issued.issued),
        "expires": _moment(issued.expires) if issued.expires else None,
        "revoked": _moment(issued.revoked) if issued.revoked else None,
    }


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
