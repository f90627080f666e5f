"""The supervisor of one endpoint: makes zygotes and workers, enforces deadlines, reads their output, watches for peers.

It never imports user code, so that no import can hang or crash it, and each new build's zygote is forked from a process
as clean as on its first day. It has one thread and no event loop of asyncio: it forks. Its state is a handful of
generations (one per build): the current one makes workers, an incoming one imports, retiring ones drain.

What ends it: SIGTERM, DRAIN or the keeper's end (running calls finish first), the session's end (nothing does), or
having had no workers for `template_idle_s`.
"""

import json
import os
import signal
import socket
import sys
import time
from typing import Any

from flashmesh.wire.frames import (
    PROTOCOL_VERSION,
    AnyFrame,
    Cancel,
    Drain,
    Hello,
    Log,
    Ready,
    Scale,
    Update,
    WorkerGone,
)
from flashmesh.worker import parent
from flashmesh.worker.context import DEADLINE, LEAVING, READY
from flashmesh.worker.eventloop import EventLoop, Timer
from flashmesh.worker.groups import GroupTable, Places
from flashmesh.worker.keeper.spare import wait_to_become
from flashmesh.worker.launch import describe_status, kill_group, read_file, reap
from flashmesh.worker.records import State
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.template.demand import SETTLE_S, Crew, Limits, crew_of, forks_wanted, start_pause_s, surplus
from flashmesh.worker.template.enforcement import Enforcement
from flashmesh.worker.template.generation import Generation, Phase, Worker
from flashmesh.worker.template.output import LogOutlet
from flashmesh.worker.template.peers import PeerWatch, View
from flashmesh.worker.template.program import Program, UserProgram
from flashmesh.worker.template.session_link import SessionLink
from flashmesh.worker.template.zygote import ZygoteBorn

GIVE_UP_AFTER = 3
"""Workers in a row that died before they were ready, until the endpoint counts as broken."""
LAST_ACCEPT_S = 2.0
"""How long workers of the build before may take to hear that they shall leave, until the new one is said to serve."""
QUICK_S = 2.0
QUICK_PAUSE_S = 0.5
"""A zygote lost sooner than QUICK_S after it began is replaced after this pause, others at once."""


