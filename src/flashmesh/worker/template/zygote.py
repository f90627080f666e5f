"""The process that imports the user's modules and forks workers from what it then is.

A fork of the template, one per build. It obeys lines of JSON on a socketpair (`fork`, `become`, `end`) and reports what
happened (`loaded`, `import_failed`, `forked`, `exited`, `retire`). Between commands it runs no user code, so that
nothing but the import decides what its children inherit. A worker's output pipes come with its command.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, NoReturn

from flashmesh.worker.context import WorkerContext
from flashmesh.worker.groups import GroupTable
from flashmesh.worker.launch import fork, kill_group, reap
from flashmesh.worker.records import RecordTable
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.template import gate, hygiene, numeric
from flashmesh.worker.template.ahead import Ahead, wait_for_assignment
from flashmesh.worker.template.program import ImportTooLong, Program

IMPORT_FAILED_STATUS: Final = 3
AHEAD_AFTER_S: Final = 0.05
"""The next worker is forked ahead when the last one has had this long to start: both would be slower at once."""


@dataclass(slots=True, kw_only=True)
class Inheritance:
    """What a zygote or worker has from its template. Descriptors are this process's own numbers."""

    spec: WorkerSpec
    table: RecordTable
    groups: GroupTable
    peer_fd: int
    again_fd: int
    notify_fd: int
    session_fd: int
    tcp_fd: int | None = None

    def fds(self) -> set[int]:
        own = {self.table.fd, self.groups.fd, self.peer_fd, self.again_fd, self.notify_fd, self.session_fd}
        return own if self.tcp_fd is None else {*own, self.tcp_fd}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Which worker to be. Sent as JSON under these names."""

    index: int
    place: int
    one_shot: bool = False
    reentrant: bool = False
    may_idle_out: bool = True


class ZygoteBorn(BaseException):
    """Raised in a zygote just forked, so that it unwinds the template's stack before it imports anything."""

    def __init__(self, zygote: "Zygote", *, template_pid: int, stdout: int, stderr: int) -> None:
        self.zygote = zygote
        self.template_pid = template_pid
        self.stdout = stdout
        self.stderr = stderr


