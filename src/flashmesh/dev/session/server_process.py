"""The session's end of the dev template: the process that keeps uvicorn imported and forks a dev server per change.

The template is started with an environment that says which descriptors it was given:

    FLASH_DEV_LISTEN_FD     the listening TCP socket
    FLASH_DEV_CONTROL_FD    one end of a Unix socket pair: JSON lines, below
    FLASH_SESSION_PIPE_FD   read end of the session pipe; EOF = the session is gone, however it died
    FLASH_SESSION_LINK      path of the session's link (it may not exist yet when the template starts)
    FLASH_PROJECT_ROOT      the project's directory
    FLASH_DEV_OPTIONS       JSON, see `options`

Session to template: `{"op": "serve", "generation": n}` forks a child that serves `.flash/server.py` as it is now, and
`{"op": "close", "limit_s": s}` drains and ends everything. Template to session: `{"event": …, "generation": n, …}`,
where the event is started, ready, failed, exited or problem; failed and problem carry `reason` and, where known, `file`
and `line`.

`start` is called before the session imports anything heavy, so this file imports little.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flashmesh.gateway.listening import Listener

Event = dict[str, Any]


class ServerProcess:
    """The dev template of one session, from the session's side. Not thread-safe: used from the session's loop."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self.process = process
        self._control = control
        self._received = b""
        self.generation = 0
        """The last generation asked for."""

    @classmethod
    def start(
        cls, listener: Listener, *, root: Path, link: str, pipe_fd: int, options: dict[str, Any]
    ) -> "ServerProcess":
        """Start the template; it does not serve before `serve` is called.

        Args:
            pipe_fd: read end of the session pipe.
            options: inline, allow_origin, allow_host, token, host, port, short_wait_s, max_body_bytes, verbose.
        """
        ours, theirs = socket.socketpair()
        listen_fd, control_fd = listener.socket.fileno(), theirs.fileno()
        environment = {
            **os.environ,
            "FLASH_DEV_LISTEN_FD": str(listen_fd),
            "FLASH_DEV_CONTROL_FD": str(control_fd),
            "FLASH_SESSION_PIPE_FD": str(pipe_fd),
            "FLASH_SESSION_LINK": link,
            "FLASH_PROJECT_ROOT": str(root),
            "FLASH_DEV_OPTIONS": json.dumps(options),
        }
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flashmesh.dev.server.template"],
                env=environment,
                pass_fds=(listen_fd, control_fd, pipe_fd),
                cwd=root,
                stdin=None if options.get("inline") else subprocess.DEVNULL,  # `breakpoint()` needs the terminal
                process_group=None if options.get("inline") else 0,  # Ctrl-C is the session's to handle
            )
        ours.setblocking(False)
        return cls(process, ours)

    def serve(self) -> int:
        """Ask for a child that serves `.flash/server.py` as it is now; its generation."""
        self.generation += 1
        self._send({"op": "serve", "generation": self.generation})
        return self.generation

    def close(self, limit_s: float) -> None:
        """Ask the template to finish running requests, at most `limit_s`, and end."""
        self._send({"op": "close", "limit_s": limit_s})

    def fileno(self) -> int:
        """-1 once it was killed."""
        return self._control.fileno()

    def read(self, on_event: Callable[[Event], None]) -> bool:
        """Hand every event that has arrived to `on_event`. False = the template has closed its end."""
        while True:
            try:
                data = self._control.recv(65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                if line.strip():
                    on_event(json.loads(line))

    def kill(self) -> None:
        """End it now, its children included, and reap it."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        self._control.close()

    def _send(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._control.sendall(json.dumps(message).encode() + b"\n")
