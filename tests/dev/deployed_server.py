"""A real `flash server`, projects that are really deployed on it, and scripts that run beside them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

PATIENCE_S = 60.0
FLASH = (sys.executable, "-c", "from flashmesh.cli import main; main()")
_OURS = ("FLASH_", "RUNPOD_")


class DeployedServer:
    """`flash server` in a home of its own; ended with everything it started by `close`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = home / "server.out"
        self.process: subprocess.Popen[bytes]

    def start(self) -> "DeployedServer":
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*FLASH, "server", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(self.home),
                start_new_session=True,
            )
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.close()
        raise AssertionError(f"the server did not start: {self.log.read_text()}")

    def close(self) -> None:
        """As `flash server stop` does, endpoints too."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def kill(self) -> None:
        """What a crash leaves: its endpoints serve on."""
        self.process.kill()
        self.process.wait()

    @property
    def token(self) -> str:
        (path,) = self.home.glob("hosts/*/token")
        return path.read_text().strip()

    def deploy(self, project: Path, *options: str) -> None:
        done = flash(self.home, project, "deploy", "-y", *options)
        assert done.returncode == 0, done.stdout + done.stderr

    def manifest(self, app: str, name: str = "production") -> dict[str, object]:
        request = urllib.request.Request(
            f"{self.url}/manifest?app={app}&env={name}", headers={"Authorization": f"Bearer {self.token}"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            found: dict[str, object] = json.load(answer)
        return found


@contextlib.contextmanager
def deployed_server() -> Iterator[DeployedServer]:
    """A server that runs until the block ends."""
    with tempfile.TemporaryDirectory(prefix="flash-") as folder:
        server = DeployedServer(Path(folder)).start()
        try:
            yield server
        finally:
            server.close()


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's, without what would name servers, apps or keys."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return {**kept, "FLASH_HOME": str(home), **(more or {})}


def flash(home: Path, project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a project's directory."""
    return subprocess.run(
        [*FLASH, *arguments], cwd=project, env=environment(home), capture_output=True, text=True, timeout=PATIENCE_S
    )


def run_script(
    home: Path, project: Path, file: str, body: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """`python FILE` in a project's directory; `body` is written to it first."""
    if body is not None:
        (project / file).write_text(textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, file],
        cwd=project,
        env=environment(home, env),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


def log_in(home: Path, server: DeployedServer) -> None:
    """What `flash login` writes."""
    home.mkdir(parents=True, exist_ok=True)
    document = {"url": server.url, "token": server.token, "anchor": None}
    (home / "login.json").write_text(json.dumps(document))


def post(url: str, body: object) -> object:
    """The JSON of an endpoint's answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return json.load(error)
