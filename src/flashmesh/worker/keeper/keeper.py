"""The tiny process that owns the endpoints' sockets and starts their templates.

It imports nothing but the standard library, never user code, and does almost nothing: that is why it stays alive when
everything below it does not. A client of the endpoint's socket that connects while no template runs waits in the
backlog; the keeper sees it and starts the template. When a template dies the keeper kills the process groups it had
made, which it reads from memory shared with it, and starts it again only when somebody wants it, with growing pauses if
it keeps dying.

It serves its session over a socketpair in lines of JSON: `{"id", "op", …}` → `{"id", "ok", …} | {"id", "error"}`, and
`{"event", …}` unasked. It ends what it started, and itself, when that socket or the session pipe closes.

Detached, it has no session but servers that come and go, one at a time, at a socket of its own. It is then the session
for what it starts: it holds the write end of the pipe that templates and workers watch, so that its own death, however
it comes, still ends everything; a server's ends nothing.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time

from flashmesh.worker.eventloop import EventLoop
from flashmesh.worker.keeper import pidfile
from flashmesh.worker.keeper.endpoints import Endpoint, Template
from flashmesh.worker.keeper.spare import Spare
from flashmesh.worker.launch import anonymous_file, describe_status, kill_group, launch
from flashmesh.worker.parent import adopt_orphans, children

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is 6 ms, a third of this program's start
    from collections.abc import Callable
    from typing import Any

SETTLED_S = 5.0
"""A template that lived this long did not fail to start."""
SPARE_LIFE_S = 30.0
"""How long a template that was started ahead waits for its endpoint. It costs memory; only a start is in a hurry."""
LAST_WORD_S = 0.5
"""How long templates may take to end their workers once the session is gone, before the keeper does it for them."""


def backoff_s(failures: int) -> float:
    """The pause before the next start after `failures` deaths in a row: 0, then 0.2 s doubling up to 10 s."""
    return 0.0 if failures == 0 else min(10.0, 0.1 * 2**failures)


class Keeper:
    """The program: one instance per process."""

    def __init__(
        self,
        *,
        control: socket.socket | None,
        session_fd: int,
        template_argv: list[str],
        listener: socket.socket | None = None,
        ahead: bool = False,
    ) -> None:
        """Args:
        control: the session's end of the conversation; None = servers come by `listener`.
        session_fd: read end of the pipe whose end is the session's; templates inherit it.
        ahead: whether a template is to be started before it is asked for.
        """
        self._loop = EventLoop()
        self._control = control
        self._listener = listener
        self._session_fd = session_fd
        self._template_argv = template_argv
        self._endpoints: dict[str, Endpoint] = {}
        self._incoming = b""
        self._outgoing = b""
        self._ending = False
        self._ahead = ahead
        self._spare: Spare | None = None

    def run(self) -> None:
        adopt_orphans()
        if self._listener is not None:
            self._listener.setblocking(False)
            self._loop.watch(self._listener.fileno(), self._on_server)
        if self._control is not None:
            self._serve(self._control)
            self._loop.watch(self._session_fd, self._on_session_gone)
        self._loop.on_signal(signal.SIGCHLD, self._reap)
        self._loop.on_signal(signal.SIGTERM, self._end_after_drain)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the session's to handle
        if self._ahead:
            self._spare = Spare(self._template_argv)
            self._loop.later(SPARE_LIFE_S, self._drop_spare)
        self._loop.run()
        self._drop_spare()
        end = time.monotonic() + LAST_WORD_S
        while children() and time.monotonic() < end:  # orphans reach us one by one, as their own parents die
            self._kill_adopted()
            self._reap()
            time.sleep(0.002)
        for endpoint in self._endpoints.values():
            endpoint.close()

    # --- what the session says ---

    def _serve(self, control: socket.socket) -> None:
        control.setblocking(False)
        self._control = control
        self._incoming = self._outgoing = b""
        self._loop.watch(control.fileno(), self._on_control)

    def _on_server(self) -> None:
        """A server wants to take over. One at a time; one that died without our having noticed is no obstacle."""
        assert self._listener is not None
        try:
            server, _ = self._listener.accept()
        except OSError:
            return
        if _user_of(server) not in (-1, os.getuid()):
            server.close()
            return
        while self._control is not None and select.select([self._control], [], [], 0)[0]:
            self._on_control()  # its end may be what is there to read, behind its last words
        if self._control is None and not self._ending:
            self._serve(server)
            self._say({"welcome": os.getpid()})
            return
        reason = "it is ending" if self._ending else "another server is connected to it; stop that one first"
        server.setblocking(False)
        try:
            server.send(json.dumps({"refused": f"the keeper cannot be taken over: {reason}"}).encode() + b"\n")
        except OSError:
            pass  # it did not wait for the answer
        server.close()

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
            self._loop.unwatch(control.fileno())
            if self._listener is None:
                self._on_session_gone()
            else:
                control.close()
                self._control = None
            return
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            self._obey(json.loads(line))

    def _obey(self, message: dict[str, Any]) -> None:
        number = message.pop("id")
        operation = message.pop("op")
        asked_by = self._control

        def answer(**body: Any) -> None:
            if self._control is asked_by:  # else its numbers mean nothing to whoever is connected now
                self._say({"id": number, "ok": True, **body})

        try:
            getattr(self, f"_do_{operation}")(answer, **message)
        except (OSError, KeyError, TypeError, AttributeError) as error:
            self._say({"id": number, "error": f"{type(error).__name__}: {error}"})

    def _do_open(
        self,
        answer: Callable[..., None],
        endpoint: str,
        path: str,
        again_path: str,
        backlog: int,
        tcp: list[Any] | None = None,
    ) -> None:
        """`tcp`: [host, port] of a socket to have besides. That it cannot be had is said and no error: those who come
        by the others are served."""
        if endpoint not in self._endpoints:
            self._endpoints[endpoint] = Endpoint(endpoint, path, again_path, backlog=backlog)
            self._watch_peers(self._endpoints[endpoint])
        target = self._endpoints[endpoint]
        problem, unknown = "", False
        if tcp is not None and target.tcp is None:
            try:
                target.listen_tcp(*tcp, backlog=backlog)
            except OSError as error:
                problem = error.strerror or str(error)
            else:
                unknown = target.template is not None
                if target.template is None:
                    self._watch_peers(target)
        answer(paths=target.paths, tcp=target.address, tcp_error=problem, tcp_unknown=unknown)

    def _do_state(self, answer: Callable[..., None]) -> None:
        """What a server that takes over must know."""
        answer(
            pid=os.getpid(),
            endpoints=[
                {
                    "endpoint": endpoint.name,
                    "paths": endpoint.paths,
                    "tcp": endpoint.address,
                    "spec": endpoint.spec,
                    "template": endpoint.template.pid if endpoint.template is not None else 0,
                    "failures": endpoint.failures,
                    "wanted": endpoint.wanted,
                }
                for endpoint in self._endpoints.values()
            ],
        )

    def _do_remember(self, answer: Callable[..., None], endpoint: str, spec: dict[str, Any]) -> None:
        self._endpoints[endpoint].spec = spec
        answer()

    def _do_start(self, answer: Callable[..., None], endpoint: str, spec: dict[str, Any], trial: bool = False) -> None:
        """`trial`: this once; peers that find no template later have what was remembered started."""
        target = self._endpoints[endpoint]
        if not trial:
            target.spec = spec

        def start() -> None:
            if target.template is None:
                self._start(target, spec)
            answer(pid=target.template.pid if target.template else 0)

        if target.template is None and target.not_before > time.monotonic():
            target.waiting.append(start)
            self._pause(target)
        else:
            start()

    def _do_stop(self, answer: Callable[..., None], endpoint: str, drain_s: float) -> None:
        self._stop(self._endpoints[endpoint], drain_s, answer)

    def _do_close(self, answer: Callable[..., None], endpoint: str, drain_s: float) -> None:
        def finish() -> None:
            closing = self._endpoints.pop(endpoint, None)
            if closing is not None:
                self._look_away(closing)
                closing.close()
            answer()

        self._stop(self._endpoints[endpoint], drain_s, finish)

    def _do_end(self, answer: Callable[..., None], drain_s: float) -> None:
        self._ending = True
        answer()
        for endpoint in self._endpoints.values():
            self._stop(endpoint, drain_s, _nothing)
        self._end_if_empty()

    def _say(self, message: dict[str, Any]) -> None:
        if self._control is not None:
            self._outgoing += json.dumps(message).encode() + b"\n"
            self._flush()

    def _flush(self) -> None:
        control = self._control
        if control is None:
            return
        try:
            while self._outgoing:
                self._outgoing = self._outgoing[control.send(self._outgoing) :]
        except BlockingIOError:
            self._loop.watch(control.fileno(), self._on_control, self._flush)
            return
        except OSError:
            self._outgoing = b""  # the session is gone, which the loop is about to notice
            return
        if self._loop.watches(control.fileno()):
            self._loop.watch(control.fileno(), self._on_control)

    # --- templates ---

    def _start(self, endpoint: Endpoint, spec: dict[str, Any] | None) -> None:
        """Exec a template on the endpoint's sockets with that spec."""
        endpoint.wanted = False
        self._look_away(endpoint)
        ours, theirs = socket.socketpair()
        spec_fd = anonymous_file(json.dumps(spec).encode())
        fds = {
            "peer": endpoint.peer.fileno(),
            "again": endpoint.again.fileno(),
            "groups": endpoint.groups.fd,
            "session": self._session_fd,
            "keeper": theirs.fileno(),
            "spec": spec_fd,
        }
        if endpoint.tcp is not None:
            fds["tcp"] = endpoint.tcp.fileno()
        spare, self._spare = self._spare, None
        if spare is not None and spare.become(fds):
            pid = spare.pid
        else:
            pid = launch([*self._template_argv, json.dumps(fds)], keep=fds.values())
        theirs.close()
        os.close(spec_fd)
        endpoint.template = Template(pid, ours)

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.drop()

    def _stop(self, endpoint: Endpoint, drain_s: float, then: Callable[[], None]) -> None:
        """SIGTERM, which makes the template drain; SIGKILL when it is still there a second after `drain_s`."""
        template = endpoint.template
        if template is None:
            then()
            return
        endpoint.on_gone.append(then)
        if not template.stopping:
            template.stopping = True
            os.kill(template.pid, signal.SIGTERM)

        def kill() -> None:
            if endpoint.template is template:
                kill_group(template.pid)

        self._loop.later(drain_s + 1.0, kill)

    def _reap(self) -> None:
        """Templates first: the groups of a dead one must be killed while their leaders' ids cannot be used again.

        Orphaned zygotes and workers are children of ours by then (see `adopt_orphans`), reaped only after that.
        """
        for endpoint in list(self._endpoints.values()):
            template = endpoint.template
            if template is None:
                continue
            pid, status = os.waitpid(template.pid, os.WNOHANG)
            if pid:
                self._on_template_exit(endpoint, template, os.waitstatus_to_exitcode(status))
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if self._spare is not None and self._spare.pid == pid:
                self._drop_spare()
        self._kill_adopted()
        self._end_if_empty()

    def _on_template_exit(self, endpoint: Endpoint, template: Template, status: int) -> None:
        for pid in endpoint.groups.pids():
            kill_group(pid)
        endpoint.groups.clear()
        template.control.close()
        endpoint.template = None
        lived = time.monotonic() - template.started_at
        expected = template.stopping or status == 0
        endpoint.failures = 0 if expected else 1 if lived > SETTLED_S else endpoint.failures + 1
        pause = backoff_s(endpoint.failures)
        endpoint.not_before = time.monotonic() + pause
        reason = "" if expected else _why(endpoint, status, pause)
        self._say(
            {
                "event": "template_exited",
                "endpoint": endpoint.name,
                "pid": template.pid,
                "status": status,
                "failures": endpoint.failures,
                "reason": reason,
            }
        )
        done, endpoint.on_gone = endpoint.on_gone, []
        for callback in done:
            callback()
        if self._endpoints.get(endpoint.name) is endpoint and not self._ending:
            self._pause(endpoint)

    def _kill_adopted(self) -> None:
        """What a dead template left to us: zygotes and workers, and what user code had put in groups of its own.

        Every child of ours that is not a template; its own children come to us, and here again, when it has died.
        """
        templates = {endpoint.template.pid for endpoint in self._endpoints.values() if endpoint.template is not None}
        if self._spare is not None:
            templates.add(self._spare.pid)
        for pid in children():
            if pid not in templates:
                kill_group(pid)

    def _pause(self, endpoint: Endpoint) -> None:
        """After the back-off, if there is one, listen for those who want the endpoint, and obey waiting commands."""

        def over() -> None:
            waiting, endpoint.waiting = endpoint.waiting, []
            for start in waiting:
                start()
            if endpoint.template is None and self._endpoints.get(endpoint.name) is endpoint:
                self._watch_peers(endpoint)

        if endpoint.pause is not None:
            endpoint.pause.cancel()
        remaining = endpoint.not_before - time.monotonic()
        if remaining <= 0:
            over()
        else:
            endpoint.pause = self._loop.later(remaining, over)

    def _watch_peers(self, endpoint: Endpoint) -> None:
        def wanted() -> None:
            self._look_away(endpoint)
            started = endpoint.spec is not None and not self._ending
            endpoint.wanted = not started
            if started:
                self._start(endpoint, endpoint.spec)
            self._say({"event": "template_wanted", "endpoint": endpoint.name, "started": started})

        for listener in endpoint.listeners:
            self._loop.watch(listener.fileno(), wanted)

    def _look_away(self, endpoint: Endpoint) -> None:
        for listener in endpoint.listeners:
            self._loop.unwatch(listener.fileno())

    # --- the end ---

    def _on_session_gone(self) -> None:
        """Templates end at once, on the same pipe; whoever has not within LAST_WORD_S is killed."""
        self._ending = True
        self._drop_spare()
        self._loop.unwatch(self._session_fd)
        for endpoint in self._endpoints.values():
            if endpoint.template is not None:
                endpoint.template.stopping = True
                endpoint.template.control.close()
        self._loop.later(LAST_WORD_S, self._kill_all)
        self._end_if_empty()

    def _end_after_drain(self) -> None:
        """SIGTERM: let running calls finish, as the templates' own limits say."""
        self._ending = True
        for endpoint in self._endpoints.values():
            drain_s = (endpoint.spec or {}).get("drain_limit_s", 30.0)
            self._stop(endpoint, float(drain_s), _nothing)
        self._end_if_empty()

    def _kill_all(self) -> None:
        for endpoint in self._endpoints.values():
            if endpoint.template is not None:
                kill_group(endpoint.template.pid)

    def _end_if_empty(self) -> None:
        if self._ending and all(endpoint.template is None for endpoint in self._endpoints.values()):
            self._loop.stop()


