"""The dev template: keeps uvicorn and our modules imported, owns the TCP port, forks a dev server child per change.

Run as `python -P -m flashmesh.dev.server.template` by the session (`server_process.py` says with which environment
and which lines they exchange). It never runs user code and has no event loop, so it stays cheap and safe to fork; a
child that crashes is replaced, and connections wait in the port's backlog meanwhile.  A change is served like this:
fork a child, which loads the new `.flash/server.py` (loaded); tell the old child to stop listening and to hand its
idle connections over (left); tell the new one to listen (serving); tell the session (ready). From then on no request
is answered by old code, and none was refused or lost.
"""

import contextlib
import dataclasses
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Literal

from flashmesh.dev.server import options as dev_options
from flashmesh.dev.server.child import CHILD_VARIABLE, LEAVING_LIMIT_S, run_child
from flashmesh.dev.server.handover import channel
from flashmesh.dev.server.lines import Lines, Message
from flashmesh.worker import parent
from flashmesh.worker.launch import fork

LEAVE_ANSWER_S = 1.0
"""How long the old child may take to stop listening; user code that blocks its loop must not hold up the new one."""
MOST_LEAVING = 4
HURRIED_LIMIT_S = 30.0
"""How long an old child may take once there are more than MOST_LEAVING of them: a stream that never ends holds one."""
QUICK_DEATH_S = 2.0
_QUICK_DEATHS = 3
_PRELOADED = ("flashmesh.dev.server.app", "uvloop", "uvicorn.protocols.http.httptools_impl", "uvicorn.lifespan.on")
_FOR_ROUTES = ("fastapi", "flashmesh.worker.lb.app", "flashmesh.worker.loader")

ChildStage = Literal["loading", "waiting", "serving", "leaving"]


@dataclasses.dataclass(slots=True, eq=False)
class Child:
    """One forked server process, as the template sees it."""

    pid: int
    generation: int
    lines: Lines
    stage: ChildStage
    handed: socket.socket | None
    """The end through which older children hand their connections to this one, while it is the newest."""
    born: float
    ends_by: float = float("inf")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TemplateSettings:
    """What the session gave to this process; see `server_process.py`."""

    listen_fd: int
    control_fd: int
    session_fd: int
    root: Path
    options: dev_options.DevOptions

    @classmethod
    def load(cls, environment: dict[str, str]) -> "TemplateSettings":
        return cls(
            listen_fd=int(environment["FLASH_DEV_LISTEN_FD"]),
            control_fd=int(environment["FLASH_DEV_CONTROL_FD"]),
            session_fd=int(environment["FLASH_SESSION_PIPE_FD"]),
            root=Path(environment["FLASH_PROJECT_ROOT"]),
            options=dev_options.load(environment),
        )


