"""`flash server`: the control plane of this machine, in the foreground or behind it."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from flashmesh.cli import EXIT_FAILED
from flashmesh.cli.commands import set_up_logging, verbose
from flashmesh.functions.errors import FlashmeshError

START_LIMIT_S = 90.0
"""How long `--detach` waits for the server to answer: files that must be imported to be understood take their time."""
STOP_GRACE_S = 20.0
"""How much longer than its drain a server may take to end before `flash server stop` says so."""
_EPILOG = """\b
Examples:
  flash server --project my-app               # serve a project's functions on port 7470
  flash server --project my-app --detach      # the same, behind this terminal
  flash server status
  flash server stop                           # running calls may finish
  flash server install                        # start it with the machine (systemd)
  flash server --host 0.0.0.0                 # for other machines: tokens and TLS
"""

_PATH = click.Path(path_type=Path)


def _settings(command: Any) -> Any:
    """The options that are settings of the server; each has a variable and a key in flash.toml as well."""
    options = [
        click.option("--project", type=_PATH, help="Serve this project's functions while the server runs."),
        click.option("--host", help="Address to listen on.  [default: 127.0.0.1]"),
        click.option("-p", "--port", type=int, help="Port to listen on; 0 = any.  [default: 7470]"),
        click.option("--data", type=_PATH, help="Where to keep accepted calls and results; a local disk."),
        click.option("--drain", "drain_s", metavar="SECONDS", help="How long running calls may finish.  [default: 30]"),
        click.option(
            "--keep-endpoints",
            is_flag=True,
            default=None,
            help="Let endpoints serve on when the server crashes; it takes them over when it returns.",
        ),
        click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Let web pages of this origin call."),
        click.option("--allow-host", multiple=True, metavar="HOST", help="Accept requests for this host name."),
        click.option("--allow-commands", is_flag=True, default=None, help="Let POSTed functions start commands here."),
        click.option("--endpoint-host", help="Address deployed endpoints listen on.  [default: 127.0.0.1]"),
        click.option("--link-host", metavar="ADDRESS", help="Let workers of other machines dial in at this address."),
        click.option("--link-port", type=int, help="Port they dial.  [default: 7471]"),
        click.option("--tls-cert", type=_PATH, help="Certificate chain (PEM); without it one of the server's own."),
        click.option("--tls-key", type=_PATH, help="Its private key (PEM)."),
        click.option("--plain-networks", multiple=True, metavar="CIDR", help="Networks served without TLS."),
        click.option(
            "--durability", type=click.Choice(["full", "normal"]), help="What a 202 survives.  [default: full]"
        ),
        click.option("--log-format", type=click.Choice(["auto", "json", "pretty"]), help="[default: auto]"),
        click.option("--no-install", "install", flag_value=False, default=None, help="Never install packages."),
        click.option("--config", type=_PATH, help="A flash.toml whose [server] table counts."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(
    invoke_without_command=True,
    short_help="Serve functions for good, with queues and kept results.",
    epilog=_EPILOG,
)
@_settings
@click.option("--detach", is_flag=True, help="Run it behind this terminal; print its address when it answers.")
@click.option("--ready-fd", type=int, hidden=True)
@verbose
@click.pass_context
def server(ctx: click.Context, /, detach: bool, ready_fd: int | None, verbose: bool, **options: Any) -> None:
    """Serve functions over HTTP: queues, workers, results that survive a crash.

    Ctrl-C and SIGTERM let running calls finish; a second one ends at once. Every option is also a variable
    (FLASH_SERVER_PORT) and a key of the [server] table in a project's flash.toml.
    """
    if ctx.invoked_subcommand is not None:
        if any(value not in (None, (), False) for value in options.values()) or detach:
            raise click.UsageError(f"Options go behind `{ctx.invoked_subcommand}`.")
        return
    set_up_logging(verbose)
    config = options.pop("config")
    if detach:
        sys.exit(_detach(_load(options, config), sys.argv[1:]))
    gc.disable()  # there is no garbage while a program is loaded; the server turns it on when it serves
    from flashmesh.gateway.beginning import Beginning

    settings = _load(options, config)
    try:
        with Beginning(settings) as beginning:
            from flashmesh.gateway.server import serve  # beside the processes that have just been started

            sys.exit(serve(settings, beginning, ready_fd=ready_fd))
    except FlashmeshError as error:
        if ready_fd is not None:
            from flashmesh.gateway.notify import Starter

            Starter(ready_fd).failed(str(error))
        raise


def _load(options: dict[str, Any], config: Path | None) -> Any:
    """ServerSettings; what is wrong with them is a mistake in how the command was used."""
    from flashmesh.functions.environment import load_dotenv
    from flashmesh.gateway.settings import BadSetting, load

    project = options.get("project") or os.environ.get("FLASH_SERVER_PROJECT")
    if project:
        load_dotenv(str(project))
        options = {**options, "project": Path(project).resolve()}
    file = config or _config_of(Path(project) if project else None)
    try:
        return load(os.environ, file, options)
    except BadSetting as error:
        raise click.UsageError(str(error)) from error


def _config_of(project: Path | None) -> Path | None:
    found = None if project is None else project / "flash.toml"
    return found if found is not None and found.is_file() else None


# Behind the terminal


def _detach(settings: Any, arguments: list[str]) -> int:
    """Start the same command in a session of its own and wait until it answers; the exit code."""
    from flashmesh.gateway.data import server_directory

    folder = settings.data or server_directory(settings.home)
    message, log = _launch(folder, without_detach(arguments))
    if isinstance(message, str):
        click.echo(f"Error: {message}", err=True)
        return EXIT_FAILED
    click.echo(message["url"])
    for line in _told(message, log):
        click.echo(line, err=True)
    return 0


def _told(message: dict[str, Any], log: Path) -> Iterator[str]:
    """What a server in the foreground would have said by now, and where it says the rest."""
    yield from message["said"]
    yield f"flash server runs as pid {message['pid']}; its log is {log}. `flash server stop` ends it."
    if "fingerprint" in message:
        yield f"Its certificate's fingerprint is {message['fingerprint']}"
        yield (
            "Other machines need that and a token (`flash token create NAME --scope call`): "
            f"`flash login https://HOST:{message['url'].rpartition(':')[2]} --fingerprint {message['fingerprint']} "
            "--token -`."
        )


def start_detached() -> str:
    """Start this machine's server behind the terminal, as its variables say; its address. Raises FlashmeshError."""
    settings = _load({}, None)
    from flashmesh.gateway.data import server_directory

    message, _ = _launch(settings.data or server_directory(settings.home), ["server"])
    if isinstance(message, str):
        raise FlashmeshError(message)
    return str(message["url"])


