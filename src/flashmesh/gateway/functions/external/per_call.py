"""A process for every call: FILE (INPUT_FILE, OUTPUT_FILE) and STDIO as a job (stdin to its end, then stdout).

The exit status says whether it succeeded. A process that is killed counts as lost, so that the call may be repeated.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import (
    EndpointUnavailable,
    ExternalError,
    FlashmeshError,
    PayloadTooLarge,
    ValidationError,
    WorkerLost,
)
from flashmesh.gateway.functions.external.answers import Output as Answer
from flashmesh.gateway.functions.external.answers import json_fault, of_body, of_line, shown
from flashmesh.gateway.functions.external.far_end import FarEnd, Flight
from flashmesh.gateway.functions.external.pipes import Output, Reader
from flashmesh.gateway.functions.external.processes import Process
from flashmesh.gateway.functions.external.requests import request_body, trace_headers
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.spec import External
from flashmesh.kit.ids import WorkerId

_INLINE_BYTES: Final = 256 * 1024
"""Files up to this size are read and written on the event loop; a thread costs more than they do."""


class PerCallCarrier:
    """Carries each call to a process of its own."""

    def __init__(self, external: External, *, around: Surroundings, output: Output) -> None:
        self.external = external
        self._around = around
        self._output = output
        self._runs: set[_Run] = set()

    def begin(self, far_end: FarEnd, flight: Flight) -> bool:
        try:
            _, body = request_body(flight.invoke)
            run = _Run(
                self.external, far_end, flight, around=self._around, output=self._output, over=self._runs.discard
            )
        except (ValidationError, OSError) as error:
            failure = error if isinstance(error, FlashmeshError) else EndpointUnavailable(f"no folder for it: {error}")
            self._around.loop.call_soon(partial(far_end.fail, flight, failure, ran=False))
            return True
        flight.handle = run
        self._runs.add(run)
        run.begin(body)
        return True

    def stop(self, far_end: FarEnd, flight: Flight) -> None:
        if isinstance(flight.handle, _Run):
            flight.handle.stop()

    def leave(self, far_end: FarEnd) -> None:
        far_end.gone(0, "")

    def close(self) -> None:
        for run in list(self._runs):
            run.stop()


class _Run:
    """One call's process and files."""

    def __init__(
        self,
        external: External,
        far_end: FarEnd,
        flight: Flight,
        *,
        around: Surroundings,
        output: Output,
        over: Callable[["_Run"], None],
    ) -> None:
        self._external = external
        self._far_end = far_end
        self._flight = flight
        self._around = around
        self._output = output
        self._over = over
        self._files = external.spec.runtime_mode == "FILE"
        self._folder = Path(tempfile.mkdtemp(prefix="flash-call-", dir=around.scratch))
        self._input, self._result = self._folder / "input", self._folder / "output"
        self._process: Process | None = None
        self._stdout: Reader | None = None
        self._printed = bytearray()
        self._excess = self._stopped = False

    # Each step may end in a thread: files of many megabytes are not for the event loop.

    def begin(self, body: bytes) -> None:
        self._do(len(body), partial(self._input.write_bytes, body), self._written)

    def _do(self, size: int, work: Callable[[], object], then: Callable[[object], None]) -> None:
        loop = self._around.loop
        if size <= _INLINE_BYTES:
            try:
                found = work()
            except OSError as error:
                loop.call_soon(self._finish, EndpointUnavailable(f"its files: {error}"))
            else:
                then(found)
            return
        future = loop.run_in_executor(None, work)

        def done(future: "asyncio.Future[object]") -> None:
            error = future.exception()
            if error is not None:
                self._finish(EndpointUnavailable(f"its files: {error}"))
            else:
                then(future.result())

        future.add_done_callback(done)

    def _written(self, _: object) -> None:
        if self._stopped:
            self._clean()
            return
        try:
            self._launch()
        except OSError as error:
            if self._stdout is not None:
                self._stdout.close()
            self._around.loop.call_soon(self._finish, EndpointUnavailable(f"no process could be started: {error}"))

    def _launch(self) -> None:
        frame, around, spec = self._flight.invoke, self._around, self._external.spec
        given = {
            "FUNCTION_NAME": spec.name,
            "EXECUTION_ID": frame.execution,
            "DISPATCH_ATTEMPT": str(frame.attempt),
            "TIMEOUT_MS": str(frame.deadline_ms or spec.timeout_ms),
        }
        trace, parent = trace_headers(frame.meta)
        if trace:
            given["TRACE_ID"] = trace
        if parent:
            given["TRACEPARENT"] = parent
        worker = WorkerId(f"{self._far_end.id}-{frame.execution[:8]}")

        def execution() -> str:
            return frame.execution

        if self._files:
            given |= {"INPUT_FILE": str(self._input), "OUTPUT_FILE": str(self._result)}
            stdout = self._output.pipe(worker, "stdout", execution)
        else:
            self._stdout = Reader(around.loop, self._take)
            stdout = self._stdout.hand_over()
        stdin = os.open(os.devnull if self._files else self._input, os.O_RDONLY | os.O_CLOEXEC)
        fds = (stdin, stdout, self._output.pipe(worker, "stderr", execution))
        self._process = around.processes.start(
            self._external.argv,
            env=around.command_env(spec.env, **given),
            cwd=None if around.directory is None else str(around.directory),
            fds=fds,
            started=lambda: None,
            ended=self._ended,
        )

    def _take(self, data: bytes) -> None:
        self._printed += data
        if len(self._printed) > self._around.max_answer_bytes and self._process is not None:
            self._excess = True
            self._printed.clear()
            self._process.kill()

    def _ended(self, status: int, reason: str) -> None:
        if self._stdout is not None:
            self._stdout.drain()
            self._stdout.close()
        if self._stopped:
            self._clean()
        elif self._excess:
            self._finish(self._too_large())
        elif reason:
            self._finish(EndpointUnavailable(f"it could not be started: {reason}"))
        elif status < 0:
            self._finish(WorkerLost(f"its process was killed by {_signal_name(-status)}"))
        elif status > 0:
            said = "" if not self._printed else f": {shown(bytes(self._printed))}"
            self._finish(ExternalError(f"its process ended with exit status {status}{said}"))
        elif self._files:
            self._read_result()
        else:
            self._finish(
                of_line(bytes(self._printed)) if self._printed.strip() else Answer("application/json", b"null")
            )

    def _read_result(self) -> None:
        try:
            size = self._result.stat().st_size
        except FileNotFoundError:
            self._finish(of_body("", b""))
            return
        if size > self._around.max_answer_bytes:
            self._finish(self._too_large())
        else:
            self._do(size, self._result.read_bytes, lambda data: self._finish(of_file(data)))

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the function's answer is larger than {self._around.max_answer_bytes} bytes")

    def _finish(self, meaning: "Answer | FlashmeshError") -> None:
        self._clean()
        if self._stopped:
            return
        if isinstance(meaning, FlashmeshError):
            self._far_end.fail(self._flight, meaning)
        else:
            self._far_end.succeed(self._flight, meaning.content_type, meaning.payload)

    def stop(self) -> None:
        """Nobody wants its answer any more."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()

    def _clean(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._over(self)


def of_file(data: object) -> "Answer | FlashmeshError":
    """What a result file holds: JSON, else text (as a string), else bytes."""
    body = bytes(data) if isinstance(data, bytes) else b""
    if not body or json_fault(body) is None:
        return of_body("", body)
    try:
        body.decode()
    except UnicodeDecodeError:
        return of_body("application/octet-stream", body)
    return of_body("text/plain", body)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
