"""`flash logs`: what the functions of the running session print."""

import click

from flashmesh.cli.commands import set_up_logging, verbose

_EPILOG = """\b
Examples:
  flash logs                # the last lines
  flash logs -f             # and what comes, until Ctrl-C
  flash logs hello -f       # of one function
"""


@click.command(epilog=_EPILOG)
@click.argument("function", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on printing until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=100, show_default=True, help="How many past lines.")
@verbose
def logs(function: str | None, follow: bool, lines: int, verbose: bool) -> None:
    """Print what FUNCTION (default: all) wrote to stdout and stderr under the `flash run` of this directory."""
    set_up_logging(verbose)
    from flashmesh.cli.session import connect
    from flashmesh.deploy.local.printer import LogPrinter
    from flashmesh.functions.errors import LinkLost

    client, _ = connect()
    printer = LogPrinter(pretty=True)
    arguments = {"tail": lines, "follow": follow}
    if function is not None:
        arguments["function"] = client.query("resolve", name=function)["function"]
    try:
        for answer in client.follow("follow_logs", **arguments):
            for line in answer["lines"]:
                printer.output(
                    function=line["function"],
                    endpoint=line["endpoint"],
                    text=line["text"],
                    stream=line["stream"],
                    dropped=line["dropped"],
                )
    except LinkLost:
        if follow:
            click.echo("The session has ended.", err=True)
    finally:
        client.close()