def main(argument: str) -> None:
    """`argument`: {"control": fd, "session": fd, "template": [argv…], "ahead": bool} for a session's keeper;
    detached: {"listen": fd of the control socket, "lock": fd held for life, "directory": …, "template": [argv…]}.
    """
    settings = json.loads(argument)
    if "listen" in settings:
        _live_detached(settings)
        return
    for fd in (settings["control"], settings["session"]):
        os.set_inheritable(fd, False)  # a template that held the control socket would hide our death from the session
    keeper = Keeper(
        control=socket.socket(fileno=settings["control"]),
        session_fd=settings["session"],
        template_argv=settings["template"],
        ahead=settings["ahead"],
    )
    keeper.run()


def _live_detached(settings: dict[str, Any]) -> None:
    """As a process of its own: neither its starter's child nor in its session."""
    if os.fork():
        os._exit(0)
    os.setsid()
    for fd in (settings["listen"], settings["lock"]):
        os.set_inheritable(fd, False)
    directory = settings["directory"]
    names = [f"{directory}/keeper.pid", f"{directory}/keeper.sock"]
    pidfile.write(names[0])
    session_fd, _held_for_life = os.pipe()  # its other end closes with this process: the end of everything below
    keeper = Keeper(
        control=None,
        session_fd=session_fd,
        template_argv=settings["template"],
        listener=socket.socket(fileno=settings["listen"]),
    )
    keeper.run()
    for name in names:
        try:
            os.unlink(name)  # noqa: PTH108
        except OSError:
            pass  # the directory is gone


def _user_of(sock: socket.socket) -> int:
    """Who connected; -1 where the system does not tell (the directory lets nobody else in)."""
    try:
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    except (OSError, AttributeError):
        return -1
    return int(uid)


def _why(endpoint: Endpoint, status: int, pause: float) -> str:
    text = f"The template of {endpoint.name} ended with {describe_status(status)}"
    if endpoint.failures > 1:
        text += f", {endpoint.failures} times in a row; the next start is in {pause:.1f} s"
    return text + ". Its last output is above; the next call starts it again."


def _nothing(**body: Any) -> None:
    """Nobody waits for this answer."""


if __name__ == "__main__":
    main(sys.argv[1])
