"""One dev server child: loads `.flash/server.py` as it is now and answers HTTP until the next one takes over.

Its life, told to and by the template over a socket of JSON lines:

    child: loaded      the application is ready to answer (or `failed`, with a reason)
    template: go       the former child has stopped listening: listen now      → child: serving
    template: leave    (with a descriptor) a newer child is ready: stop listening, hand connections over → child: left
    template: close    no newer child comes: stop listening, finish what runs, end

It ends when its last connection is gone, when its time for that is over, or at once when the session or template is.
"""

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, cast

from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.server import options as dev_options
from flashmesh.dev.server.handover import ChildState, DevConnection, Receiver
from flashmesh.dev.server.lines import Lines, Message
from flashmesh.dev.server.options import DevOptions
from flashmesh.worker import parent
from flashmesh.worker.lb import route_log

CHILD_VARIABLE = "FLASH_DEV_CHILD"
"""Descriptors of a spawned child, JSON."""
LEAVING_LIMIT_S = 300.0
"""How long the requests of an old child may take: the longest wait a client can ask for."""
KEEP_ALIVE_S = 75
_BACKLOG = 2048
_LOOK_S = 0.05
_GC_THRESHOLDS = (10_000, 20, 20)
"""What a request leaves behind is freed by reference counts; rarer collections keep the slowest requests fast."""


