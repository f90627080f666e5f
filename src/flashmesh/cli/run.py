"""`flash run`: serve the functions of a directory and reload them as they change."""

from pathlib import Path

import click

from flashmesh.cli.commands import set_up_logging, verbose

_EPILOG = """\b
Examples:
  flash run                        # this directory, on port 8888 or the next free one
  flash run my-app --port 9000     # exactly this port
  flash run --inline               # bodies run in the server process: breakpoint() works
  flash run --allow-origin http://localhost:5173   # let a web front-end call
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "directory", metavar="[DIR]", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option("--host", default="127.0.0.1", envvar="FLASH_HOST", show_default=True, help="Address to listen on.")
@click.option(
    "-p",
    "--port",
    type=click.IntRange(0, 65535),
    default=None,
    envvar="FLASH_PORT",
    help="Port to listen on; an error when it is taken. Without it: 8888 or the next free one. 0 = any.",
)
@click.option(
    "--reload/--no-reload", default=True, help="Serve saved changes at once (default) or keep what was there."
)
@click.option("--inline", is_flag=True, help="Run bodies in the server process, for debuggers.")
@click.option("--allow-origin", multiple=True, metavar="ORIGIN", help="Let web pages of this origin call. Repeatable.")
@click.option("--allow-host", multiple=True, metavar="HOST", help="Accept requests for this host name. Repeatable.")
@click.option(
    "--prepare", "--auto-provision", is_flag=True, help="Install what functions declare now, not at their first call."
)
@click.option("--no-install", is_flag=True, help="Never install; run with the packages that are there.")
@click.option("--no-fork", is_flag=True, help="Start the server anew on each change instead of forking it.")
@verbose
def run(
    directory: Path,
    host: str,
    port: int | None,
    reload: bool,
    inline: bool,
    allow_origin: tuple[str, ...],
    allow_host: tuple[str, ...],
    prepare: bool,
    no_install: bool,
    no_fork: bool,
    verbose: bool,
) -> None:
    """Serve the functions of DIR (default: this directory).

    Queue functions answer at POST /file/run and /file/run_sync, HTTP routes at /file/path. Workers are started at the
    first call. Ctrl-C finishes running calls and stops; a second one stops at once.
    """
    if prepare and no_install:
        raise click.UsageError("--prepare and --no-install exclude each other.")
    set_up_logging(verbose)
    from flashmesh.dev.session.run import serve
    from flashmesh.dev.session.run_options import RunOptions

    options = RunOptions(
        root=directory.resolve(),
        host=host,
        port=port,
        reload=reload,
        inline=inline,
        allow_origin=allow_origin,
        allow_host=allow_host,
        prepare=prepare,
        install=not no_install,
        fork=not no_fork,
        verbose=verbose,
    )
    raise SystemExit(serve(options))