class Template:
    """The program. `run` returns when it is over; in a fresh zygote it raises ZygoteBorn."""

    def __init__(self, spec: WorkerSpec, fds: dict[str, int], program: Program) -> None:
        self._spec = spec
        self._program = program
        self._loop = EventLoop()
        self._session_fd = fds["session"]
        self._keeper_fd = fds["keeper"]
        self._peer = socket.socket(fileno=fds["peer"])
        self._again = socket.socket(fileno=fds["again"])
        self._tcp = socket.socket(fileno=fds["tcp"]) if "tcp" in fds else None
        self._groups = GroupTable.attach(fds["groups"])
        self._places = Places()
        self._notify_read, self._notify_write = os.pipe()
        for fd in (self._notify_read, self._notify_write):
            os.set_blocking(fd, False)
        self._generations: list[Generation] = []
        self._current: Generation | None = None
        self._incoming: Generation | None = None
        self._untold: Generation | None = None
        """It has taken over, which is said when no other build takes calls any more."""
        self._failure: dict[str, Any] | None = None
        self._demand = 0
        self._draining = False
        self._idle: Timer | None = None
        self._retry: Timer | None = None
        self._spare: Timer | None = None
        self._link = SessionLink(self._loop, spec.link, hello=self._hello, on_frame=self._on_frame)
        self._logs = LogOutlet(self._link.send_log)
        self._log_timer: Timer | None = None
        self._enforcement = Enforcement(self._loop)
        self._peers = PeerWatch(
            self._loop,
            peers=[self._peer] if self._tcp is None else [self._peer, self._tcp],
            again=self._again,
            look=self._look,
            fork=self._fork_for_peer,
            refusal=self._refusal,
        )

    def run(self) -> None:
        parent.adopt_orphans()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._loop.on_signal(signal.SIGTERM, lambda: self._drain("SIGTERM"))
        self._loop.watch(self._session_fd, self._on_session_gone)
        self._loop.watch(self._keeper_fd, self._on_keeper_gone)
        self._loop.watch(self._notify_read, self._on_notice)
        self._begin(self._spec)
        self._link.dial()
        self._loop.run()
        for pid in parent.children():
            kill_group(pid)  # what user code had put in groups of its own
        self._push_logs()
        self._link.flush()
        self._link.close()

    # --- the session ---

    def _hello(self) -> Hello:
        return Hello(
            PROTOCOL_VERSION,
            "template",
            self._spec.endpoint,
            self._spec.build,
            pid=os.getpid(),
            incarnation=self._spec.generation,
        )

    def _on_frame(self, frame: AnyFrame) -> None:
        match frame:
            case Scale():
                self._demand = frame.workers
                self._staff()
            case Update():
                self._update(WorkerSpec.from_dict(frame.spec))
            case Cancel():
                self._enforcement.cancel(frame.execution, frame.reason)
            case Drain():
                self._drain(frame.reason or "asked to", limit_s=frame.limit_ms / 1000 or None)
            case _:
                pass  # the link is shared by three roles; what is not for this one is not an error

    def _announce(self, generation: Generation, state: str, **more: Any) -> None:
        info = {"state": state, "build": generation.spec.build, "generation": generation.spec.generation, **more}
        self._link.send(Ready(0, info))

    def on_output(self, worker_id: str, stream: str, lines: list[str], function: str, execution: str) -> None:
        now_ms = int(time.time() * 1000)
        for line in lines:
            self._logs.put(
                Log(self._spec.endpoint, worker_id, stream, line, function, execution, now_ms)  # type: ignore[arg-type]
            )
        self._push_logs()

    def _say(self, text: str) -> None:
        self.on_output("", "system", [text], "", "")

    def _push_logs(self) -> None:
        again = self._logs.push()
        if again is not None and (self._log_timer is None or not self._log_timer.pending):
            self._log_timer = self._loop.later(again, self._push_logs)

    # --- generations ---

    def _update(self, spec: WorkerSpec) -> None:
        """Serve this build from now on. The newest wins: an import still under way is given up.

        Limits that are all that changed are taken over by the workers that are there.
        """
        if self._draining:
            return
        self._spec = spec
        for listener in (self._peer, self._tcp):
            if listener is not None:
                listener.listen(max(1, spec.resource.queue_size))  # on a listening socket this only sets the backlog
        if self._incoming is not None:
            incoming, self._incoming = self._incoming, None
            # Its first worker may be ready, and run a call, though we have yet to hear that.
            incoming.retire(incoming.spec.drain_limit_s)
        current = self._current
        if (
            current is not None
            and spec.differs_in_counts_only(current.spec)
            and current.has_room_for(spec.resource.workers_max)
        ):
            self._resize(current, spec)
            self._tell_when_alone(current)  # also when nothing differs: whoever offers it may not know that it serves
        else:
            self._begin(spec)
        self._attend()

    def _resize(self, generation: Generation, spec: WorkerSpec) -> None:
        generation.spec = spec
        workers = [worker for worker in generation.workers.values() if not worker.leaving and not worker.reentrant]
        workers.sort(key=lambda worker: worker.record.head().free == 0)  # who has nothing to do goes first
        for worker in surplus(workers, self._limits(spec)):
            generation.dismiss(worker)
        self._staff()

    def _begin(self, spec: WorkerSpec) -> None:
        generation = Generation(
            spec,
            loop=self._loop,
            program=self._program,
            owner=self,
            groups=self._groups,
            places=self._places,
            sockets=(self._peer.fileno(), self._again.fileno()),
            notify_fd=self._notify_write,
            session_fd=self._session_fd,
            tcp_fd=None if self._tcp is None else self._tcp.fileno(),
        )
        self._generations.append(generation)
        self._incoming = generation
        generation.begin()

    def on_loaded(self, generation: Generation) -> None:
        """The import worked. It takes over now, or, when there are workers to replace, with its first one."""
        if generation.info["reason"]:
            self._say(f"Workers of {self._spec.endpoint} are started, not forked: {generation.info['reason']}.")
        first_a_worker = generation is self._incoming and self._needs_a_worker(generation)
        alone = not first_a_worker and not self._others_accept(generation)
        self._announce_loaded(generation, serving=alone)
        if first_a_worker:
            self._start(generation)
        elif generation is self._incoming:
            self._take_over(generation, told=alone)

    def _needs_a_worker(self, generation: Generation) -> bool:
        """Before it takes over."""
        if self._current is not None and self._crew(self._current).live:
            return True
        return generation.spec.on_trial and generation.spec.resource.workers_min > 0

    def _announce_loaded(self, generation: Generation, *, serving: bool) -> None:
        """`serving`: it alone takes the endpoint's calls from now on, or would if there were any."""
        info = generation.info
        self._announce(
            generation,
            "ready" if generation.forkable else "not_forkable",
            functions=info["functions"],
            config=generation.spec.config,
            reason=info["reason"],
            native_threads=info["native_threads"],
            import_ms=info["import_ms"],
            serving=serving,
        )

    def _take_over(self, generation: Generation, *, told: bool) -> None:
        """`told`: that it serves was said already."""
        old, self._current, self._incoming = self._current, generation, None
        self._failure = None
        if old is not None:
            old.retire(old.spec.drain_limit_s)
        self._staff()
        if not told:
            self._tell_when_alone(generation)

    def _tell_when_alone(self, generation: Generation) -> None:
        """Say that it serves, as soon as no other build takes calls."""
        self._untold = generation
        self._loop.later(LAST_ACCEPT_S, lambda: self._tell_serving(generation, late=True))
        self._tell_serving(generation)

    def _others_accept(self, generation: Generation) -> bool:
        """Whether workers of other builds may take one more call: they have yet to hear that they shall leave."""
        heads = (
            worker.record.head()
            for other in self._generations
            if other is not generation
            for worker in other.workers.values()
        )
        return any(head.state is State.READY and head.free for head in heads)

    def _tell_serving(self, generation: Generation | None, *, late: bool = False) -> None:
        """Say that a build has taken over, once no other one takes calls; whoever deploys it calls it the next moment.

        late: say it whatever others do.
        """
        if generation is None or generation is not self._untold:
            return
        if late or not self._others_accept(generation):
            self._untold = None
            if generation is self._current:
                self._announce_loaded(generation, serving=True)

    def on_import_failed(self, generation: Generation, error: dict[str, Any]) -> None:
        self._announce(generation, "import_failed", error=error)
        self._say(f"{self._spec.endpoint} could not be imported: {error['reason']}")
        if generation is self._incoming:
            self._incoming = None
        if self._current is None:
            self._failure = error
        elif generation.spec.on_trial and self._incoming is None:
            self._spec = self._current.spec  # should the current one have to be made again, it is that one
        self._attend()
        if self._current is None and self._incoming is None and generation.spec.on_trial:
            self._drain("the build on trial could not be started")

    def on_zygote_lost(self, generation: Generation, status: int) -> None:
        """During the import: it failed. Later: its workers died with it, and a new one takes its place."""
        how = describe_status(status)
        if generation.phase is Phase.IMPORTING:
            generation.fail(f"the import ended the process with {how}")
            return
        self._say(f"The process that forks the workers of {self._spec.endpoint} ended with {how}; making another one.")
        if generation is self._incoming:
            generation.fail(f"the process that imported it ended with {how}")
            return
        self._current = None
        generation.retire(0, reason="its zygote was lost")
        if not self._draining and self._incoming is None:
            lived = time.monotonic() - generation.began_at
            self._retry = self._loop.later(0.0 if lived > QUICK_S else QUICK_PAUSE_S, self._begin_again)

    def on_retire_wish(self, generation: Generation) -> None:
        """Its zygote got a SIGTERM: replace the generation as an update would."""
        if generation is self._current and self._incoming is None and not self._draining:
            self._begin(generation.spec)
            self._attend()

    def _begin_again(self) -> None:
        if not self._draining and self._incoming is None and self._current is None:
            self._begin(self._spec)
            self._attend()

    def on_gone(self, generation: Generation) -> None:
        self._generations.remove(generation)
        self._enforcement.forget(generation)
        if self._draining and not self._generations:
            self._loop.stop()

    # --- workers ---

    def _crew(self, generation: Generation, *, reentrant: bool = False) -> Crew:
        now = time.monotonic()
        return crew_of(
            (worker.record.head(), now - worker.since)
            for worker in generation.workers.values()
            if not worker.leaving and worker.reentrant is reentrant
        )

    def _look(self) -> View | None:
        """Who can take peers' calls now, and may there be more? None: no worker can be made at the moment."""
        generation = self._current
        if generation is None or self._draining or self._in_pause():
            return None
        limits = self._limits(generation.spec)
        return View(generation, self._crew(generation), self._crew(generation, reentrant=True), limits)

    def _limits(self, spec: WorkerSpec) -> Limits:
        resource = spec.resource
        return Limits(resource.workers_min, max(1, resource.workers_max), self._demand, resource.mode == "JOB")

    def _staff(self, *, taken: bool = False) -> None:
        """Start the workers that are wanted, if the current build can make any."""
        generation = self._current
        if generation is not None and not self._draining and not self._in_pause():
            for _ in range(forks_wanted(self._crew(generation), self._limits(generation.spec), taken=taken)):
                if not self._start(generation):
                    break
        self._attend()

    def _in_pause(self) -> bool:
        return self._retry is not None and self._retry.pending

    def _start(self, generation: Generation, *, reentrant: bool = False) -> bool:
        resource = generation.spec.resource
        permanent = sum(not worker.leaving and not worker.reentrant for worker in generation.workers.values())
        return generation.start_worker(
            reentrant=reentrant,
            one_shot=resource.mode == "JOB",
            may_idle_out=reentrant or permanent >= resource.workers_min,
        )

    def _fork_for_peer(self, reentrant: bool) -> None:
        if self._current is not None and not self._draining and not self._in_pause():
            self._start(self._current, reentrant=reentrant)
        self._attend()

    def _on_notice(self) -> None:
        """Workers say that they are ready, full, or have a deadline of their own; their records say the rest."""
        words = os.read(self._notify_read, 4096)
        if READY in words:
            self._note_ready()
        if DEADLINE in words:
            self._enforcement.attend(self._generations)
        if LEAVING in words:
            self._note_leaving()
        if not self._wants_spare():
            self._peers.attend()
        elif self._spare is None or not self._spare.pending:  # after a moment: a short call has the CPU to itself
            self._spare = self._loop.later(SETTLE_S, lambda: self._staff(taken=True))

    def _wants_spare(self) -> bool:
        """Whether one more worker may be due because one was taken. At the maximum it comes when one has left."""
        generation = self._current
        if generation is None or self._spec.resource.mode != "JOB":
            return False
        return self._crew(generation).live < self._limits(generation.spec).maximum

    def _note_ready(self) -> None:
        for generation in list(self._generations):
            for worker in generation.workers.values():
                # In JOB mode it may have got its call, and be leaving, before we came to look.
                if worker.was_ready or worker.record.head().state in (State.EMPTY, State.STARTING):
                    continue
                worker.was_ready = True
                if generation.start_failures >= GIVE_UP_AFTER:
                    self._failure = None
                    self.on_loaded(generation)  # it works after all: say so
                generation.start_failures = 0
            if generation is self._incoming and any(worker.was_ready for worker in generation.workers.values()):
                self._take_over(generation, told=False)

    def _note_leaving(self) -> None:
        """Somebody sent a worker a SIGTERM: it has the drain limit, and its place is free for another one."""
        for generation in self._generations:
            for worker in generation.workers.values():
                if not worker.leaving and worker.record.head().state is State.DRAINING:
                    generation.drain_worker(worker, self._spec.drain_limit_s)
        self._staff()
        self._tell_serving(self._untold)

    def on_worker_exit(self, generation: Generation, worker: Worker, status: int, *, called: bool) -> None:
        begun = [call.execution for call in worker.record.calls()]
        self._link.send(WorkerGone(generation.worker_id(worker), worker.pid, status, worker.reason, begun))
        self._tell_serving(self._untold)
        if generation.phase is not Phase.READY:
            return
        if not worker.was_ready and not worker.leaving:
            self._on_start_failure(generation, worker, status)
        elif generation is self._incoming:
            self._on_first_gone(generation, worker)
        elif status == 0 and not worker.reentrant and not (called and generation.spec.resource.mode == "JOB"):
            self._demand = min(self._demand, self._crew(generation).live)  # it left by itself: nobody wants that many
        if generation is self._current:
            self._staff(taken=called)

    def _on_first_gone(self, generation: Generation, worker: Worker) -> None:
        """The first worker of a build has ended before it was noticed: after its one call (JOB), or by a SIGTERM."""
        if worker.was_ready:
            self._take_over(generation, told=False)
        else:
            self._start(generation)

    def _on_start_failure(self, generation: Generation, worker: Worker, status: int) -> None:
        """It died before it was ready: a start-up hook, most likely. Not again at once, and not for ever in silence."""
        generation.start_failures += 1
        reason = f"a worker ended with {describe_status(status)} before it was ready"
        if generation is self._incoming:
            self._incoming = None
            generation.fail(reason, traceback="\n".join(worker.tail))
            return
        if generation.start_failures == GIVE_UP_AFTER:
            error = {"file": "", "line": None, "reason": reason, "traceback": "\n".join(worker.tail)}
            self._failure = error
            self._demand = 0
            self._announce(generation, "import_failed", error=error)
            self._say(
                f"{self._spec.endpoint} cannot start: {reason}. See its output above; save the file to try again."
            )
        pause_s = start_pause_s(generation.start_failures)
        if pause_s:
            self._retry = self._loop.later(pause_s, self._staff)

    def _attend(self) -> None:
        """After anything changed: what to watch, when to look at deadlines, when to leave."""
        if self._look() is None:
            self._peers.rest(refuse=self._failure is not None and self._incoming is None and not self._draining)
        else:
            self._peers.attend()
        self._enforcement.attend(self._generations)
        busy = self._incoming is not None or any(generation.workers for generation in self._generations)
        if busy and self._idle is not None:
            self._idle.cancel()
            self._idle = None
        elif not busy and not self._draining and (self._idle is None or not self._idle.pending):
            self._idle = self._loop.later(self._spec.template_idle_s, lambda: self._drain("idle"))

    def _refusal(self, headers: dict[str, str]) -> tuple[int, dict[str, object]]:
        if self._failure is not None:
            reason = f"{self._spec.endpoint} could not be imported: {self._failure['reason']}"
            return 503, {"code": "IMPORT_FAILED", "type": "ImportFailed", "message": reason, "ran": False}
        chain = headers.get("x-flash-chain", "")
        reason = f"The call came back to {self._spec.endpoint}, which cannot take one more while it waits: {chain}"
        return 508, {"code": "CALL_CYCLE", "type": "CallCycle", "message": reason, "ran": False}

    # --- the end ---

    def _reap(self) -> None:
        def bury(pid: int) -> None:
            if any(generation.owns(pid) for generation in self._generations):
                kill_group(pid)

        for pid, status in reap(bury):
            for generation in list(self._generations):
                if generation.on_child_dead(pid, status):
                    break
        self._attend()

    def _on_keeper_gone(self) -> None:
        self._loop.unwatch(self._keeper_fd)
        self._drain("the keeper is gone")

    def _on_session_gone(self) -> None:
        """However it died: nothing of ours may stay."""
        for pid in [*self._groups.pids(), *parent.children()]:
            kill_group(pid)
        os._exit(0)

    def _drain(self, reason: str, *, limit_s: float | None = None) -> None:
        """Take nothing more, let running calls finish, leave with status 0."""
        if self._draining:
            return
        self._draining = True
        self._current = self._incoming = None
        self._peers.rest(refuse=False)
        for generation in list(self._generations):
            generation.retire(self._spec.drain_limit_s if limit_s is None else limit_s)
        if not self._generations:
            self._loop.stop()


def main(argument: str, program: Program) -> None:
    """`argument`: {"spec", "peer", "again", "groups", "session", "keeper", and "tcp" where the endpoint has such a
    socket}: descriptors inherited from the keeper.
    {"ahead": fd}: the same will come over that socket, once an endpoint wants its template.
    """
    parent.prepare()
    program.preload()
    fds: dict[str, int] = json.loads(argument)
    if "ahead" in fds:
        fds = wait_to_become(fds["ahead"])
    for fd in fds.values():
        os.set_inheritable(fd, False)
    spec = WorkerSpec.from_dict(json.loads(read_file(fds["spec"])))
    template = Template(spec, fds, program)
    try:
        template.run()
        os._exit(0)  # no user code was imported here: taking the interpreter apart would only cost 50 ms of CPU
    except ZygoteBorn as zygote_born:
        born = zygote_born
    # Outside the handler, or every exception of user code would be "raised while handling" this one. `template` stays
    # referenced for the zygote's life: its sockets' descriptors are closed there and their numbers used again, and an
    # object that is collected would close the new owner's.
    born.zygote.live(template_pid=born.template_pid, stdout=born.stdout, stderr=born.stderr)


if __name__ == "__main__":
    main(sys.argv[1], UserProgram())