def load_application(root: Path) -> Any:
    """Execute `.flash/server.py` and return its `app`."""
    path = root / ".flash" / "server.py"
    spec = importlib.util.spec_from_file_location("flash_server", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["flash_server"] = module
    spec.loader.exec_module(module)
    return module.app


class ServerChild:
    """Lives in a process of its own; everything happens on its one event loop."""

    def __init__(
        self,
        *,
        root: Path,
        listener: socket.socket,
        control: socket.socket,
        handed: socket.socket | None,
        session_fd: int,
        options: DevOptions,
    ) -> None:
        """Take what the template gave.

        Args:
            listener: the TCP socket, listening; shared with the former child until that one leaves.
            control: to the template.
            handed: where the former child's connections come from; None = nowhere.
            session_fd: read end of the session pipe.
        """
        self._root = root
        self._listener = listener
        self._control = Lines(control)
        self._handed = handed
        self._session_fd = session_fd
        self._options = options
        self._state = ChildState()
        self._server: asyncio.Server | None = None
        self._receiver: Receiver | None = None
        self._ended = asyncio.Event()
        self._told: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serve until the end. The process's exit status."""
        loop = asyncio.get_running_loop()
        self._watch(loop)
        try:
            application = load_application(self._root)
            self._state.hot = getattr(application, "hot", None)  # another than ours may be served
            config = Config(
                application, http=DevConnection, ws="none", lifespan="on", log_config=None, proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S, interface="asgi3", access_log=False,
            )  # fmt: skip
            config.load()
            lifespan = LifespanOn(config)
            await lifespan.startup()
        except Exception as error:
            self._fail(error)
            return 1
        if lifespan.should_exit:
            self._control.send(
                {"event": "failed", "reason": "the application did not start", "file": ".flash/server.py"}
            )
            return 1
        self._config, self._lifespan = config, lifespan
        self._control.send({"event": "loaded", "has_routes": bool(getattr(application, "has_routes", False))})
        self._state.on_idle = self._look_whether_done
        await self._ended.wait()
        for task in self._state.tasks:
            task.cancel()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(lifespan.shutdown(), 5)
        return 0

    def _fail(self, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        last = frames[-1] if frames else None
        self._control.send(
            {
                "event": "failed",
                "reason": f"{type(error).__name__}: {error}",
                "file": last.filename if last else ".flash/server.py",
                "line": last.lineno if last else None,
                "traceback": "".join(traceback.format_exception(error)),
            }
        )

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.add_reader(self._session_fd, self._session_gone)
        loop.add_reader(self._control.fileno(), self._hear)
        loop.add_signal_handler(signal.SIGTERM, self._close)

    def _session_gone(self) -> None:
        if not os.read(self._session_fd, 1):
            self.die()

    def die(self) -> None:
        """End at once, with whatever user code has started."""
        if not self._options.inline:
            with contextlib.suppress(OSError):
                os.killpg(0, signal.SIGKILL)
        os._exit(1)

    def _hear(self) -> None:
        for message in self._control.receive():
            task = asyncio.ensure_future(self._obey(message))
            self._told.add(task)
            task.add_done_callback(self._told.discard)
        if self._control.closed:
            self.die()

    async def _obey(self, message: Message) -> None:
        if message["op"] == "go":
            await self._go()
        elif message["op"] == "leave":
            await self._leave(socket.socket(fileno=self._control.descriptors.pop(0)))
        elif message["op"] == "close":
            self._close(message.get("limit_s"))

    async def _go(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, sock=self._listener, backlog=_BACKLOG)
        if self._handed is not None:
            self._receiver = Receiver(self._handed, self._connection, loop, self._look_whether_done)
        self._control.send({"event": "serving"})

    def _connection(self, head: bytes = b"") -> asyncio.Protocol:
        return DevConnection(self._config, self._state, self._lifespan.state, head=head)

    async def _leave(self, successor: socket.socket) -> None:
        successor.setblocking(False)
        first = not self._state.leaving
        if first:
            await self._stop_listening()
        self._state.leave(successor)
        if first:
            self._control.send({"event": "left"})
            self._end_within(LEAVING_LIMIT_S)

    def _close(self, limit_s: float | None = None) -> None:
        task = asyncio.ensure_future(self._drain(self._options.drain_limit_s if limit_s is None else limit_s))
        self._told.add(task)
        task.add_done_callback(self._told.discard)

    async def _drain(self, limit_s: float) -> None:
        await self._stop_listening()
        if not self._state.leaving:
            self._state.leave(None)
        self._end_within(limit_s)

    async def _stop_listening(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            server.close()
            for _ in range(3):  # a connection accepted in this turn of the loop is announced in the next
                await asyncio.sleep(0)

    def _end_within(self, limit_s: float) -> None:
        asyncio.get_running_loop().call_later(limit_s, self._ended.set)
        self._look_whether_done()

    def _look_whether_done(self) -> None:
        asyncio.get_running_loop().call_soon(self._end_if_done)

    def _end_if_done(self) -> None:
        if not self._state.leaving or self._ended.is_set():
            return
        if self._receiver is not None and self._receiver.is_open and not self._state.closing:
            return  # an older child may still hand something over; the receiver tells when none can
        if not self._state.connections and not self._state.tasks:
            self._ended.set()
        elif not self._state.connections:  # a background task outlives its answer and tells nobody when it is done
            asyncio.get_running_loop().call_later(_LOOK_S, self._end_if_done)


def run_child(
    *,
    root: Path,
    listener: socket.socket,
    control: socket.socket,
    handed: socket.socket | None,
    session_fd: int,
    options: DevOptions,
) -> int:
    """Run one child in this process, on uvloop where it exists. Returns the exit status.

    The loop is not closed: that would wait for user code that still runs in threads. The caller ends the process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    if not options.inline:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the session hears Ctrl-C and decides
        keep_route_log()
    make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    gc.set_threshold(*_GC_THRESHOLDS)
    with contextlib.suppress(ImportError):
        make_loop = importlib.import_module("uvloop").new_event_loop

    async def serve() -> int:
        child = ServerChild(
            root=root, listener=listener, control=control, handed=handed, session_fd=session_fd, options=options
        )
        return await child.run()

    return asyncio.Runner(loop_factory=make_loop).run(serve())


def keep_route_log() -> None:
    """Name the function before each line that the bodies of HTTP routes print."""
    log = route_log.RouteLog(LogPrinter(), stdout=sys.stdout, stderr=sys.stderr)
    route_log.install(log)
    sys.stdout, sys.stderr = cast(TextIO, log.stdout), cast(TextIO, log.stderr)


def main() -> None:
    """Entry point where the template cannot fork. Ends the process."""
    given = json.loads(os.environ.pop(CHILD_VARIABLE))
    parent.watch_session(given["session"])
    status = run_child(
        root=Path(os.environ["FLASH_PROJECT_ROOT"]),
        listener=socket.socket(fileno=given["listener"]),
        control=socket.socket(fileno=given["control"]),
        handed=socket.socket(fileno=given["handed"]),
        session_fd=given["session"],
        options=dev_options.load(os.environ),
    )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
