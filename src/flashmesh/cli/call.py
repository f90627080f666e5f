"""`flash call`: run a function of the running session, or of a server, and print its result."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from flashmesh.cli import EXIT_FAILED, EXIT_INTERRUPTED
from flashmesh.cli.commands import set_up_logging, verbose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flashmesh.cli.client import ServerClient
    from flashmesh.wire.client import BlockingClient, BlockingInvocation

_EPILOG = """\b
Examples:
  flash call hello '{"name": "Ada"}'        # by name, keyword arguments
  flash call workers.gpu.squares '[1, 2]'   # by full id, the first parameter
  flash call resize @photo.json             # the input from a file
  echo '{"n": 3}' | flash call count -      # or from stdin
  flash call train --async                  # print the id, do not wait
  flash call hello --server http://localhost:7470   # of that server, whatever runs here
  flash call hello --env staging            # of what is deployed there
"""


@click.command(short_help="Call a function and print its result.", epilog=_EPILOG)
@click.argument("function")
@click.argument("data", metavar="[JSON | @FILE | -]", default="{}")
@click.option("--async", "later", is_flag=True, help="Accept it and print its id; do not wait for the result.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait; the call goes on after.")
@click.option("--server", metavar="URL", help="Call a function of this server.")
@click.option("--app", metavar="NAME", envvar="FLASH_APP", help="Of this app, where several have a function so named.")
@click.option("--env", "environment", metavar="NAME", envvar="FLASH_ENV", help="Of this environment.")
@verbose
def call(
    function: str,
    data: str,
    later: bool,
    timeout: float | None,
    server: str | None,
    app: str | None,
    environment: str | None,
    verbose: bool,
) -> None:
    """Call FUNCTION of the `flash run` of this directory; without one, of the server (FLASH_SERVER, `flash login`,
    this machine's).

    The result goes to stdout as JSON (a generator: one line per item), errors with their traceback to stderr.
    """
    set_up_logging(verbose)
    payload = _read(data)
    from flashmesh.cli.session import connect, find

    if server is not None or find() is None:
        from flashmesh.cli.client import find_server

        place = {"X-Flash-App": app, "X-Flash-Environment": environment}
        headers = {name: value for name, value in place.items() if value}
        _call_server(find_server(server), function, payload, headers, later=later, timeout=timeout)
    else:
        client, _ = connect()
        try:
            _call_session(client, function, payload, later=later, timeout=timeout)
        finally:
            client.close()


def _call_session(
    client: "BlockingClient", function: str, payload: bytes, *, later: bool, timeout: float | None
) -> None:
    from flashmesh.kit.ids import new_execution_id
    from flashmesh.wire.frames import JSON, Invoke

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


def _call_server(
    client: "ServerClient",
    function: str,
    payload: bytes,
    headers: dict[str, str],
    *,
    later: bool,
    timeout: float | None,
) -> None:
    from flashmesh.cli.client import path_name

    body = b'{"input":' + payload + b"}"
    path = f"/v1/functions/{path_name(function)}"
    if later:
        accepted = client.send("POST", path + ":enqueue", body, headers)
        click.echo(json.dumps({"id": accepted["executionId"], "status": accepted["status"]}))
    elif timeout is None:
        _print_events(client.events("POST", path + ":invoke", body, headers))
    else:
        wait_ms = str(max(1, round(timeout * 1000)))
        status, answer = client.exchange("POST", path + ":invoke", body, {**headers, "X-Timeout-Ms": wait_ms})
        if status == 408 and isinstance(answer, dict) and "executionId" in answer:
            _fail(f"The wait ended after {timeout:g} s; the execution {answer['executionId']} goes on.")
        if status != 200:
            _fail_as_told(answer, status)
        click.echo(json.dumps(answer["output"], ensure_ascii=False))


def _print_events(events: "Iterator[tuple[str, bytes]]") -> None:
    """Items as they come; leaving closes the connection, which ends the call."""
    from flashmesh.cli.client import Refused

    try:
        for name, data in events:
            if name == "error":
                _fail_as_told(json.loads(data), 500)
            elif not name:
                click.echo(data)
    except Refused as refused:
        _fail_as_told(refused.body, refused.http_status)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _fail_as_told(body: Any, status: int) -> NoReturn:
    from flashmesh.cli.client import message_of

    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        message = message_of(body, status)
        if isinstance(body, dict) and body.get("error") == "AMBIGUOUS_FUNCTION":
            message = f"{message.rstrip('.')}. On the command line that is `--app` and `--env`."
        _fail(f"Error: {message}")
    if error.get("traceback"):
        click.echo(str(error["traceback"]).rstrip(), err=True)
        sys.exit(EXIT_FAILED)
    kind = str(error.get("type") or "").rsplit(".", 1)[-1]
    _fail(f"{kind}: {error['message']}" if kind else str(error["message"]))


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
