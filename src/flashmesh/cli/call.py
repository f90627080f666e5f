"""`flash call`: run a function of the running session and print its result."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from flashmesh.cli import EXIT_FAILED, EXIT_INTERRUPTED
from flashmesh.cli.commands import set_up_logging, verbose

if TYPE_CHECKING:
    from flashmesh.wire.client import BlockingClient, BlockingInvocation

_EPILOG = """\b
Examples:
  flash call hello '{"name": "Ada"}'        # by name, keyword arguments
  flash call workers.gpu.squares '[1, 2]'   # by full id, the first parameter
  flash call resize @photo.json             # the input from a file
  echo '{"n": 3}' | flash call count -      # or from stdin
  flash call train --async                  # print the id, do not wait
"""


@click.command(epilog=_EPILOG)
@click.argument("function")
@click.argument("data", metavar="[JSON | @FILE | -]", default="{}")
@click.option("--async", "later", is_flag=True, help="Accept it and print its id; do not wait for the result.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait; the call goes on after.")
@verbose
def call(function: str, data: str, later: bool, timeout: float | None, verbose: bool) -> None:
    """Call FUNCTION of the `flash run` of this directory.

    The result goes to stdout as JSON (a generator: one line per item), errors with their traceback to stderr.
    """
    set_up_logging(verbose)
    payload = _read(data)
    from flashmesh.cli.session import connect
    from flashmesh.kit.ids import new_execution_id
    from flashmesh.wire.frames import JSON, Invoke

    client, _ = connect()
    try:
        found = client.query("resolve", name=function)
        execution = new_execution_id()
        meta = {"mode": "async" if later else "sync", "stream": not later and timeout is None}
        invocation = client.invoke(
            Invoke(
                execution=execution,
                function=found["function"],
                content_type=JSON,
                accept=JSON,
                meta=meta,
                size=len(payload),
                payload=payload,
            )
        )
        if later:
            _print_id(client, execution)
        else:
            _print_result(invocation, timeout)
    finally:
        client.close()


def _read(data: str) -> bytes:
    """The JSON text that was named, checked: the mistake is found here and not by a worker."""
    if data == "-":
        text = sys.stdin.buffer.read()
    elif data.startswith("@"):
        path = Path(data[1:])
        try:
            text = path.read_bytes()
        except OSError as error:
            raise click.UsageError(f"Cannot read {path}: {error.strerror}.") from error
    else:
        text = data.encode()
    try:
        json.loads(text)
    except ValueError as error:
        shown = text[:60].decode(errors="replace")
        raise click.UsageError(f"{shown!r} is not JSON: {error}. Text needs quotes of its own: '\"text\"'.") from error
    return text


def _print_result(invocation: "BlockingInvocation", timeout: float | None) -> None:
    """A generator's items one per line as they come; with a time limit its list, once it is complete."""
    from flashmesh.wire.frames import Error

    try:
        if timeout is None:
            for item in invocation.items():
                click.echo(item)
        answer = invocation.result() if timeout is None else invocation.wait(timeout)
    except KeyboardInterrupt:
        invocation.cancel()
        sys.exit(EXIT_INTERRUPTED)
    if answer is None:
        _fail(f"The wait ended after {timeout:g} s; the execution {invocation.execution} goes on.")
    if isinstance(answer, Error):
        _fail_with(answer.payload)
    if answer.items < 0 or answer.payload:
        click.echo(answer.payload)


def _print_id(client: "BlockingClient", execution: str) -> None:
    """The session's word that it has the call; what it was refused with is raised."""
    accepted = client.query("accepted", id=execution)
    click.echo(json.dumps({"id": accepted["id"], "status": accepted["status"]}))


def _fail_with(payload: bytes) -> NoReturn:
    from flashmesh.wire import failures

    info = failures.unpack(payload)
    if info.traceback:
        click.echo(info.traceback.rstrip(), err=True)
        sys.exit(EXIT_FAILED)
    _fail(f"{info.type.rsplit('.', 1)[-1]}: {info.message}" if info.type else info.message)


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(EXIT_FAILED)
