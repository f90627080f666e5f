"""One real worker process under a session of a few lines, which speaks frames."""

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from loader_fixtures import spec_of, write

from flashmesh.wire import failures, values
from flashmesh.wire.arguments import encode_arguments
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import JSON, MSGPACK, AnyFrame, Chunk, Error, Hello, Invoke, Ready, Result, Started
from flashmesh.worker.records import RecordTable
from flashmesh.worker.spec import WorkerSpec, reentrant_path

T = TypeVar("T")
DEADLINE_S = 20.0

PROGRAM = """
import json, os, sys, traceback
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.records import RecordTable
from flashmesh.worker.runtime import run_worker
from flashmesh.worker.spec import WorkerSpec

settings = json.loads(sys.argv[1])
os.setpgid(0, 0)
spec = WorkerSpec.from_dict(settings["spec"])
record = RecordTable.attach(settings["table"]).record(0)
record.begin(os.getpid())
status = 1
try:
    run_worker(spec, WorkerContext(
        index=0, worker_id=f"{spec.endpoint}/1.0-{os.getpid()}", generation=1, record=record, loaded=None,
        **settings["context"],
    ))
except SystemExit as leaving:
    status = leaving.code or 0
except BaseException:
    traceback.print_exc()
finally:
    sys.stdout.flush()
    os._exit(status)
"""


class Worker:
    """A worker process, its sockets, and its link as the session holds it."""

    def __init__(
        self, folder: Path, spec: WorkerSpec, context: Mapping[str, Any], *, slots: int, env: Mapping[str, str]
    ) -> None:
        self.spec = spec
        self.folder = folder
        self.listener = listen(spec.socket_path)
        self.again = listen(reentrant_path(spec.socket_path))
        self.table = RecordTable.create(workers=1, slots=slots)
        self.session_read, self.session_write = os.pipe()
        self.notify_read, self.notify_write = os.pipe()
        os.set_blocking(self.notify_write, False)
        self.link: BlockingLink | None = None
        descriptors = {
            "listen_fd": self.listener.fileno(),
            "reentrant_fd": self.again.fileno(),
            "notify_fd": self.notify_write,
            "session_fd": self.session_read,
        }
        settings = {"spec": spec.to_dict(), "table": self.table.fd, "context": {**descriptors, **context}}
        self.output = (folder / f"{spec.endpoint}.out").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-u", "-c", PROGRAM, json.dumps(settings)],
            pass_fds=[self.table.fd, *descriptors.values()],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env={**os.environ, **env},
        )

    @property
    def record(self) -> Any:
        return self.table.record(0)

    def said(self) -> str:
        self.output.flush()
        return Path(self.output.name).read_text()

    def exit_status(self) -> int:
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self.process.kill()
        self.process.wait()
        if self.link is not None:
            self.link.close()
        for thing in (self.listener, self.again, self.output, self.table):
            thing.close()
        for fd in (self.session_read, self.notify_read, self.notify_write):
            os.close(fd)
        if self.session_write >= 0:
            os.close(self.session_write)


