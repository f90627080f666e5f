"""The table of subcommands, and what is common to all of them: errors, exit codes, `--version`."""

import importlib
import logging
import os
import sys
from typing import Any

import click

from flashmesh import __version__
from flashmesh.cli import EXIT_FAILED, EXIT_INTERRUPTED

_COMMANDS = {
    "init": "flashmesh.cli.init:init",
    "run": "flashmesh.cli.run:run",
    "dev": "flashmesh.cli.run:run",
    "build": "flashmesh.cli.build:build",
    "plan": "flashmesh.cli.plan:plan",
    "deploy": "flashmesh.cli.deploy:deploy",
    "undeploy": "flashmesh.cli.undeploy:undeploy",
    "rollback": "flashmesh.cli.rollback:rollback",
    "server": "flashmesh.cli.server:server",
    "call": "flashmesh.cli.call:call",
    "executions": "flashmesh.cli.executions:executions",
    "logs": "flashmesh.cli.logs:logs",
    "status": "flashmesh.cli.status:status",
    "app": "flashmesh.cli.app:app",
    "env": "flashmesh.cli.env:env",
    "token": "flashmesh.cli.token:token",
    "login": "flashmesh.cli.login:login",
    "ls": "flashmesh.cli.status:status",
}
_HIDDEN = frozenset({"dev", "ls"})
"""Second names of a command; they work and are not listed."""

_EPILOG = """\b
Examples:
  flash init my-app             # a small project that runs
  flash run my-app              # serve it, reload on every change
  flash deploy my-app           # serve it for good, from a server of this machine
  flash call hello '{"name": "Ada"}'
  flash logs -f                 # what the functions print
"""


class _Commands(click.Group):
    """Imports a subcommand when it is asked for: `flash --version` pays for none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name in _COMMANDS if name not in _HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, name = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; a name that is none is told with those that are near."""
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(args[0], _COMMANDS, n=1)
            meant = f" Did you mean `flash {near[0]}`?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{meant}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """One boundary for all commands: what went wrong is said in a line, and the exit code tells it."""
        from flashmesh.functions.errors import FlashmeshError

        try:
            return super().invoke(ctx)
        except FlashmeshError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(EXIT_FAILED)
        except OSError as error:
            if error.filename is None:  # nothing of the disk's; a closed pipe is click's
                raise
            logging.getLogger("flashmesh").debug("a command failed", exc_info=True)
            click.echo(f"Error: {error.filename}: {error.strerror}. {_way_out(str(error.filename))}", err=True)
            sys.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)


def _way_out(path: str) -> str:
    """What to do about a file or folder that cannot be used."""
    from flashmesh.kit.home import flash_home

    home = str(flash_home())
    if (path + "/").startswith(home + "/") or (home + "/").startswith(path + "/"):
        return f"flashmesh keeps its own files in {home}; name a folder that you may write to with FLASH_HOME."
    return "Look at who may write there (`ls -ld`), or name another place."


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    click.echo(f"flash {__version__}")
    ctx.exit()


def verbose(command: Any) -> Any:
    """The option `-v`: our own log at DEBUG (or as `LOG_LEVEL` says)."""
    return click.option(
        "-v", "--verbose", is_flag=True, expose_value=True, help="Say more about what happens (LOG_LEVEL wins)."
    )(command)


def set_up_logging(verbose: bool) -> None:
    """Our log goes to stderr, at the level of LOG_LEVEL, else DEBUG with `-v`, else WARNING."""
    named = os.environ.get("LOG_LEVEL", "").upper()
    level = logging.getLevelNamesMapping().get(named, logging.DEBUG if verbose else logging.WARNING)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("flashmesh").setLevel(level)


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
@click.pass_context
def flash(ctx: click.Context) -> None:
    """Write Python functions, run them on this machine with one command."""
    if ctx.invoked_subcommand not in ("run", "dev", "server"):  # they look once they serve: it takes 30 ms
        warn_of_conflict()


def warn_of_conflict() -> None:
    """The distribution runpod-flash owns the same import name; with both installed, which one is used is chance."""
    from flashmesh.functions.environment import conflict_message

    message = conflict_message()
    if message:
        click.echo(message, err=True)
