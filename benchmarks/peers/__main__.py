"""`python -m benchmarks.peers [NAME…]`: one table, each figure beside bare uvicorn's of the same turn.

A peer's environment is made in a temporary folder and removed after its turn: some are several hundred MB.
"""

import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.floors import bare_uvicorn, free_port
from benchmarks.http_load import many_at_once, one_at_a_time, request_bytes
from benchmarks.measure import percentile
from benchmarks.peers.peers import BODY, PEERS, Peer

APPS = Path(__file__).with_name("apps")
SECONDS = 2.0
START_LIMIT_S = 90.0
ECHO = """
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="echo", workersMax=1)


@remote(cpu)
def echo(a: int, text: str) -> dict:
    return {"a": a, "text": text}
"""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one server: seconds, and calls per second with 32 in flight."""

    start_s: float
    p50_s: float
    p99_s: float
    rate: float


def ours(scratch: Path) -> Figures:
    """`flash server` with one worker."""
    project = scratch / "project"
    project.mkdir()
    (project / "echo.py").write_text(ECHO)
    port = free_port()
    command = [str(Path(sys.executable).with_name("flash")), "server", "--project", str(project), "--port", str(port)]
    environment = {**os.environ, "FLASH_HOME": str(scratch / "home")}
    with _running(command, scratch, environment) as process:
        return _over_http(process, port, "/v1/functions/echo:invoke", BODY)


def measure(peer: Peer, scratch: Path) -> Figures:
    """Install, start, measure. Raises RuntimeError with the peer's own words."""
    if peer.needs and shutil.which(peer.needs) is None:
        raise RuntimeError(f"{peer.needs} is not installed here")
    interpreter = _install(peer, scratch)
    port = free_port()
    command = [str(interpreter), *(argument.replace("{port}", str(port)) for argument in peer.command)]
    environment = {**os.environ, "PEER_PORT": str(port), "DO_NOT_TRACK": "True", "BENTOML_DO_NOT_TRACK": "True"}
    environment["PATH"] = f"{interpreter.parent}{os.pathsep}{environment['PATH']}"
    if peer.path:
        with _running(command, APPS, environment) as process:
            return _over_http(process, port, peer.path, peer.body)
    done = subprocess.run(command, cwd=APPS, env=environment, capture_output=True, text=True, timeout=180)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it ended without a word")
    found = {key: value for line in done.stdout.splitlines() for key, value in json.loads(line).items()}
    return Figures(**found)


def _install(peer: Peer, scratch: Path) -> Path:
    folder = scratch / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"its packages could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return interpreter


@contextmanager
def _running(command: list[str], folder: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """In a process group of its own, which is ended whole: some peers are a dozen processes."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _over_http(process: subprocess.Popen[bytes], port: int, path: str, body: bytes) -> Figures:
    begin = time.perf_counter()
    _until_it_answers(process, f"http://127.0.0.1:{port}{path}", body)
    start_s = time.perf_counter() - begin
    request = request_bytes(path, body)
    many_at_once(port, request, 0.5, 8)  # let it find its pace
    single = one_at_a_time(port, request, SECONDS)
    rate, _, refused = many_at_once(port, request, SECONDS, 32)
    if refused:
        raise RuntimeError(f"{refused} answers were not 200")
    return Figures(start_s, percentile(single, 0.5), percentile(single, 0.99), rate)


def _until_it_answers(process: subprocess.Popen[bytes], url: str, body: bytes) -> None:
    until = time.perf_counter() + START_LIMIT_S
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    while time.perf_counter() < until:
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (OSError, urllib.error.HTTPError):
            if process.poll() is not None:
                raise RuntimeError(f"it ended with status {process.returncode}") from None
        time.sleep(0.01)
    raise RuntimeError(f"it did not answer within {START_LIMIT_S:.0f} s")


def floor(scratch: Path) -> Figures:
    with bare_uvicorn(scratch) as port:
        request = request_bytes("/", BODY)
        single = one_at_a_time(port, request, SECONDS)
        rate, _, _ = many_at_once(port, request, SECONDS, 32)
        return Figures(0.0, percentile(single, 0.5), percentile(single, 0.99), rate)


def line(name: str, figures: Figures, base: Figures) -> str:
    return (
        f"{name:<26} {figures.start_s:8.2f} s {figures.p50_s * 1e6:9.0f} µs {figures.p99_s * 1e6:9.0f} µs "
        f"{figures.p50_s / base.p50_s:7.2f}× {figures.rate:9.0f} /s {figures.rate / base.rate:7.3f}×"
    )


def main(wanted: list[str]) -> None:
    """Peers whose name contains one of `wanted`; all without any."""
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    heads = ("peer", "first answer", "p50, one at a time", "p99", "over uvicorn", "32 in flight", "over uvicorn")
    print(f"{heads[0]:<26} {heads[1]:>10} {heads[2]:>12} {heads[3]:>9} {heads[4]:>11} {heads[5]:>12} {heads[6]:>12}")
    with tempfile.TemporaryDirectory(prefix="flash-peers-") as place:
        print(line("flash server", ours(_folder(place, "flash")), floor(Path(place))), flush=True)
        for peer in PEERS:
            if wanted and not any(word.lower() in peer.name.lower() for word in wanted):
                continue
            scratch = _folder(place, peer.name)
            try:
                print(line(peer.name, measure(peer, scratch), floor(Path(place))), flush=True)
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"{peer.name:<26} not measured: {error}", flush=True)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)


def _folder(place: str, name: str) -> Path:
    folder = Path(place) / "".join(letter for letter in name.lower() if letter.isalnum())
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main(sys.argv[1:])
