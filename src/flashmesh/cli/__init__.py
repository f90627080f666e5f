"""The `flash` command. Each subcommand lives in its own file and is imported when it is used."""

import sys

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Entry point of the console script."""
    if sys.platform == "win32":  # before anything is imported that needs fork, Unix sockets or signals
        sys.stderr.write(
            "flash does not run on Windows itself. Use WSL2: `wsl --install`, then install flashmesh there.\n"
        )
        sys.exit(EXIT_USAGE)
    from flashmesh.cli.commands import flash

    flash(prog_name="flash")
