"""One long-lived process of a command: started, ready, in use, leaving, gone."""

import asyncio
import os
import socket
from typing import Protocol

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.functions.external.addresses import PlainHttp, Target
from flashmesh.gateway.functions.external.client import Client
from flashmesh.gateway.functions.external.far_end import FarEnd, Flight
from flashmesh.gateway.functions.external.http import HttpCarrier
from flashmesh.gateway.functions.external.pipes import Output
from flashmesh.gateway.functions.external.processes import Process
from flashmesh.gateway.functions.external.stdio import StdioCarrier
from flashmesh.gateway.functions.external.surroundings import Surroundings
from flashmesh.gateway.functions.spec import External
from flashmesh.kit.ids import BuildId, EndpointName, WorkerId

LAST_WORDS_S = 0.25
"""How long a call whose connection ended waits for word of how the process did."""
_PROBE_S = 0.02
_LONGEST_PROBE_S = 0.25


class Owner(Protocol):
    """What a replica tells the function it belongs to."""

    def replica_ready(self, replica: "Replica") -> None: ...

    def replica_leaving(self, replica: "Replica") -> None: ...

    def replica_ended(self, replica: "Replica", *, failed: bool, counted: bool) -> None: ...


class Replica:
    """Also the carrier of its far end: calls go on to HTTP or stdin, and an end that was forced ends the process."""

    def __init__(
        self,
        external: External,
        build: BuildId,
        number: int,
        *,
        around: Surroundings,
        output: Output,
        owner: Owner,
    ) -> None:
        """Raises OSError when nothing can be started at all."""
        self.far_end: FarEnd | None = None
        self.leaving = False
        self.over = False
        self._external = external
        self._build = build
        self._around = around
        self._output = output
        self._owner = owner
        self._name = EndpointName(external.name)
        self._id = WorkerId(f"{self._name}/{build}.{number}")
        self._probe: asyncio.Task[None] | None = None
        self._complaint = ""
        self._hung_up = False
        self._port = 0
        self._stdio: StdioCarrier | None = None
        self._http: HttpCarrier | None = None
        self._process = self._start()

    def _start(self) -> Process:
        try:
            return self._launch()
        except OSError:
            self._let_go()
            raise

    def _launch(self) -> Process:
        external, around = self._external, self._around
        given = {"FUNCTION_NAME": external.spec.name, "TIMEOUT_MS": str(external.spec.timeout_ms)}
        if external.spec.runtime_mode == "STDIO":
            self._stdio = stdio = StdioCarrier(
                loop=around.loop,
                max_answer_bytes=around.max_answer_bytes,
                astray=self._astray,
                hung_up=self._hangs_up,
            )
            stderr = self._output.pipe(self._id, "stderr", lambda: stdio.execution)
            stdin, stdout = stdio.hand_over()
        else:
            self._port = _free_port(around.processes.ports)
            given["PORT"] = str(self._port)
            self._http = self._carrier(self._port)
            stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            stdout = self._output.pipe(self._id, "stdout", self._execution)
            stderr = self._output.pipe(self._id, "stderr", self._execution)
        return around.processes.start(
            external.argv,
            env=around.command_env(external.spec.env, **given),
            cwd=None if around.directory is None else str(around.directory),
            fds=(stdin, stdout, stderr),
            started=self._started,
            ended=self._ended,
        )

    def _let_go(self) -> None:
        """Of pipes, connections and the port."""
        self._around.processes.ports.discard(self._port)
        if self._stdio is not None:
            self._stdio.close()
        if self._http is not None:
            self._http.client.close()

    def _carrier(self, port: int) -> HttpCarrier:
        return HttpCarrier(
            Target("http", "127.0.0.1", port, "/invoke"),
            loop=self._around.loop,
            plain_http=PlainHttp(),
            callback_url=self._around.callback_url,
            max_answer_bytes=self._around.max_answer_bytes,
            on_broken=self._broken,
        )

    def _execution(self) -> str:
        """Whose lines it prints, where that can be told."""
        flights = self.far_end.flights if self.far_end is not None else {}
        return next(iter(flights)) if len(flights) == 1 else ""

    # Becoming ready

    def _started(self) -> None:
        if self.leaving:
            return
        if self._http is None:
            self._ready()
        else:
            self._probe = self._around.loop.create_task(self._wait_until_it_listens(self._http.client))

    async def _wait_until_it_listens(self, client: Client) -> None:
        delay = _PROBE_S
        try:
            async with asyncio.timeout(self._around.ready_s):
                while not await _answers(client, self._port):
                    await asyncio.sleep(delay)
                    delay = min(_LONGEST_PROBE_S, delay * 1.5)
        except TimeoutError:
            self._complaint = f"it did not listen on $PORT ({self._port}) within {self._around.ready_s:g} s"
            self._process.kill()
        else:
            self._ready()

    def _ready(self) -> None:
        if self.leaving or self.over:
            return
        self.far_end = FarEnd(
            dispatcher=self._around.dispatcher,
            loop=self._around.loop,
            endpoint=self._name,
            build=self._build,
            id=self._id,
            slots=self._external.calls_per_process,
            carrier=self,
            pid=self._process.pid,
        )
        if self.far_end.ready():
            self._owner.replica_ready(self)
        else:
            self.far_end = None
            self.retire("no longer served")

    # Carrying

    def begin(self, far_end: FarEnd, flight: Flight) -> bool:
        return (self._stdio or self._http_carrier()).begin(far_end, flight)

    def stop(self, far_end: FarEnd, flight: Flight) -> None:
        """A call that must end takes its process along, once the other calls in it have ended."""
        (self._stdio or self._http_carrier()).stop(far_end, flight)
        self.retire("a call in it had to be stopped")

    def leave(self, far_end: FarEnd) -> None:
        self.leaving = True
        if self._stdio is not None and self._stdio.execution == "":
            self._stdio.close()  # the end of its input: time to leave
        self._process.terminate()

    def _http_carrier(self) -> HttpCarrier:
        assert self._http is not None
        return self._http

    def _broken(self, far_end: FarEnd, flight: Flight, error: FlashmeshError, ran: bool) -> None:
        self._around.loop.call_later(LAST_WORDS_S, lambda: far_end.fail(flight, error, ran=ran))

    def _astray(self, data: bytes, greeting: bool) -> None:
        lines = [line for line in data[:4096].decode(errors="replace").splitlines() if line.strip()]
        self._output.say(lines, self._id, "stdout")
        if not greeting and self.staying:
            self._output.say(
                ["printed more than one line of JSON for a call; it is started anew, so that no answer is mixed up"],
                self._id,
                "system",
            )
            self.retire("it printed what answers nothing")

    def _hangs_up(self) -> None:
        """It closed its stdout, most likely by ending: no more calls, until its end tells what to make of it."""
        if self.staying:
            self._hung_up = True
            self._owner.replica_leaving(self)
            if self.far_end is not None:
                self.far_end.drain("its stdout is closed")

    # Leaving

    @property
    def idle_since(self) -> float | None:
        """On the loop's clock; None while it is in use, or not ready."""
        far_end = self.far_end
        return far_end.last_used if far_end is not None and far_end.idle and self.staying else None

    @property
    def staying(self) -> bool:
        """It takes calls, or will when it is ready."""
        return not self.leaving and not self._hung_up

    def resize(self, slots: int) -> None:
        if self.far_end is not None and self.staying:
            self.far_end.resize(slots)

    def retire(self, reason: str) -> None:
        """It takes nothing more; when what is in flight has been answered its process is ended."""
        if not self.staying:
            return
        self.leaving = True
        self._owner.replica_leaving(self)
        if self.far_end is None:
            self._process.terminate()
        else:
            self.far_end.drain(reason)

    def kill(self) -> None:
        self.leaving = True
        self._process.kill()

    def _ended(self, status: int, reason: str) -> None:
        counted = not self.staying
        asked = self.leaving and not self._hung_up
        self.over = self.leaving = True
        if self._probe is not None:
            self._probe.cancel()
        if self._stdio is not None:
            self._stdio.last_words()
        self._let_go()
        failed = not asked or bool(self._complaint)
        why = self._complaint or reason or ("" if status < 0 else f"its process ended with exit status {status}")
        status = status or int(failed)  # leaving unasked is a failure, however politely it was done
        self._owner.replica_ended(self, failed=failed, counted=counted)
        if self.far_end is not None:
            self.far_end.gone(status, why)
        else:
            self._around.dispatcher.worker_gone(self._name, self._id, status, why)


def _free_port(taken: set[int]) -> int:
    """A port that nobody has, and that no other command was told to take."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            taken.add(port)
            return port


async def _answers(client: Client, port: int) -> bool:
    """Whether GET /health is answered: 200, or anything else a server without such a route says."""
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def settle(status: int) -> None:
        if not done.done():
            done.set_result(status)

    exchange = client.send(
        f"GET /health HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nuser-agent: flashmesh\r\n\r\n".encode(),
        lambda status, headers, body: settle(status),
        lambda error, ran: settle(0),
    )
    try:
        status = await done
    except asyncio.CancelledError:
        exchange.cancel()
        raise
    return 0 < status < 500
