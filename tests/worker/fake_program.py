"""A program for templates under test: its functions are a few lines, its import does what the environment says.

Run as `python fake_program.py template|spawned JSON`, in the place of `python -m flashmesh.worker.template.supervisor`.
"""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import PROTOCOL_VERSION, Drain, Error, Hello, Invoke, Ready, Result
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.template import spawned
from flashmesh.worker.template import supervisor as template


class Broken(Exception):
    """What an import raises here, in the shape of the loader's."""

    file = "broken.py"
    line = 3
    reason = "SyntaxError: invalid syntax"
    traceback = "broken.py, line 3"


class Stop(Exception):
    """Raised by SIGUSR1 in a running call."""


class FakeProgram:
    spawn_command: ClassVar[list[str]] = [sys.executable, "-P", "-u", __file__, "spawned"]
    forks: ClassVar[bool] = "FAKE_NO_FORK" not in os.environ

    def preload(self) -> None:
        if os.environ.get("FAKE_TEMPLATE") == "crash":
            sys.exit(7)

    def load(self, spec: WorkerSpec) -> Any:
        how = spec.env.get("FAKE_IMPORT", "")
        sys.stdout.write(f"importing {spec.build}\n")
        if how == "hang":
            subprocess.Popen(["sleep", "600"])
            time.sleep(600)
        elif how == "fail":
            raise Broken
        elif how == "exit":
            os._exit(9)
        elif how == "thread":
            threading.Thread(target=time.sleep, args=(600,), name="background", daemon=True).start()
        return {"build": spec.build, "file": Path(__file__).open()}

    def describe(self, loaded: Any) -> list[dict[str, Any]]:
        return [{"id": "m.echo", "kind": "function"}]

    def get_ready(self, spec: WorkerSpec, loaded: Any) -> Any:
        return None

    def run_worker(self, spec: WorkerSpec, context: WorkerContext) -> NoReturn:
        if spec.env.get("FAKE_START") == "fail":
            sys.stderr.write("the hook failed\n")
            sys.exit(1)
        if wait := spec.env.get("FAKE_START_WAIT"):
            sys.stdout.write(f"{spec.build} starts\n")
            wait_for_file(Path(wait))
        FakeWorker(spec, context, context.loaded or self.load(spec)).run()


def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.002)


