"""`python -m benchmarks.peers [--write FILE] [NAME…]`: one table, each figure beside bare uvicorn's of the same turn.

A peer's environment is made in a temporary folder and removed after its turn: some are several hundred MB. However this
ends, it leaves no process and no folder; it takes at most twenty minutes.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from benchmarks import closed_loop, program, tree
from benchmarks.floors import bare_uvicorn, free_port
from benchmarks.http_load import one_at_a_time, request_bytes
from benchmarks.measure import percentile
from benchmarks.peers.peers import BODY, PEERS, Peer

APPS = Path(__file__).with_name("apps")
SECONDS = 2.0
START_LIMIT_S = 90.0
MEASURE_LIMIT_S = 120.0
"""Of a peer that measures itself."""
INSTALL_LIMIT_S = 240.0
BUDGET_S = 15 * 60.0
"""No peer is begun after it."""
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
    command = [program.flash(), "server", "--project", str(project), "--port", str(port)]
    environment = program.environment(scratch / "home")
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
    environment |= {
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "RAY_TMPDIR": str(scratch.parent),
    }  # what they leave goes with it; a socket of Ray's has no room for a longer path
    environment["PATH"] = f"{interpreter.parent}{os.pathsep}{environment['PATH']}"
    if peer.path:
        with _running(command, APPS, environment) as process:
            return _over_http(process, port, peer.path, peer.body)
    return _by_itself(command, environment, scratch)


def _by_itself(command: list[str], environment: dict[str, str], scratch: Path) -> Figures:
    """What a peer that is called from Python says of itself."""
    said, complained = scratch / "said", scratch / "complained"
    with (
        said.open("wb") as out,
        complained.open("wb") as errors,
        _running(command, APPS, environment, out, errors) as process,
    ):
        try:
            status = process.wait(MEASURE_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"it had not finished after {MEASURE_LIMIT_S:.0f} s") from None
    if status:
        words = complained.read_text(errors="replace").strip().splitlines()
        raise RuntimeError(words[-1] if words else "it ended without a word")
    found = {key: value for line in said.read_text().splitlines() for key, value in json.loads(line).items()}
    return Figures(**found)


def _install(peer: Peer, scratch: Path) -> Path:
    folder = scratch / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"its packages were not installed within {INSTALL_LIMIT_S:.0f} s") from None
    if done.returncode:
        raise RuntimeError(f"its packages could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return interpreter


@contextmanager
def _running(
    command: list[str],
    folder: Path,
    environment: dict[str, str],
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> Iterator[subprocess.Popen[bytes]]:
    """Ended with everything that it started: some peers are a dozen processes in groups of their own."""
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=stdout, stderr=stderr, start_new_session=True
    )
    try:
        yield process
    finally:
        members = tree.family(process.pid)
        _signal(process, members, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        _signal(process, members, signal.SIGKILL)
        process.wait()


def _signal(process: subprocess.Popen[bytes], members: list[int], number: signal.Signals) -> None:
    for send, pid in [(os.killpg, process.pid), *((os.kill, pid) for pid in members if pid != process.pid)]:
        try:
            send(pid, number)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended


def _over_http(process: subprocess.Popen[bytes], port: int, path: str, body: bytes) -> Figures:
    begin = time.perf_counter()
    _until_it_answers(process, f"http://127.0.0.1:{port}{path}", body)
    start_s = time.perf_counter() - begin
    request = request_bytes(path, body)
    closed_loop.load(port, path, body, connections=8, seconds=1)  # let it find its pace
    single = one_at_a_time(port, request, SECONDS)
    load = closed_loop.load(port, path, body, connections=32, seconds=SECONDS)
    if load.refused or load.broken:
        raise RuntimeError(f"{load.refused} answers were not 200, {load.broken} did not come")
    return Figures(start_s, percentile(single, 0.5), percentile(single, 0.99), load.rate)


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


def floor(port: int) -> Figures:
    """Of bare uvicorn, which runs all the time and is asked before and after each turn."""
    single = one_at_a_time(port, request_bytes("/", BODY), SECONDS / 2)
    load = closed_loop.load(port, "/", BODY, connections=32, seconds=SECONDS / 2)
    return Figures(0.0, percentile(single, 0.5), percentile(single, 0.99), load.rate)


def between(before: Figures, after: Figures) -> Figures:
    """The means: a machine whose speed drifts is fair to both."""
    pairs = zip(dataclasses.astuple(before), dataclasses.astuple(after), strict=True)
    return Figures(*(statistics.mean(pair) for pair in pairs))


def line(name: str, figures: Figures, base: Figures) -> str:
    return (
        f"{name:<26} {figures.start_s:8.2f} s {figures.p50_s * 1e6:9.0f} µs {figures.p99_s * 1e6:9.0f} µs "
        f"{figures.p50_s / base.p50_s:7.2f}× {figures.rate:9.0f} /s {figures.rate / base.rate:7.3f}×"
    )


def entry(name: str, figures: Figures, base: Figures, *, ours: bool = False) -> dict[str, Any]:
    """A line's figures for `benchmarks.report`."""
    return {
        "name": name,
        "ours": ours,
        **dataclasses.asdict(figures),
        "base_p50_s": base.p50_s,
        "base_rate": base.rate,
    }


def measured(wanted: list[str]) -> Iterator[dict[str, Any]]:
    """Each line as it is printed. Peers whose name contains one of `wanted`; all without any."""
    until = time.monotonic() + BUDGET_S
    with (
        tempfile.TemporaryDirectory(prefix="flash-peers-", ignore_cleanup_errors=True) as place,
        bare_uvicorn(Path(place)) as bare,
    ):
        yield _turn("flash server", ours, Path(place), bare, ours=True)
        for peer in PEERS:
            if wanted and not any(word.lower() in peer.name.lower() for word in wanted):
                continue
            if time.monotonic() > until:
                yield _not_measured(peer.name, "the time was over")
            else:
                yield _turn(peer.name, functools.partial(measure, peer), Path(place), bare)


def _turn(
    name: str, measure: Callable[[Path], Figures], place: Path, bare: int, *, ours: bool = False
) -> dict[str, Any]:
    scratch = _folder(place, name)
    try:
        before = floor(bare)
        figures = measure(scratch)
        base = between(before, floor(bare))
    except (RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
        return _not_measured(name, str(error))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(line(name, figures, base), flush=True)
    return entry(name, figures, base, ours=ours)


def _not_measured(name: str, why: str) -> dict[str, Any]:
    print(f"{name:<26} not measured: {why}", flush=True)
    return {"name": name, "ours": False, "why_not": why}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers")
    parser.add_argument("--write", type=Path, help="a file for `python -m benchmarks.report`")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is taken back
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    machine = f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores"
    print(f"{machine}, load {os.getloadavg()[0]:.1f}, {closed_loop.client()}")
    heads = ("peer", "first answer", "p50, one at a time", "p99", "over uvicorn", "32 in flight", "over uvicorn")
    print(f"{heads[0]:<26} {heads[1]:>10} {heads[2]:>12} {heads[3]:>9} {heads[4]:>11} {heads[5]:>12} {heads[6]:>12}")
    found = list(measured(arguments.names))
    if arguments.write is not None:
        arguments.write.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": machine, "peers": found}, indent=1, ensure_ascii=False)
        arguments.write.write_text(text + "\n")


def _folder(place: Path, name: str) -> Path:
    folder = place / "".join(letter for letter in name.lower() if letter.isalnum())
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
