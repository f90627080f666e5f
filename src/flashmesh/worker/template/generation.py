"""One build of an endpoint as its template sees it: a zygote, the workers made from it, and their records."""

import json
import os
import signal
import socket
import time
from collections import deque
from enum import Enum
from typing import Any, Final, Protocol

from flashmesh.worker.eventloop import EventLoop, Timer
from flashmesh.worker.groups import GroupTable, Places
from flashmesh.worker.launch import anonymous_file, fork, kill_group, launch
from flashmesh.worker.records import SPARE_SLOTS, RecordTable, Running, State, WorkerRecord
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.template.output import OutputPipe, attribute, by_writer
from flashmesh.worker.template.program import Program
from flashmesh.worker.template.zygote import Inheritance, Zygote, ZygoteBorn, environment

EXTRA_WORKERS: Final = 16
"""Most re-entrant workers at one time: two full chains of eight calls."""
ROOM: Final = 512
"""Workers that a build has records for at least, so that its limits can be raised while it serves. Only records that
are used take memory."""
ZYGOTE_END_S: Final = 1.0
LAST_WORDS_S: Final = 1.0
"""How long a zygote whose import took too long may take to say where it is."""
_TAIL_LINES: Final = 30


class Phase(Enum):
    """IMPORTING → READY → RETIRING → GONE; IMPORTING → FAILED when the import did not work out."""

    IMPORTING = 1
    READY = 2
    FAILED = 3
    RETIRING = 4
    GONE = 5


class Worker:
    """One worker process. `pid` is 0 until the zygote has said it."""

    __slots__ = (
        "index",
        "leaving",
        "permanent",
        "pid",
        "pipes",
        "place",
        "reason",
        "record",
        "reentrant",
        "since",
        "tail",
        "was_ready",
    )

    def __init__(
        self,
        *,
        index: int,
        place: int,
        record: WorkerRecord,
        pipes: dict[str, OutputPipe],
        reentrant: bool,
        permanent: bool,
    ) -> None:
        self.index = index
        self.place = place
        self.record = record
        self.pipes = pipes
        self.reentrant = reentrant
        self.permanent = permanent
        """It does not leave when it is idle."""
        self.pid = 0
        self.since = time.monotonic()
        self.leaving = False
        self.was_ready = False
        self.reason = ""
        """Why it was killed, if the template did it."""
        self.tail: deque[str] = deque(maxlen=_TAIL_LINES)
        """Its last lines on stderr."""


class Owner(Protocol):
    """The template, as its generations see it."""

    def on_loaded(self, generation: "Generation") -> None: ...
    def on_import_failed(self, generation: "Generation", error: dict[str, Any]) -> None: ...
    def on_zygote_lost(self, generation: "Generation", status: int) -> None: ...
    def on_retire_wish(self, generation: "Generation") -> None: ...
    def on_worker_exit(self, generation: "Generation", worker: Worker, status: int, *, called: bool) -> None: ...
    def on_gone(self, generation: "Generation") -> None: ...
    def on_output(self, worker_id: str, stream: str, lines: list[str], function: str, execution: str) -> None: ...