def _launch(folder: Path, arguments: list[str]) -> tuple[dict[str, Any] | str, Path]:
    """A server in a session of its own: what it says once it answers, or why it does not; and its log."""
    (folder / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder / "logs" / "server.log"
    read, write = os.pipe()
    command = [sys.executable, "-P", "-m", "flashmesh.cli", *arguments, "--ready-fd", str(write)]
    with log.open("ab") as output:
        begins = output.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(write,), start_new_session=True
        )
    os.close(write)
    message = _first_line(read)
    if message is None:
        if process.poll() is None:
            process.terminate()
        process.wait()
        with log.open("rb") as file:
            file.seek(begins)
            written = file.read()[-4000:].decode(errors="replace").rstrip()
        return f"the server did not start. It wrote, in {log}:\n{written}", log
    if not message["ready"]:
        process.wait()
        return str(message["reason"]), log
    process.returncode = 0  # it goes on without us
    return message, log


def without_detach(arguments: list[str]) -> list[str]:
    """The same command line, to run in the foreground."""
    return [word for word in arguments if word != "--detach"]


def _first_line(fd: int) -> dict[str, Any] | None:
    import select

    text = b""
    until = time.monotonic() + START_LIMIT_S
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        while not text.endswith(b"\n"):
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                return None
            piece = pipe.read(4096)
            if not piece:
                return None
            text += piece
    document: dict[str, Any] = json.loads(text)
    return document


# Stopping and looking


def _folder(data: Path | None) -> Path:
    from flashmesh.gateway.data import server_directory
    from flashmesh.kit.home import flash_home

    named = data or os.environ.get("FLASH_SERVER_DATA")
    return Path(named).expanduser().absolute() if named else server_directory(flash_home())


