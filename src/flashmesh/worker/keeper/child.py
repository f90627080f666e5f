"""The keeper's process, started and not yet spoken to. Light: it is started before the program that needs it is loaded.

Its interpreter, and that of the first template, then start while the session imports what it consists of.
"""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TEMPLATE_COMMAND = (sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.supervisor")
KEEPER_COMMAND = (sys.executable, "-P", "-m", "flashmesh.worker.keeper.keeper")


class KeeperChild:
    """A keeper that is the child of this process, which must be its session. Start it from the main thread.

    Attributes:
        control: our end of the conversation, for whoever takes it.
    """

    def __init__(
        self,
        session_pipe_fd: int,
        runtime_dir: Path,
        *,
        template_command: Sequence[str] = TEMPLATE_COMMAND,
        ahead: bool = False,
    ) -> None:
        """Args:
        session_pipe_fd: read end of the session pipe, whose write end only the session holds.
        ahead: whether a template is to be started before it is asked for.
        """
        self.control, theirs = socket.socketpair()
        settings = {
            "control": theirs.fileno(),
            "session": session_pipe_fd,
            "template": list(template_command),
            "ahead": ahead,
        }
        self.process = subprocess.Popen(
            [*KEEPER_COMMAND, json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(), session_pipe_fd),
            cwd=runtime_dir,
            process_group=0,  # Ctrl-C in the terminal is for the session alone
        )
        theirs.close()

    def close(self) -> None:
        """End one that nobody has taken."""
        self.control.close()
        self.process.wait()
