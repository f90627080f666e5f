"""`flash logs`: what the functions of the running session, or of a server, print."""

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from flashmesh.cli.commands import set_up_logging, verbose

if TYPE_CHECKING:
    from flashmesh.deploy.local.printer import LogPrinter

_LOOK_S: Final = 0.5
"""How often it is looked whether a server that ended is back."""
_EPILOG = """\b
Examples:
  flash logs                # the last lines
  flash logs -f             # and what comes, until Ctrl-C
  flash logs hello -f       # of one function
  flash logs 1f0c6c1e-6f3b-4c5e-9d51-0c9a3a1f7a52   # of one execution
"""


@click.command(short_help="Print what functions wrote to stdout and stderr.", epilog=_EPILOG)
@click.argument("function", metavar="[FUNCTION | EXECUTION]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many past lines.")
@click.option("--server", metavar="URL", help="Of this server.")
@verbose
def logs(function: str | None, follow: bool, lines: int, server: str | None, verbose: bool) -> None:
    """Print what FUNCTION or EXECUTION (default: all) wrote to stdout and stderr.

    Under the `flash run` of this directory; without one, under the server.
    """
    set_up_logging(verbose)
    from flashmesh.cli.session import find
    from flashmesh.deploy.local.printer import LogPrinter

    printer = LogPrinter(pretty=True)
    if server is not None or find() is None:
        _of_server(server, printer, function, follow=follow, lines=lines)
    else:
        _of_session(printer, function, follow=follow, lines=lines)


def _of_session(printer: "LogPrinter", function: str | None, *, follow: bool, lines: int) -> None:
    from flashmesh.cli.session import connect
    from flashmesh.functions.errors import LinkLost

    client, _ = connect()
    arguments: dict[str, Any] = {"tail": lines, "follow": follow}
    if function is not None and _is_execution(function):
        arguments["execution"] = function
    elif function is not None:
        arguments["function"] = client.query("resolve", name=function)["function"]
    try:
        some = False
        for answer in client.follow("follow_logs", **arguments):
            for line in answer["lines"]:
                some = True
                _print(printer, line)
        if not some and not follow:
            _say_nothing(function)
    except LinkLost:
        if follow:
            click.echo("The session has ended.", err=True)
    finally:
        client.close()


def _of_server(server: str | None, printer: "LogPrinter", function: str | None, *, follow: bool, lines: int) -> None:
    wanted = {"tail": str(min(lines, 10_000)), "follow": "1" if follow else "0"}
    if function is not None:
        wanted["execution" if _is_execution(function) else "function"] = function
    some = False
    for line in _followed(server, wanted) if follow else _lines(server, wanted):
        some = True
        _print(printer, line)
    if not some:
        _say_nothing(function)


def _say_nothing(function: str | None) -> None:
    """An empty answer looks like one that did not come."""
    of = "Nothing" if function is None else f"{function}: nothing"
    click.echo(f"{of} has been printed yet. `flash logs -f` waits for it.", err=True)


def _lines(server: str | None, wanted: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """What one server says, until it has said it or ends. Raises NoServer, also when it ends in the middle."""
    from urllib.parse import urlencode

    from flashmesh.cli.client import find_server

    for name, data in find_server(server).events("GET", "/v1/logs?" + urlencode(wanted)):
        if not name:
            yield json.loads(data)


def _followed(server: str | None, wanted: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
    """The same without end, across restarts: the next server's lines from its start on. Raises NoServer at the start
    only, and whatever a server refuses it with."""
    from flashmesh.cli.client import NoServer, Refused, find_server

    find_server(server).exchange("GET", "/healthz")
    away = False
    while True:
        try:
            for line in _lines(server, wanted):
                away = False
                yield line
        except NoServer:
            pass
        except Refused as error:
            if error.http_status != 503:  # it is starting, or about to end
                raise
        if not away:
            away = True
            click.echo("The server has ended. Its lines follow when it is back; Ctrl-C ends this.", err=True)
        time.sleep(_LOOK_S)


def _is_execution(name: str) -> bool:
    """Whether it is written as ids of executions are."""
    groups = name.split("-")
    return [len(group) for group in groups] == [8, 4, 4, 4, 12] and all(
        letter in "0123456789abcdef" for group in groups for letter in group
    )


def _print(printer: "LogPrinter", line: Mapping[str, Any]) -> None:
    printer.output(
        function=line["function"],
        endpoint=line["endpoint"],
        text=line["text"],
        stream=line["stream"],
        dropped=line["dropped"],
    )