class Zygote:
    """One zygote process, from the fork to its end; each worker it forks goes on from there."""

    def __init__(self, inheritance: Inheritance, program: Program, *, control: socket.socket, place: int) -> None:
        self._have = inheritance
        self._spec = inheritance.spec
        self._program = program
        self._control = control
        self._place = place
        self._loaded: Any = None
        self._forkable = False
        self._threads_before: dict[str, str | None] = {}
        self._numeric = numeric.Libraries()
        self._has_forked = False
        self._handled: list[int] = []
        self._children: dict[int, int] = {}  # pid -> place
        self._ahead: Ahead | None = None
        self._ahead_due: float | None = None
        self._incoming = b""
        self._pipes: list[int] = []
        self._wake = (-1, -1)

    def live(self, *, template_pid: int, stdout: int, stderr: int) -> NoReturn:
        """From the fork on: shed what is the template's, import, serve, and be a worker in each child."""
        hygiene.detach(parent_pid=template_pid)
        hygiene.connect(stdout=stdout, stderr=stderr)
        self._have.groups.enter(self._place, os.getpid())
        hygiene.reset_signals(hygiene.handled_signals())
        hygiene.close_all_but({*self._have.fds(), self._control.fileno()})
        self._prepare()
        zygote_pid = os.getpid()
        calling = self._serve()
        self._shed(parent_pid=template_pid if os.getpid() == zygote_pid else zygote_pid)
        if isinstance(calling, socket.socket):
            ready = self._program.get_ready(self._spec, self._loaded)
            command, stdout, stderr = wait_for_assignment(calling)
            self._become_worker(Assignment(**command), stdout, stderr, ahead=ready)
        self._become_worker(*calling, ahead=None)

    def _prepare(self) -> None:
        """Import, gate, report. Ends the process when the import fails."""
        os.environ.update(self._spec.env)
        self._threads_before = numeric.limit(os.environ)
        if self._hides_cuda:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif self._spec.cuda_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._spec.cuda_devices
        gc.disable()
        signal.signal(signal.SIGUSR1, self._on_import_limit)
        try:
            self._loaded = self._program.load(self._spec)
            functions = self._program.describe(self._loaded)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # from here on it would come too late
        except BaseException as error:
            sys.stdout.flush()
            sys.stderr.flush()
            self._say({"event": "import_failed", "error": problem(error)})
            os._exit(IMPORT_FAILED_STATUS)
        seen = gate.observe(preload=self._spec.resource.preload, can_fork=self._program.forks)
        decision = gate.verdict(seen)
        self._forkable = isinstance(decision, gate.Forkable)
        self._numeric = numeric.libraries()
        sys.stdout.flush()
        sys.stderr.flush()
        gc.freeze()
        self._say(
            {
                "event": "loaded",
                "functions": functions,
                "reason": "" if isinstance(decision, gate.Forkable) else decision.reason,
                "native_threads": seen.native_threads,
            }
        )

    def _on_import_limit(self, signum: int, frame: object) -> None:
        raise ImportTooLong(self._spec.import_limit_s)

    def _serve(self) -> tuple[Assignment, int, int] | socket.socket:
        """Obey until told to end. Returns in each process that is to become a worker: (what to be, stdout, stderr),
        or, in one that is forked ahead, the socket these will come over."""
        self._wake = os.pipe()
        for fd in self._wake:
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, _nothing)
        signal.signal(signal.SIGTERM, _nothing)
        self._handled = hygiene.handled_signals()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._wake[0], select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(self._until_ahead_ms())}
            if not ready:
                end = self._fork_ahead()
                if end is not None:
                    return end
            if self._wake[0] in ready:
                self._on_signals()
            if self._control.fileno() in ready:
                for command in self._receive():
                    become = self._obey(command)
                    if become is not None:
                        return become

    @property
    def _hides_cuda(self) -> bool:
        """A context made during the import could not be forked; an endpoint that is not preloaded need not care."""
        return self._spec.cuda_devices is not None and self._spec.resource.preload

    # --- commands ---

    def _receive(self) -> list[dict[str, Any]]:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 1 << 16, 64)
        except ConnectionError:
            data, fds = b"", []
        self._pipes += fds
        if not data:
            self._end()  # the template is gone
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _obey(self, command: dict[str, Any]) -> tuple[Assignment, int, int] | None:
        operation = command.pop("op")
        if operation == "end":
            self._end()
        stdout, stderr, *self._pipes = self._pipes
        assignment = Assignment(**command)
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.assign(command, stdout, stderr):
            pid = ahead.pid
        else:
            pid = 0 if operation == "become" else self._fork()
        if pid == 0:
            return assignment, stdout, stderr
        self._ahead_due = monotonic() + (0.0 if assignment.one_shot else AHEAD_AFTER_S)
        os.close(stdout)
        os.close(stderr)
        self._children[pid] = assignment.place
        self._say({"event": "forked", "index": assignment.index, "pid": pid})
        return None

    def _fork(self) -> int:
        if not self._has_forked:
            self._has_forked = True
            numeric.before_first_fork(self._threads_before, self._numeric)
        return fork()

    def _until_ahead_ms(self) -> float | None:
        return None if self._ahead_due is None else max(0.0, (self._ahead_due - monotonic()) * 1000)

    def _fork_ahead(self) -> socket.socket | None:
        """Keep one worker ready that nobody asked for yet. Returns its end of the line in the new process."""
        self._ahead_due = None
        if self._ahead is not None:
            return None
        ours, theirs = socket.socketpair()
        pid = self._fork()
        if pid == 0:
            ours.close()
            return theirs
        theirs.close()
        self._ahead = Ahead(pid, ours)
        return None

    def _end(self) -> NoReturn:
        """Kill who is left and leave by the front door: what the import registered with atexit runs once, here."""
        for pid in (*self._children, *((self._ahead.pid,) if self._ahead else ())):
            kill_group(pid)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise SystemExit(0)

    def _on_signals(self) -> None:
        numbers = os.read(self._wake[0], 4096)
        if signal.SIGTERM in numbers:
            self._say({"event": "retire"})
        self._reap()

    def _reap(self) -> None:
        """Kill each dead worker's group before its id is free for others, and clear its place."""

        def bury(pid: int) -> None:
            kill_group(pid)
            self._have.groups.leave(self._children[pid])

        for pid, status in reap(lambda pid: bury(pid) if pid in self._children else None):
            if self._ahead is not None and self._ahead.pid == pid:
                self._ahead = None
            if self._children.pop(pid, None) is not None:
                self._say({"event": "exited", "pid": pid, "status": status})

    def _say(self, message: dict[str, Any]) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except ConnectionError:
            pass  # the template is gone; the next read says so

    # --- being a worker ---

    def _shed(self, *, parent_pid: int) -> None:
        """In the fresh child (or, where nothing may be forked, in the zygote itself): shed and restore."""
        hygiene.detach(parent_pid=parent_pid)
        hygiene.reset_signals(self._handled)
        # What the import opened is the user's and stays; the rest of what is open here is known, since `_prepare` began
        # with nothing else: the line to the template, the wake-up pipe and workers' output pipes.
        for fd in (self._control.detach(), *self._wake, *self._pipes):
            os.close(fd)
        self._ahead = None
        if self._spec.cuda_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self._spec.cuda_devices
        numeric.restore(self._threads_before, self._numeric, os.environ, forked=self._has_forked)
        hygiene.reseed()
        gc.enable()

    def _become_worker(self, assignment: Assignment, stdout: int, stderr: int, *, ahead: Any) -> NoReturn:
        """Take the place, the record and the output pipes of that worker, and run."""
        hygiene.connect(stdout=stdout, stderr=stderr)
        os.close(stdout)
        os.close(stderr)
        self._have.groups.enter(assignment.place, os.getpid())
        run(self._have, assignment, self._program, loaded=self._loaded, ahead=ahead)