class Session:
    """Makes workers and takes their links. Use through `session()`."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._server = listen(str(folder / "link.sock"))
        stack.callback(lambda: self._server.close())

    def stop_listening(self) -> None:
        self._server.close()
        (self.folder / "link.sock").unlink()

    def listen_again(self) -> None:
        self._server = listen(str(self.folder / "link.sock"))

    def accept(self) -> tuple[BlockingLink, Hello, Ready]:
        """The next worker that dials in."""
        self._server.settimeout(DEADLINE_S)
        link = BlockingLink(self._server.accept()[0])
        self._stack.callback(link.close)
        hello, ready = link.receive(DEADLINE_S), link.receive(DEADLINE_S)
        assert isinstance(hello, Hello)
        assert isinstance(ready, Ready)
        return link, hello, ready

    def worker(
        self,
        source: str,
        functions: list[str] | None = None,
        *,
        endpoint: str = "own",
        dial: bool = True,
        context: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        **spec: Any,
    ) -> Worker:
        """A worker that serves `<endpoint>.py`; ready when this returns, unless `dial` is False."""
        write(self.folder, {f"{endpoint}.py": source})
        names = functions if functions is not None else declared(source, endpoint)
        settings = {"resource_type": "LiveServerless", **(config or {})}
        made = spec_of(
            self.folder,
            {endpoint: f"{endpoint}.py"},
            names,
            endpoint=endpoint,
            config=settings,
            socket_path=str(self.folder / f"{endpoint}.sock"),
            **spec,
        )
        slots = int(settings.get("max_concurrency", 1)) + 8
        worker = Worker(self.folder, made, context or {}, slots=slots, env=env or {})
        self._stack.callback(worker.close)
        if dial:
            worker.link, _, _ = self.accept()
        return worker


@contextmanager
def session() -> Iterator[Session]:
    """A folder with a short path and a link socket; every process is gone at the end."""
    with tempfile.TemporaryDirectory(prefix="flash-") as folder, ExitStack() as stack:
        yield Session(Path(folder), stack)


def declared(source: str, module: str) -> list[str]:
    """Ids of the functions and methods that a source decorates with `@remote`."""
    found, cls, marked = [], "", False
    for line in source.splitlines():
        text = line.strip()
        words = text.removeprefix("async ").split("(")[0].split()
        if text.startswith("@remote"):
            marked = True
        elif words[:1] == ["class"]:
            cls = words[1].rstrip(":") if marked else ""
            marked = False
        elif words[:1] == ["def"]:
            if marked:
                found.append(f"{module}.{words[1]}")
                cls = ""
            elif cls and not words[1].startswith("_"):
                found.append(f"{module}.{cls}.{words[1]}")
            marked = False
    return found


def listen(path: str) -> socket.socket:
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen(64)
    return server


def invoke(
    worker: Worker,
    function: str,
    *args: Any,
    execution: str = "e1",
    init: Any = None,
    accept: str = MSGPACK,
    **more: Any,
) -> None:
    """Send a call with Python arguments over the worker's link."""
    frame = Invoke(
        execution=execution,
        function=function,
        content_type=MSGPACK,
        accept=accept,
        payload=encode_arguments(args, {}, init=init),
        **more,
    )
    link_of(worker).send(frame)


def receive(worker: Worker, kind: type[T], *, execution: str | None = None) -> T:
    """The next frame of a kind; others are passed over."""
    until = time.monotonic() + DEADLINE_S
    while True:
        frame = link_of(worker).receive(until - time.monotonic())
        if isinstance(frame, kind) and execution in (None, getattr(frame, "execution", None)):
            return frame


def outcome(worker: Worker, *, execution: str = "e1") -> Any:
    """The value of a call, or its exception as the caller would raise it."""
    until = time.monotonic() + DEADLINE_S
    while True:
        frame = link_of(worker).receive(until - time.monotonic())
        if isinstance(frame, Result) and frame.execution == execution:
            return values.decode(frame.payload, frame.content_type) if frame.payload else None
        if isinstance(frame, Error) and frame.execution == execution:
            return failures.restore(failures.of_frame(frame))


def call(worker: Worker, function: str, *args: Any, **more: Any) -> Any:
    """Call over the link and wait for the value or exception."""
    invoke(worker, function, *args, **more)
    return outcome(worker, execution=more.get("execution", "e1"))


def started(worker: Worker, execution: str = "e1") -> Started:
    return receive(worker, Started, execution=execution)


def items_until_quiet(worker: Worker, quiet_s: float = 0.3) -> list[Any]:
    """The items that come until nothing does."""
    found: list[Any] = []
    while True:
        try:
            frame: AnyFrame = link_of(worker).receive(quiet_s)
        except TimeoutError:
            return found
        if isinstance(frame, Chunk):
            found.append(values.decode(frame.data, MSGPACK))


def link_of(worker: Worker) -> BlockingLink:
    assert worker.link is not None
    return worker.link


def eventually(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Wait for a condition that is cheap to look at."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        select.select([], [], [], 0.005)
    raise AssertionError(f"{what} did not come to be within {DEADLINE_S} s")


class UnixHTTP(http.client.HTTPConnection):
    """A client of a worker's face."""

    def __init__(self, path: str) -> None:
        super().__init__("flash", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(self._path)


def post(path: str, url: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request to a face: status, headers (lower case), body. `body`: bytes, or a value to send as JSON."""
    connection = UnixHTTP(path)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request("POST", url, data, {"Content-Type": JSON, **names})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()