class Generation:
    """Made in phase IMPORTING, its zygote forked by `begin`."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        loop: EventLoop,
        program: Program,
        owner: Owner,
        groups: GroupTable,
        places: Places,
        sockets: tuple[int, int],
        tcp_fd: int | None = None,
        notify_fd: int,
        session_fd: int,
    ) -> None:
        resource = spec.resource
        self.spec = spec
        self.phase = Phase.IMPORTING
        self.info: dict[str, Any] = {}
        self.forkable = False
        self.workers: dict[int, Worker] = {}
        self.start_failures = 0
        self.began_at = time.monotonic()
        self._loop = loop
        self._program = program
        self._owner = owner
        self._groups = groups
        self._places = places
        self._have = Inheritance(
            spec=spec,
            table=RecordTable.create(
                workers=max(ROOM, 2 * max(1, resource.workers_max)) + EXTRA_WORKERS,
                slots=max(1, resource.max_concurrency) + SPARE_SLOTS,
            ),
            groups=groups,
            peer_fd=sockets[0],
            again_fd=sockets[1],
            notify_fd=notify_fd,
            session_fd=session_fd,
            tcp_fd=tcp_fd,
        )
        self.table = self._have.table
        self._zygote_pid = 0
        self._zygote_place = 0
        self._zygote_pipes: dict[str, OutputPipe] = {}
        self._control: socket.socket | None = None
        self._incoming = b""
        self._limit: Timer | None = None

    # --- the zygote ---

    def begin(self) -> None:
        """Make the zygote. Raises ZygoteBorn in the new process."""
        self._control, theirs = socket.socketpair()
        self._zygote_place = self._places.take()
        self._zygote_pipes, (stdout, stderr) = self._make_pipes("")
        if self._program.forks:
            template_pid = os.getpid()
            self._zygote_pid = fork()
            if self._zygote_pid == 0:
                zygote = Zygote(self._have, self._program, control=theirs, place=self._zygote_place)
                raise ZygoteBorn(zygote, template_pid=template_pid, stdout=stdout, stderr=stderr)
        else:
            settings = {"control": theirs.fileno(), "place": self._zygote_place}
            self._zygote_pid = self._spawn(settings, {theirs.fileno()}, stdout, stderr)
        theirs.close()
        os.close(stdout)
        os.close(stderr)
        self._control.setblocking(False)
        self._loop.watch(self._control.fileno(), self._on_control)
        self._limit = self._loop.later(self.spec.import_limit_s, self._on_import_limit)

    def _on_import_limit(self) -> None:
        """Let the zygote say where it is; one that cannot is ended all the same."""
        if self.phase is Phase.IMPORTING:
            os.kill(self._zygote_pid, signal.SIGUSR1)
            self._limit = self._loop.later(LAST_WORDS_S, self._on_silence)

    def _on_silence(self) -> None:
        if self.phase is Phase.IMPORTING:
            self.fail(f"import took longer than {self.spec.import_limit_s:g} s")

    def fail(self, reason: str, **more: Any) -> None:
        """The import came to nothing, for a reason the zygote could not tell itself."""
        self._import_failed({"file": "", "line": None, "reason": reason, "traceback": "", **more})

    def _import_failed(self, error: dict[str, Any]) -> None:
        self.phase = Phase.FAILED
        if self._limit is not None:
            self._limit.cancel()
        if self._zygote_pid:
            kill_group(self._zygote_pid)
        self._owner.on_import_failed(self, error)

    def _on_control(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            data = control.recv(1 << 16)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self._close_control()
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            self._hear(json.loads(line))

    def _hear(self, message: dict[str, Any]) -> None:
        event = message.pop("event")
        if event == "loaded" and self.phase is Phase.IMPORTING:
            if self._limit is not None:
                self._limit.cancel()
            self.forkable = not message["reason"]
            self.info = {**message, "import_ms": round((time.monotonic() - self.began_at) * 1000)}
            self.phase = Phase.READY
            if not self.forkable and self._hid_cuda:
                self._tell_zygote({"op": "end"})  # what it imported thinks that there is no GPU
            self._owner.on_loaded(self)
        elif event == "import_failed" and self.phase is Phase.IMPORTING:
            self._import_failed(message["error"])
        elif event == "forked":
            worker = self.workers[message["index"]]
            worker.pid = message["pid"]
            if worker.leaving:
                _terminate(worker.pid)  # asked to leave before it was known under a name
        elif event == "exited":
            self._on_worker_dead(message["pid"], message["status"])
        elif event == "retire" and self.phase is Phase.READY:
            self._owner.on_retire_wish(self)

    @property
    def _hid_cuda(self) -> bool:
        return self.spec.cuda_devices is not None and self.spec.resource.preload

    def _tell_zygote(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> bool:
        if self._control is None:
            return False
        data = json.dumps(message).encode() + b"\n"
        try:
            socket.send_fds(self._control, [data], list(fds))
        except OSError:
            return False  # it is dying, and its end is about to be heard
        return True

    def _close_control(self) -> None:
        if self._control is not None:
            self._loop.unwatch(self._control.fileno())
            self._control.close()
            self._control = None

    # --- workers ---

    def start_worker(self, *, reentrant: bool = False, one_shot: bool = False, may_idle_out: bool = True) -> bool:
        """Fork one (or spawn it, where forking is not safe). False when there is no room or the zygote is dying."""
        index = next((number for number in range(self.table.workers) if number not in self.workers), None)
        if index is None:
            return False
        record = self.table.record(index)
        record.reset()
        pipes, (stdout, stderr) = self._make_pipes(index)
        place = self._places.take()
        worker = Worker(
            index=index, place=place, record=record, pipes=pipes, reentrant=reentrant, permanent=not may_idle_out
        )
        orders = {
            "index": index,
            "place": place,
            "one_shot": one_shot,
            "reentrant": reentrant,
            "may_idle_out": may_idle_out,
        }
        self.workers[index] = worker
        started = True
        if self.forkable:
            started = self._tell_zygote({"op": "fork", **orders}, (stdout, stderr))
        elif self._zygote_pid and not self._hid_cuda:
            started = self._become(worker, orders, stdout, stderr)
        else:
            worker.pid = self._spawn({"assignment": orders}, set(), stdout, stderr)
        os.close(stdout)
        os.close(stderr)
        if not started:
            self._forget(worker)
        return started

    def _become(self, worker: Worker, orders: dict[str, Any], stdout: int, stderr: int) -> bool:
        """The zygote itself turns into this worker."""
        self._places.give(worker.place)
        worker.place = orders["place"] = self._zygote_place
        worker.pid, self._zygote_pid = self._zygote_pid, 0
        told = self._tell_zygote({"op": "become", **orders}, (stdout, stderr))
        self._close_control()
        return told

    def _spawn(self, settings: dict[str, Any], keep: set[int], stdout: int, stderr: int) -> int:
        have = self._have
        spec_fd = anonymous_file(json.dumps(self.spec.to_dict()).encode())
        fds = {
            "spec": spec_fd,
            "table": have.table.fd,
            "groups": have.groups.fd,
            "peer": have.peer_fd,
            "again": have.again_fd,
            "notify": have.notify_fd,
            "session": have.session_fd,
        }
        if have.tcp_fd is not None:
            fds["tcp"] = have.tcp_fd
        argument = json.dumps({"fds": fds, "parent": os.getpid(), **settings})
        pid = launch(
            [*self._program.spawn_command, argument],
            keep={*fds.values(), *keep},
            stdout=stdout,
            stderr=stderr,
            env=environment(self.spec, os.environ),
        )
        os.close(spec_fd)
        return pid

    def owns(self, pid: int) -> bool:
        """Whether `pid` leads a group of ours that must die with it."""
        return pid == self._zygote_pid or any(worker.pid == pid for worker in self.workers.values())

    def on_child_dead(self, pid: int, status: int) -> bool:
        """A child of the template's has ended. True when it was ours: the zygote, or a worker it left behind."""
        while self._control is not None and self._has_news():
            self._on_control()  # what the dead one had to say comes first
        if pid == self._zygote_pid:
            self._on_zygote_dead(status)
            return True
        return self._on_worker_dead(pid, status)

    def _has_news(self) -> bool:
        try:
            return self._control is not None and bool(self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _on_zygote_dead(self, status: int) -> None:
        self._zygote_pid = 0
        self._groups.leave(self._zygote_place)
        self._places.give(self._zygote_place)
        self._close_control()
        self._close_pipes("", self._zygote_pipes, "", "")
        for worker in [worker for worker in self.workers.values() if worker.pid == 0]:
            self._forget(worker)  # asked for, but never made
        if self.phase is Phase.IMPORTING or (self.phase is Phase.READY and self.forkable):
            self._owner.on_zygote_lost(self, status)
        self._finish_if_empty()

    def _on_worker_dead(self, pid: int, status: int) -> bool:
        worker = next((worker for worker in self.workers.values() if worker.pid == pid), None)
        if worker is None:
            return False
        head = worker.record.head()
        worker.was_ready = worker.was_ready or head.state not in (State.EMPTY, State.STARTING)
        self._forget(worker)
        self._owner.on_worker_exit(self, worker, status, called=head.calls > 0)
        self._finish_if_empty()
        return True

    def _forget(self, worker: Worker) -> None:
        del self.workers[worker.index]
        self._groups.leave(worker.place)
        self._places.give(worker.place)
        function, execution = attribute(worker.record.calls())
        self._close_pipes(self.worker_id(worker), worker.pipes, function, execution, worker)

    def worker_id(self, worker: Worker) -> str:
        return f"{self.spec.endpoint}/{self.spec.generation}.{worker.index}-{worker.pid}"

    def kill(self, worker: Worker, reason: str) -> None:
        """SIGKILL for its group; `reason` goes into WORKER_GONE."""
        worker.reason = worker.reason or reason
        if worker.pid:
            kill_group(worker.pid)

    def find(self, execution: str) -> tuple[Worker, Running] | None:
        """Who runs this execution now."""
        for worker in self.workers.values():
            for call in worker.record.running():
                if call.execution == execution:
                    return worker, call
        return None

    # --- the end ---

    def retire(self, drain_s: float, *, reason: str = "drain limit") -> None:
        """Workers accept no more, finish what runs within `drain_s` and leave; then the zygote ends."""
        if self.phase in (Phase.RETIRING, Phase.GONE):
            return
        importing = self.phase is Phase.IMPORTING
        self.phase = Phase.RETIRING
        if self._limit is not None:
            self._limit.cancel()
        if importing and self._zygote_pid:
            kill_group(self._zygote_pid)
        for worker in self.workers.values():
            if worker.pid:
                _terminate(worker.pid)
            self.drain_worker(worker, drain_s, reason=reason)
        self._finish_if_empty()

    def has_room_for(self, workers: int) -> bool:
        """Whether so many workers may be there at most without another table of records."""
        return bool(2 * max(1, workers) + EXTRA_WORKERS <= self.table.workers)

    def dismiss(self, worker: Worker) -> None:
        """One worker less: it finishes what it runs."""
        if worker.pid:
            _terminate(worker.pid)
        self.drain_worker(worker, self.spec.drain_limit_s)

    def drain_worker(self, worker: Worker, drain_s: float, *, reason: str = "drain limit") -> None:
        """It has been told to leave; kill it when it has not after `drain_s`."""
        worker.leaving = True

        def end_drain() -> None:
            if self.workers.get(worker.index) is worker:
                self.kill(worker, reason)

        self._loop.later(drain_s, end_drain)

    def _finish_if_empty(self) -> None:
        if self.phase not in (Phase.RETIRING, Phase.FAILED) or self.workers:
            return
        if self._zygote_pid:
            self._tell_zygote({"op": "end"})
            pid = self._zygote_pid
            self._loop.later(ZYGOTE_END_S, lambda: kill_group(pid) if self._zygote_pid == pid else None)
            return
        self.phase = Phase.GONE
        self.table.close()
        self._owner.on_gone(self)

    # --- output ---

    def _make_pipes(self, who: int | str) -> tuple[dict[str, OutputPipe], tuple[int, int]]:
        pipes: dict[str, OutputPipe] = {}
        ends = []
        for stream in ("stdout", "stderr"):
            read_fd, write_fd = os.pipe()
            pipe = pipes[stream] = OutputPipe(read_fd)
            ends.append(write_fd)
            self._loop.watch(read_fd, lambda stream=stream, pipe=pipe: self._on_output(who, stream, pipe))  # type: ignore[misc]
        return pipes, (ends[0], ends[1])

    def _on_output(self, who: int | str, stream: str, pipe: OutputPipe) -> None:
        lines, goes_on = pipe.take()
        if not goes_on:
            self._loop.unwatch(pipe.fd)  # its process has closed it; the descriptor is closed with the process
        if not lines:
            return
        worker = self.workers.get(who) if isinstance(who, int) else None
        if worker is None:
            self._owner.on_output("", stream, lines, "", "")
            return
        for writer, written in by_writer(lines, attribute(worker.record.calls())):
            if stream == "stderr":
                worker.tail.extend(written)
            self._owner.on_output(self.worker_id(worker), stream, written, *writer)

    def _close_pipes(
        self, worker_id: str, pipes: dict[str, OutputPipe], function: str, execution: str, worker: Worker | None = None
    ) -> None:
        for stream, pipe in pipes.items():
            for writer, written in by_writer(pipe.drain(), (function, execution)):
                if worker is not None and stream == "stderr":
                    worker.tail.extend(written)
                self._owner.on_output(worker_id, stream, written, *writer)
            self._loop.unwatch(pipe.fd)
            os.close(pipe.fd)


def _terminate(pid: int) -> None:
    """SIGTERM: finish and leave."""
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has left