def run(have: Inheritance, assignment: Assignment, program: Program, *, loaded: Any, ahead: Any = None) -> NoReturn:
    """Be that worker. Ends by os._exit: what the import registered with atexit belongs to the zygote."""
    record = have.table.record(assignment.index)
    record.begin(os.getpid())
    forbids_reentrance = have.spec.cuda_devices is not None or assignment.reentrant
    context = WorkerContext(
        index=assignment.index,
        worker_id=f"{have.spec.endpoint}/{have.spec.generation}.{assignment.index}-{os.getpid()}",
        generation=have.spec.generation,
        record=record,
        listen_fd=have.again_fd if assignment.reentrant else have.peer_fd,
        reentrant_fd=None if forbids_reentrance else have.again_fd,
        notify_fd=have.notify_fd,
        session_fd=have.session_fd,
        tcp_fd=None if assignment.reentrant else have.tcp_fd,
        loaded=loaded,
        ahead=ahead,
        one_shot=assignment.one_shot,
        reentrant=assignment.reentrant,
        may_idle_out=assignment.may_idle_out,
    )
    status = 1
    try:
        program.run_worker(have.spec, context)
    except SystemExit as leaving:
        status = leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass  # the pipe is closed, or the user closed the stream
        os._exit(status)


def problem(error: BaseException) -> dict[str, Any]:
    """How READY tells a failed import: {file, line, reason, traceback}."""
    reason = getattr(error, "reason", None) or f"{type(error).__name__}: {error}"
    text = getattr(error, "traceback", None) or "".join(traceback.format_exception(error))
    return {
        "file": getattr(error, "file", "") or "",
        "line": getattr(error, "line", None),
        "reason": str(reason),
        "traceback": str(text),
    }


def environment(spec: WorkerSpec, base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a worker that is started fresh."""
    extra = {} if spec.cuda_devices is None else {"CUDA_VISIBLE_DEVICES": spec.cuda_devices}
    return {**base, **spec.env, **extra}


def _nothing(number: int, frame: object) -> None:
    """The wake-up descriptor carries the news."""
