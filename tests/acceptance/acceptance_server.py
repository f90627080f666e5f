"""A real `flash server` on a small project, asked over HTTP like any client asks it."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
COMMAND = (sys.executable, "-c", "from flashmesh.cli import main; main()", "server")


class RunningServer:
    """`flash server --project`; stop it, kill it, start it again on the same data."""

    def __init__(
        self,
        project: Path,
        *options: str,
        home: Path,
        data: Path | None = None,
        open_files: int | None = None,
        **env: str,
    ) -> None:
        """`open_files`: how many it may have at most."""
        self.project = project
        self.env = env
        self.open_files = open_files
        self.options = options
        self.home = home
        self.data = data
        self.port = _free_port()
        self.log = home / "server-output.log"
        self.process: subprocess.Popen[bytes]

    def start(self, *, ready: bool = True) -> "RunningServer":
        """`ready`: wait until it takes calls."""
        self.home.mkdir(parents=True, exist_ok=True)
        command = [*COMMAND, "--project", str(self.project), "--port", str(self.port), *self.options]
        if self.data is not None:
            command += ["--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "FLASH_HOME": str(self.home), **self.env},
                start_new_session=True,
                preexec_fn=self._limit_files if self.open_files else None,
            )
        if ready:
            try:
                self.until(lambda: self.get("/healthz")[0] == 200)
                self.until(lambda: self.get("/readyz")[0] == 200)
            except BaseException:
                self.kill()
                raise
        return self

    def _limit_files(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and decoded answer; status 0 = no answer. `body`: bytes as they are, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)

    def invoke(self, function: str, given: Any, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", f"/v1/functions/{function}:invoke", {"input": given}, _with_dashes(headers))

    def enqueue(self, function: str, given: Any, **headers: str) -> tuple[int, Any]:
        return self.ask("POST", f"/v1/functions/{function}:enqueue", {"input": given}, _with_dashes(headers))

    def execution(self, id: str) -> Any:
        return self.get(f"/v1/executions/{id}")[1]

    def until_ended(self, id: str) -> Any:
        """The record once it has ended."""
        ended = {"success", "error", "timeout", "cancelled"}
        return self.until(lambda: (record := self.execution(id)).get("status") in ended and record)

    def as_admin(self) -> dict[str, str]:
        """The header that its machine's own commands send."""
        (token,) = self.home.glob("hosts/*/token")
        return {"Authorization": f"Bearer {token.read_text().strip()}"}

    def used_cpu_s(self) -> float:
        """User and system time so far."""
        fields = self._of_process("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Memory in use now, in MB."""
        return int(self._of_process("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def _of_process(self, file: str) -> str:
        return Path(f"/proc/{self.process.pid}/{file}").read_text()

    def until(self, condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, f"waited {seconds} s in vain: {self.output()}"
            time.sleep(0.01)
        return value

    def output(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)

    def kill(self) -> None:
        """kill -9 of the server alone."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serving(project: Path, *options: str, home: Path, **more: Any) -> Iterator[RunningServer]:
    server = RunningServer(project, *options, home=home, **more)
    try:
        yield server.start()
    finally:
        if server.process.poll() is None:
            server.stop()


def _with_dashes(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