class FakeWorker:
    """One slot, synchronous, calls from the link and one line per peer connection."""

    def __init__(self, spec: WorkerSpec, context: WorkerContext, loaded: Any) -> None:
        self.spec = spec
        self.context = context
        self.loaded = loaded
        self.in_user = False
        self.leaving = False
        self.wake = socket.socketpair()
        for end in self.wake:
            end.setblocking(False)
        fds = [context.listen_fd] if context.tcp_fd is None else [context.listen_fd, context.tcp_fd]
        self.listeners = [socket.socket(fileno=os.dup(fd)) for fd in fds]

    def run(self) -> NoReturn:
        signal.set_wakeup_fd(self.wake[1].fileno())
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGUSR1, self._on_usr1)
        context = self.context
        hello = Hello(PROTOCOL_VERSION, "worker", self.spec.endpoint, self.spec.build, context.worker_id, os.getpid())
        frames = (hello,) if context.reentrant else (hello, Ready(1))
        context.announce_ready(1)  # first, as a real worker does: whom the session has as ready, the template has
        self.link = BlockingLink.connect(self.spec.link, *frames)
        while not self.leaving:
            ready = select.select([self.link, self.wake[0], *self.listeners], [], [], self._patience())[0]
            if self.wake[0] in ready:
                self.wake[0].recv(100)
            if not ready and context.may_idle_out:
                break
            if self.link in ready:
                for frame in self.link.pump():
                    self._on_frame(frame)
            else:
                for listener in self.listeners:
                    if listener in ready:
                        self._accept(listener)
            if context.one_shot and context.record.head().calls:
                break
        context.record.set_leaving()
        sys.exit(0)

    def _patience(self) -> float:
        return float(self.spec.resource.idle_timeout_s)

    def _on_term(self, number: int, frame: object) -> None:
        self.leaving = True
        self.context.tell_leaving()

    def _on_usr1(self, number: int, frame: object) -> None:
        if self.in_user and self.context.record.requests():
            raise Stop(self.context.record.requests()[0].reason)

    def _on_frame(self, frame: Any) -> None:
        if isinstance(frame, Invoke):
            deadline_ns = time.monotonic_ns() + frame.deadline_ms * 1_000_000 if frame.deadline_ms else 0
            ok, value = self.call(frame.execution, frame.function, frame.payload.decode(), deadline_ns)
            if ok:
                self.link.send(Result(frame.execution, free=1, payload=value.encode()))
            else:
                self.link.send(Error(frame.execution, value, free=1))
        elif isinstance(frame, Drain):
            self.leaving = True

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        with connection:
            line = connection.makefile().readline().strip()
            function, _, argument = line.partition(" ")
            _, value = self.call("peer", function, argument, 0)
            connection.sendall(f"{value} {self.context.worker_id}\n".encode())

    def call(self, execution: str, function: str, argument: str, deadline_ns: int) -> tuple[bool, str]:
        record = self.context.record
        record.set_running(0, execution, function, deadline_ns)
        self.context.set_free(0)
        if deadline_ns:
            self.context.tell_deadline()
        try:
            self.in_user = True
            return True, getattr(self, function.rpartition(".")[2])(argument)
        except Stop as stop:
            return False, str(stop)
        finally:
            self.in_user = False
            record.clear(0)
            self.context.set_free(1)

    # --- functions ---

    def echo(self, argument: str) -> str:
        return argument

    def build(self, argument: str) -> str:
        return f"{self.spec.build} {os.fstat(self.loaded['file'].fileno()).st_size > 0}"

    def sleep(self, argument: str) -> str:
        time.sleep(float(argument))
        return "slept"

    def wait(self, argument: str) -> str:
        """Until the file is there. Says that it has begun by one beside it, which needs nobody to read its output."""
        Path(f"{argument}.begun").touch()
        wait_for_file(Path(argument))
        return "waited"

    def hold(self, argument: str) -> str:
        """Says that it has begun, then keeps the worker busy."""
        sys.stdout.write("holding\n")
        time.sleep(float(argument))
        return "held"

    def stubborn(self, argument: str) -> str:
        end = time.monotonic() + float(argument)
        while time.monotonic() < end:
            try:
                time.sleep(0.05)
            except Stop:
                continue
        return "done"

    def child(self, argument: str) -> str:
        """Leaves a subprocess behind and goes on for a while."""
        sys.stdout.write(f"child {subprocess.Popen(['sleep', '600']).pid}\n")
        time.sleep(float(argument))
        return "done"

    def detach(self, argument: str) -> str:
        """Starts a subprocess that leaves the worker's process group."""
        return str(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)

    def say(self, argument: str) -> str:
        sys.stdout.write(f"{argument}\n")
        sys.stderr.write("no newline")
        return "said"

    def words_then_die(self, argument: str) -> str:
        sys.stdout.write(argument)
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    def flood(self, argument: str) -> str:
        for number in range(int(argument)):
            sys.stdout.write(f"line {number}\n")
        return "flooded"

    def facts(self, argument: str) -> str:
        """What a fresh worker must have shed and kept."""
        import random

        targets = [str(fd.readlink()) for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
        return repr(
            {
                "group": os.getpgrp() == os.getpid(),
                "fds": sorted(target.partition(":")[0] for target in targets),
                "stdin": str(Path("/proc/self/fd/0").readlink()),
                "chld": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
                "omp": os.environ.get("OMP_NUM_THREADS"),
                "random": random.random(),
                "cuda": os.environ.get("CUDA_VISIBLE_DEVICES"),
            }
        )


if __name__ == "__main__":
    main = template.main if sys.argv[1] == "template" else spawned.main
    main(sys.argv[2], FakeProgram())
