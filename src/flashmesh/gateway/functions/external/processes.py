"""Processes of commands as the server sees them: made by the starter, ended by signal, told of by callbacks."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from flashmesh.gateway.functions.external.messages import Unpacker, packed

TERM_S: Final = 2.0
"""How long a process may take to end by itself after SIGTERM."""


class Process:
    """One command that was started. `pid` is 0 until it runs. `ended(status, reason)` is called once."""

    def __init__(self, owner: "Processes", id: int, started: Callable[[], None], ended: "Ended") -> None:
        self.pid = 0
        self.over = False
        self._owner = owner
        self._id = id
        self._started = started
        self._ended = ended
        self._timer: asyncio.TimerHandle | None = None

    def kill(self) -> None:
        """SIGKILL to its whole group."""
        if not self.over:
            self._owner.signal(self._id, signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, and SIGKILL when that does not help in TERM_S."""
        if not self.over and self._timer is None:
            self._owner.signal(self._id, signal.SIGTERM)
            self._timer = self._owner.loop.call_later(TERM_S, self.kill)

    def has_started(self, pid: int) -> None:
        self.pid = pid
        self._started()

    def has_ended(self, status: int, reason: str) -> None:
        if self.over:
            return
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        self._ended(status, reason)


Ended = Callable[[int, str], None]
"""Exit status as from waitpid (negative: signal), and why it could not be started, if it could not."""


class Processes:
    """Starts and ends commands. One starter process stands behind it, made when the first command is."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.ports: set[int] = set()
        """Ports that commands were told to listen on."""
        self._starter: socket.socket | None = None
        self._starter_process: subprocess.Popen[bytes] | None = None
        self._live: dict[int, Process] = {}
        self._count = 0
        self._messages = Unpacker()
        self._out = bytearray()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        fds: tuple[int, int, int],
        started: Callable[[], None],
        ended: Ended,
    ) -> Process:
        """Start a command with its stdin, stdout and stderr, which are closed here. Callbacks come later.

        Raises OSError when not even the starter can be had.
        """
        self._count += 1
        try:
            message = {"start": self._count, "argv": list(argv), "env": dict(env), "cwd": cwd}
            process = Process(self, self._count, started, ended)
            self._say(message, fds)
        finally:
            for fd in fds:
                os.close(fd)
        self._live[self._count] = process
        self._emptied.clear()
        return process

    def signal(self, id: int, number: int) -> None:
        if self._starter is not None:
            try:
                self._say({"kill": id, "signal": int(number)})
            except OSError:
                pass  # the starter has just died, and everything with it

    async def close(self) -> None:
        """End everything: SIGTERM, then SIGKILL. Returns when all are gone."""
        for process in list(self._live.values()):
            process.terminate()
        try:
            async with asyncio.timeout(TERM_S + 3.0):
                await self._emptied.wait()
        except TimeoutError:
            pass  # closing the socket kills what is left
        starter = self._starter_process
        self._drop_starter()
        if starter is not None:
            await asyncio.to_thread(starter.wait)

    def _say(self, message: Mapping[str, object], fds: Sequence[int] = ()) -> None:
        data = packed(message)
        starter = self._starter or self._make_starter()
        if fds:
            sent = socket.send_fds(starter, [data], fds)
            data = data[sent:]
        if data:
            starter.sendall(data)

    def _make_starter(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._starter_process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flashmesh.gateway.functions.external.starter", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(10.0)  # it only ever waits for the kernel, and messages are short
        self._starter = ours
        self._messages.clear()
        self.loop.add_reader(ours.fileno(), self._readable)
        return ours

    def _readable(self) -> None:
        assert self._starter is not None
        try:
            data = self._starter.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lost()
            return
        for message in self._messages.feed(data):
            self._heard(message)

    def _heard(self, message: dict[str, object]) -> None:
        if "started" in message:
            process = self._live.get(int(str(message["started"])))
            if process is not None:
                process.has_started(int(str(message["pid"])))
            return
        process = self._live.pop(int(str(message.get("failed", message.get("ended")))), None)
        if not self._live:
            self._emptied.set()
        if process is not None:
            process.has_ended(int(str(message.get("status", 127))), str(message.get("reason", "")))

    def _lost(self) -> None:
        """The starter was killed, and all that it started with it."""
        starter = self._starter_process
        self._drop_starter()
        if starter is not None:
            starter.wait()
        lost, self._live = self._live, {}
        self._emptied.set()
        for process in lost.values():
            process.has_ended(-signal.SIGKILL, "")

    def _drop_starter(self) -> None:
        if self._starter is not None:
            self.loop.remove_reader(self._starter.fileno())
            self._starter.close()
        self._starter = self._starter_process = None
