"""`flash run --no-fork`: `.flash/server.py` under the plain uvicorn command, started anew on each change.

The port's socket stays with the session, so requests made while the server restarts wait in its backlog.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from flashmesh.gateway.listening import Listener


class PlainServer:
    """A Server (see front.py) that is one ordinary process."""

    def __init__(self, listener: Listener, *, root: Path, environment: Mapping[str, str], pipe_fd: int) -> None:
        self._listener = listener
        self._root = root
        self._environment = {**os.environ, **environment, "FLASH_SESSION_PIPE_FD": str(pipe_fd)}
        self._pipe_fd = pipe_fd
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving: list[subprocess.Popen[bytes]] = []

    def serve(self) -> None:
        """The old process finishes its requests while the new one takes over the socket."""
        if self._process is not None:
            self._process.terminate()
            self._leaving = [old for old in [*self._leaving, self._process] if old.poll() is None]
        listen_fd = self._listener.socket.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flashmesh.dev.session.plain_server", str(listen_fd)],
            cwd=self._root,
            env=self._environment,
            pass_fds=(listen_fd, self._pipe_fd),
            process_group=0,
        )

    async def close(self, drain_s: float) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, drain_s)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        for process in (*self._leaving, self._process):
            if process is not None and process.poll() is None:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                process.wait()


def main(listen_fd: int) -> None:
    """The server's process: uvicorn, and a thread that ends it with its session."""
    import uvicorn

    def end_with_session(pipe_fd: int) -> None:
        os.read(pipe_fd, 1)
        os.killpg(0, signal.SIGKILL)

    watched = int(os.environ["FLASH_SESSION_PIPE_FD"])
    threading.Thread(target=end_with_session, args=(watched,), daemon=True).start()
    uvicorn.run("server:app", app_dir=".flash", fd=listen_fd, log_level="warning", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main(int(sys.argv[1]))
