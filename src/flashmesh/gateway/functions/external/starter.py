"""The process that starts commands, so that the server itself never forks: `python -m …external.starter FD`.

A fork of the server would copy its page tables while callers wait, and would run Python code in the child of a process
with threads. This one is small and has a single thread. It also sees to it that nothing outlives the server: when its
socket ends, however the server died, every process group it made is killed, grandchildren included; and each command
dies with it in turn (PDEATHSIG on Linux).

Messages are as in messages.py. In: {"start": id, "argv", "env", "cwd"} with three descriptors (stdin, stdout,
stderr), {"kill": id, "signal"}. Out: {"started": id, "pid"}, {"failed": id, "reason"}, {"ended": id, "status"} (as
from waitpid, negative: signal).
"""

import os
import select
import signal
import socket
import subprocess
import sys
from typing import Any

from flashmesh.gateway.functions.external.messages import Unpacker, packed
from flashmesh.worker.parent import adopt_orphans, die_with_parent, prepare

_FDS = 3


class Starter:
    """Serves one socket until it ends."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._messages = Unpacker()
        self._fds: list[int] = []
        self._ids: dict[int, int] = {}
        """By pid, which is also the process group."""

    def run(self) -> None:
        prepare()
        adopt_orphans()
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_write, False)
        os.set_blocking(wake_read, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # The server says when it is over. Not SIG_IGN: that would be handed down to every command.
            signal.signal(ignored, lambda *_: None)
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(wake_read, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == wake_read:
                    os.read(wake_read, 4096)
                    self._reap()
                elif not self._receive():
                    self._end()
                    return

    def _receive(self) -> bool:
        try:
            data, fds, _, _ = socket.recv_fds(self._server, 1 << 16, _FDS * 16)
        except ConnectionError:
            return False
        self._fds += fds
        if not data:
            return False
        for message in self._messages.feed(data):
            self._obey(message)
        return True

    def _obey(self, message: dict[str, Any]) -> None:
        if "kill" in message:
            for pid, id in self._ids.items():
                if id == message["kill"]:
                    _kill_group(pid, message["signal"])
            return
        fds, self._fds = self._fds[:_FDS], self._fds[_FDS:]
        try:
            me = os.getpid()
            started = subprocess.Popen(
                message["argv"],
                stdin=fds[0],
                stdout=fds[1],
                stderr=fds[2],
                env=message["env"],
                cwd=message["cwd"],
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(me),
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = f"{message['argv'][0]}: {getattr(error, 'strerror', None) or error}"
            self._say({"failed": message["start"], "reason": reason})
        else:
            started.returncode = 0  # it is reaped here, not by its object
            self._ids[started.pid] = message["start"]
            self._say({"started": message["start"], "pid": started.pid})
        finally:
            for fd in fds:
                os.close(fd)

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            if pid in self._ids:
                _kill_group(pid, signal.SIGKILL)  # what it left behind; its id is not free before it is waited for
            _, status = os.waitpid(pid, 0)
            id = self._ids.pop(pid, None)
            if id is not None:
                self._say({"ended": id, "status": os.waitstatus_to_exitcode(status)})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._server.sendall(packed(message))
        except OSError:
            pass  # the server is gone, which the next read tells

    def _end(self) -> None:
        for pid in self._ids:
            _kill_group(pid, signal.SIGKILL)


def _kill_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass  # all of it has ended
    except PermissionError:
        pass  # macOS says so of a group of zombies


if __name__ == "__main__":
    Starter(socket.socket(fileno=int(sys.argv[1]))).run()