@server.command(
    short_help="Stop this machine's server, or what is left of one.",
    epilog="\b\nExamples:\n  flash server stop\n  flash server stop --now     # do not wait for calls\n"
    "  flash server stop --keep-endpoints     # workers serve on, for the next server",
)
@click.option("--data", type=_PATH, help="The data directory of the server that is meant.")
@click.option("--now", is_flag=True, help="Do not let running calls finish.")
@click.option("--keep-endpoints", "keep", is_flag=True, help="Leave its endpoints serving for the next server.")
@verbose
def stop(data: Path | None, now: bool, keep: bool, verbose: bool) -> None:
    """Stop the server of this machine, and what is left of one that was killed."""
    set_up_logging(verbose)
    from flashmesh.deploy.local.assemble import end_deployed, end_kept, keeps_endpoints
    from flashmesh.gateway.data import lives, read_server

    found = read_server(_folder(data))
    if found is None or not lives(found):
        gone, whose = "No server runs here", "endpoints that one had left serving"
        if found is not None:
            gone, whose = f"The server (pid {found.pid}) was gone already", "its endpoints"
        (_folder(data) / "server.json").unlink(missing_ok=True)
        ended = [] if keep else [end_kept(_folder(data) / "place"), end_deployed(_folder(data) / "deployed")]
        click.echo(f"{gone}; {whose} are ended." if any(ended) else f"{gone}.", err=True)
        return
    if keep and not any(keeps_endpoints(_folder(data) / name) for name in ("place", "deployed")):
        message = (
            f"the server (pid {found.pid}) keeps no endpoints: nothing is deployed. "
            "Those of `--project` it keeps with `flash server --keep-endpoints`."
        )
        raise click.UsageError(message)
    os.kill(found.pid, signal.SIGUSR1 if keep else signal.SIGTERM)
    if now:
        time.sleep(0.05)  # two equal signals that are pending at once are one
        if lives(found):
            os.kill(found.pid, signal.SIGTERM)
    if not _gone(found, STOP_GRACE_S + found.drain_s):
        click.echo(f"Error: pid {found.pid} was told to stop and still runs.", err=True)
        sys.exit(EXIT_FAILED)
    if not keep:
        end_kept(_folder(data) / "place")  # of one that was not given the time to do so itself
        end_deployed(_folder(data) / "deployed")
    left = " Its endpoints serve on; the next server takes them over." if keep else ""
    click.echo(f"Stopped the server at {found.url} (pid {found.pid}).{left}", err=True)


def _gone(found: Any, seconds: float) -> bool:
    from flashmesh.gateway.data import lives

    until = time.monotonic() + seconds
    while lives(found):
        if time.monotonic() > until:
            return False
        time.sleep(0.02)  # nobody tells us of the end of a process that is not our child
    return True


@server.command(epilog="\b\nExamples:\n  flash server status --json | jq -r .url")
@click.option("--data", type=_PATH, help="The data directory of the server that is meant.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@verbose
def status(data: Path | None, as_json: bool, verbose: bool) -> None:
    """Show the server of this machine. Exit code 1: none runs."""
    set_up_logging(verbose)
    import dataclasses

    from flashmesh.gateway.data import live_server

    folder = _folder(data)
    found = live_server(folder)
    if as_json:
        document = None if found is None else dataclasses.asdict(found)
        click.echo(json.dumps({"running": found is not None, "data": str(folder), **(document or {})}, indent=2))
    elif found is None:
        click.echo("No server runs here. Start one: `flash server`.", err=True)
    else:
        click.echo(f"flash server  {found.url}  pid {found.pid}, since {found.started_at}, version {found.version}")
        click.echo(f"  project  {found.project or '-'}")
        click.echo(f"  data     {folder}")
    if found is None:
        sys.exit(EXIT_FAILED)


# systemd


@server.command(
    short_help="Let systemd start the server, and restart it when it fails.",
    epilog="\b\nExamples:\n  flash server install --project ~/my-app\n  flash server install --system --print",
)
@_settings
@click.option("--user/--system", "own", default=None, help="With your session (default), or with the machine.")
@click.option("--print", "only_print", is_flag=True, help="Print the unit and change nothing.")
@verbose
def install(own: bool | None, only_print: bool, verbose: bool, **options: Any) -> None:
    """Let systemd start the server, restart it when it fails, and bring it back after a reboot."""
    set_up_logging(verbose)
    from flashmesh.gateway import install as units

    system = own is False or (own is None and os.geteuid() == 0)
    config = options.get("config")
    settings = _load({name: value for name, value in options.items() if name != "config"}, config)
    unit = units.Unit(
        system=system,
        arguments=arguments_of(options),
        environment=units.variables_to_keep(os.environ),
        drain_s=settings.drain_s,
        user=os.environ.get("SUDO_USER", "") if system else "",
        keep_endpoints=settings.keep_endpoints,
    )
    if only_print:
        click.echo(unit.text(), nl=False)
        return
    for line in units.install(unit):
        click.echo(line, err=True)


@server.command(epilog="\b\nExamples:\n  flash server uninstall")
@click.option("--user/--system", "own", default=None, help="As it was installed; default as for install.")
@verbose
def uninstall(own: bool | None, verbose: bool) -> None:
    """Stop the server that systemd runs and remove its unit. Data stays."""
    set_up_logging(verbose)
    from flashmesh.gateway import install as units

    for line in units.uninstall(system=own is False or (own is None and os.geteuid() == 0)):
        click.echo(line, err=True)


def arguments_of(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line; paths absolute, because a unit starts in another directory."""
    words: list[str] = []
    for name, value in options.items():
        if value is None or value == ():
            continue
        if name == "install":
            words.append("--no-install")
            continue
        option = "--drain" if name == "drain_s" else "--" + name.replace("_", "-")
        for one in value if isinstance(value, tuple) else (value,):
            words += [option] if one is True else [option, str(one.absolute() if isinstance(one, Path) else one)]
    return words
