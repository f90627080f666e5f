"""A real `flash run` for tests: started as a subprocess, asked over HTTP, and gone afterwards with all it started."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PATIENCE_S = 30.0
"""How long a condition may take on a machine that is busy with other tests."""
FLASH = [sys.executable, "-c", "from flashmesh.cli import main; main()"]


class Served:
    """One `flash run`, or another `command`, run in `root`, that serves it. `url` is known once it answers."""

    def __init__(
        self, root: Path, *options: str, env: Mapping[str, str] | None = None, command: list[str] | None = None
    ) -> None:
        self.root = root
        self.log = root.parent / f"{root.name}.log"
        self.mark = f"{root}-{os.getpid()}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command or [*FLASH, "run", str(root), "--port", "0", *options],
                cwd=root if command else None,
                stdout=log,
                stderr=log,
                env={**os.environ, **(env or {}), "FLASH_TEST_MARK": self.mark},
            )
        self.url = ""

    def wait_until_ready(self) -> "Served":
        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            with contextlib.suppress(OSError, ValueError):
                self.url = json.loads((self.root / ".flash" / "session.json").read_text())["url"]
            return bool(self.url) and self.get("/ping")[0] == 200

        until(ready, explain=self.output)
        until(lambda: "Flash Dev Server" in self.output(), explain=self.output)
        return self

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url + path))

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """`body`: bytes as they are, anything else as JSON. Header names with `_` for `-`."""
        data = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **given})
        return self._ask(request)

    def _ask(self, request: urllib.request.Request) -> tuple[int, Any]:
        """Status 0: no answer."""
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")
        except (OSError, http.client.HTTPException, ValueError) as error:
            return 0, str(error)

    def save(self, file: str, text: str) -> None:
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def processes(self) -> dict[int, str]:
        """Every process of this session and of its users' code, by pid: all inherit the mark."""
        found = {}
        wanted = f"FLASH_TEST_MARK={self.mark}".encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes().split(b"\0") and _state(entry) != "Z":
                    found[int(entry.name)] = (
                        (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    )
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def end(self) -> None:
        """Whatever happened: nothing of it may outlive the test."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        until(lambda: not self.processes(), explain=lambda: str(self.processes()))


def _state(entry: Path) -> str:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def serving(root: Path, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    served = Served(root, *options, env=env)
    try:
        yield served.wait_until_ready()
    finally:
        served.end()


def until(condition: Callable[[], Any], *, seconds: float = PATIENCE_S, explain: Callable[[], str] = str) -> Any:
    """Wait for `condition` to be true; its value. Fails with `explain()` when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {explain()}"
        time.sleep(0.005)


def write_project(root: Path, **files: str) -> Path:
    """`name__py`-free: keys are file names without `.py`, `__` stands for a folder's slash."""
    for name, text in files.items():
        path = root / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


HELLO = """\
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="hello")


@remote(cpu)
def hello(name: str = "world") -> str:
    print("greeting", name)
    return f"Hello, {name}!"
"""