class DevTemplate:
    """The template's loop: one selector over the session, its pipe, and its children."""

    def __init__(self, settings: TemplateSettings) -> None:
        self._settings = settings
        self._listener = socket.socket(fileno=settings.listen_fd)
        self._session = Lines(socket.socket(fileno=settings.control_fd))
        self._children: list[Child] = []
        self._closing = False
        self._fresh_deaths = 0
        self._routes_wanted = False
        self._leave_by = float("inf")
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()

    def run(self) -> int:
        """Until the session closes it or is gone."""
        self._install_signals()
        self._selector.register(self._session.fileno(), selectors.EVENT_READ)
        self._selector.register(self._settings.session_fd, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        while not (self._closing and not self._children):
            self._wait()
            self._reap()
            self._enforce_limits()
        return 0

    def _install_signals(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake_out, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: self._close())

    def _wait(self) -> None:
        for key, _ in self._selector.select(self._until_next_limit()):
            if key.fd == self._wake_in:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_in, 4096)
            elif key.fd == self._settings.session_fd:
                if not os.read(key.fd, 1):
                    self._die()
            elif key.fd == self._session.fileno():
                self._hear_session()
            else:
                self._hear_child(key.data)

    # The session's wishes

    def _hear_session(self) -> None:
        for message in self._session.receive():
            if message["op"] == "serve" and not self._closing:
                self._fresh_deaths = 0
                self._serve(int(message["generation"]))
            elif message["op"] == "close":
                self._close(message.get("limit_s"))
        if self._session.closed:
            self._selector.unregister(self._session.fileno())
            self._close()

    def _serve(self, generation: int) -> None:
        for child in [child for child in self._children if child.stage in ("loading", "waiting")]:
            self._end(child)  # the newest change wins
            self._tell("exited", child, superseded=True)
        child = self._fork(generation)
        self._children.append(child)
        self._selector.register(child.lines.fileno(), selectors.EVENT_READ, child)
        self._tell("started", child)

    def _close(self, limit_s: float | None = None) -> None:
        if self._closing:
            return
        self._closing = True
        limit = self._settings.options.drain_limit_s if limit_s is None else limit_s
        for child in list(self._children):
            if child.stage in ("loading", "waiting"):
                self._end(child)
                continue
            child.ends_by = time.monotonic() + limit + 1
            child.lines.send({"op": "close", "limit_s": limit})
        self._listener.close()

    # A child's news

    def _hear_child(self, child: Child) -> None:
        for message in child.lines.receive():
            event = message.pop("event")
            if event == "loaded":
                self._on_loaded(child, message)
            elif event == "left":
                self._leave_by = float("inf")
                self._let_newest_listen()
            elif event == "serving":
                self._on_serving(child)
            elif event == "failed":
                child.stage = "leaving"
                self._tell("failed", child, **message)
            else:
                self._tell(event, child, **message)
        if child.lines.closed and child.lines.fileno() in self._selector.get_map():
            self._selector.unregister(child.lines.fileno())

    def _on_loaded(self, child: Child, traits: Message) -> None:
        child.stage = "waiting"
        self._routes_wanted = self._routes_wanted or bool(traits.get("has_routes"))
        old = self._serving()
        self._redirect(child)
        if old is None:
            child.lines.send({"op": "go"})
            return
        now = time.monotonic()
        old.stage = "leaving"
        old.ends_by = now + LEAVING_LIMIT_S + 1
        self._leave_by = now + LEAVE_ANSWER_S
        leaving = [other for other in self._children if other.stage == "leaving"]
        for other in leaving[:-MOST_LEAVING]:
            other.ends_by = min(other.ends_by, now + HURRIED_LIMIT_S)

    def _redirect(self, newest: Child) -> None:
        """Tell every older child to hand its connections to the newest; those that are leaving already, too."""
        assert newest.handed is not None
        for other in self._children:
            if other.stage in ("serving", "leaving"):
                other.lines.send({"op": "leave"}, newest.handed.fileno())
                if other.handed is not None:
                    other.handed.close()
                    other.handed = None

    def _let_newest_listen(self) -> None:
        for child in self._children:
            if child.stage == "waiting":
                child.lines.send({"op": "go"})

    def _on_serving(self, child: Child) -> None:
        child.stage = "serving"
        self._tell("ready", child)
        if self._routes_wanted:
            self._routes_wanted = False
            _preload(_FOR_ROUTES)  # so that the next child of a project with HTTP routes need not import it

    def _tell(self, event: str, child: Child, **more: Any) -> None:
        self._session.send({"event": event, "generation": child.generation, "pid": child.pid, **more})

    def _serving(self) -> Child | None:
        return next((child for child in self._children if child.stage == "serving"), None)

    # Births and deaths

    def _fork(self, generation: int) -> Child:
        handed_from, handed_to = channel()
        ours, theirs = socket.socketpair()
        if self._settings.options.spawn:
            pid = self._spawn(theirs, handed_to)
        else:
            gc.collect()
            gc.freeze()
            template = os.getpid()
            pid = fork()
            if pid == 0:
                ours.close()
                handed_from.close()
                self._become_child(theirs, handed_to, template)
        theirs.close()
        handed_to.close()
        return Child(pid, generation, Lines(ours), "loading", handed_from, time.monotonic())

    def _become_child(self, control: socket.socket, handed: socket.socket, template: int) -> None:
        """In the new process: let go of what is the template's, then serve. Does not return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            settings = self._settings
            if settings.options.inline:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            else:
                os.setpgid(0, 0)  # so that what user code starts can be ended together with it
            parent.die_with_parent(template)
            self._selector.close()
            os.close(self._wake_in)
            os.close(self._wake_out)
            self._session.close()
            for child in self._children:
                child.lines.close()
                if child.handed is not None:
                    child.handed.close()
            status = run_child(
                root=settings.root,
                listener=self._listener,
                control=control,
                handed=handed,
                session_fd=settings.session_fd,
                options=settings.options,
            )
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _spawn(self, control: socket.socket, handed: socket.socket) -> int:
        import subprocess  # only where there is no fork

        settings = self._settings
        descriptors = {
            "listener": self._listener.fileno(),
            "control": control.fileno(),
            "handed": handed.fileno(),
            "session": settings.session_fd,
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flashmesh.dev.server.child"],
            env={**os.environ, CHILD_VARIABLE: json.dumps(descriptors)},
            pass_fds=tuple(descriptors.values()),
            process_group=None if settings.options.inline else 0,
        )
        process.returncode = 0  # we reap it ourselves, with the forked ones
        return process.pid

    def _reap(self) -> None:
        for child in list(self._children):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._forget(child)
                self._kill_group(child)  # what its user code started ends with it
                self._on_death(child, os.waitstatus_to_exitcode(status))

    def _on_death(self, child: Child, status: int) -> None:
        self._tell("exited", child, status=status)
        if child.stage == "leaving" or self._closing:
            if self._leave_by != float("inf"):
                self._leave_by = float("inf")
                self._let_newest_listen()
            return
        quick = time.monotonic() - child.born < QUICK_DEATH_S
        self._fresh_deaths = self._fresh_deaths + 1 if quick else 0
        newest = max((other.generation for other in self._children), default=-1)
        if child.generation < newest:
            return
        reason = f"the server process ended with {_in_words(status)}"
        if self._fresh_deaths >= _QUICK_DEATHS or child.stage == "loading":
            self._tell("failed", child, reason=f"{reason} while it was starting; save a file to try again")
            return
        self._tell("problem", child, reason=f"{reason}; a new one takes its place")
        self._serve(child.generation)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        if now >= self._leave_by:
            self._leave_by = float("inf")
            self._let_newest_listen()
        for child in self._children:
            if now >= child.ends_by:
                self._kill_group(child)

    def _until_next_limit(self) -> float | None:
        nearest = min([self._leave_by, *(child.ends_by for child in self._children)])
        return None if nearest == float("inf") else max(0.0, nearest - time.monotonic())

    def _end(self, child: Child) -> None:
        """Kill it and wait for that."""
        self._kill_group(child)
        os.waitpid(child.pid, 0)
        self._forget(child)

    def _forget(self, child: Child) -> None:
        self._children.remove(child)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(child.lines.fileno())
        child.lines.close()
        if child.handed is not None:
            child.handed.close()

    def _kill_group(self, child: Child) -> None:
        for kill in (os.kill,) if self._settings.options.inline else (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(child.pid, signal.SIGKILL)

    def _die(self) -> None:
        """The session is gone, however it died: nothing of ours may stay."""
        for child in self._children:
            self._kill_group(child)
        os._exit(1)


def _in_words(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def _pipe() -> tuple[int, int]:
    ends = os.pipe()
    for end in ends:
        os.set_blocking(end, False)
    return ends


def _preload(names: tuple[str, ...]) -> None:
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def main() -> int:
    """Entry point of the process."""
    settings = TemplateSettings.load(dict(os.environ))
    gc.disable()
    _preload(_PRELOADED)
    gc.enable()
    parent.prepare()
    return DevTemplate(settings).run()


if __name__ == "__main__":
    sys.exit(main())
