"""`python -m benchmarks.account FILE`: where each microsecond of a warm synchronous call goes.

Server and worker count, while they are under load, whose code their CPU time finds (`sampler`); /proc says how much CPU
time that was. Both together, over the number of calls, are microseconds per stage. What the kernel does for a send
counts for the stage that sends; receiving and waiting are the event loop's.
"""

import collections
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import closed_loop, floors, http_load, program, tree
from benchmarks.product import until
from benchmarks.sampler import LOOP
from benchmarks.served import BODY, first_answer, invoke

JOBS = """
import sampler
from flashmesh import CpuLiveServerless, remote

cpu = CpuLiveServerless(name="jobs", workersMax=1)


@remote(cpu, queue_size=100000)
async def echo(x: dict) -> dict:
    return x


@remote(cpu)
async def sampled(begin: bool) -> dict:
    import os
    if begin:
        sampler.start()
    return {"pid": os.getpid(), "counts": sampler.take()}
"""

LOOP_STAGE: Final = "event loop, receive and wait"
Stages = dict[str, float]

SERVER_IN: Final = (
    ("gateway/front/", "HTTP: read and parse"),
    ("gateway/access/", "route and authorise"),
    ("gateway/door", "route and authorise"),
    ("gateway/api/hot", "route and authorise"),
    ("gateway/api/queue_paths", "route and authorise"),
    ("gateway/directory", "route and authorise"),
    ("gateway/functions/", "route and authorise"),
    ("gateway/metrics", "metrics, log line"),
    ("gateway/logs", "metrics, log line"),
    ("deploy/local/printer", "metrics, log line"),
    ("gateway/webhooks", "metrics, log line"),
    ("wire/", "frame to the worker"),
    ("queueing/link", "frame to the worker"),
    ("executions/", "record, queue, assign"),
    ("queueing/", "record, queue, assign"),
    ("gateway/calls", "record, queue, assign"),
    ("gateway/", "read the request"),
)
SERVER_BACK: Final = (
    *SERVER_IN[1:11],
    ("wire/", "frame from the worker"),
    ("queueing/link", "frame from the worker"),
    ("executions/", "settle the record"),
    ("queueing/", "settle the record"),
    ("gateway/", "answer"),
)
WORKER: Final = (("user", "user's function"), ("wire/", "worker: frames"), ("", "worker: begin and end the call"))
ORDER: Final = (
    LOOP_STAGE,
    "HTTP: read and parse",
    "route and authorise",
    "read the request",
    "record, queue, assign",
    "frame to the worker",
    "worker: event loop, receive and wait",
    "worker: frames",
    "worker: begin and end the call",
    "user's function",
    "frame from the worker",
    "settle the record",
    "metrics, log line",
    "answer",
    "other threads (store, log)",
)
"""The stages of a call, in its order."""


def server_stage(sample: str) -> str:
    """The stage that a sample of the server belongs to."""
    root, here = sample.split(" ")
    if here == LOOP:
        return LOOP_STAGE
    back = root.startswith(("wire/", "queueing/"))
    for start, stage in SERVER_BACK if back else SERVER_IN:
        if here.startswith(start):
            return stage
    return "settle the record" if back else "read the request"


def worker_stage(sample: str) -> str:
    _, here = sample.split(" ")
    if here == LOOP:
        return f"worker: {LOOP_STAGE}"
    return next(stage for start, stage in WORKER if here.startswith(start))


def stages(counts: Mapping[str, int], stage_of: Callable[[str], str], cpu_s: float) -> Stages:
    """CPU seconds by stage: all of it, divided as the samples are."""
    total = sum(counts.values())
    found: Stages = collections.defaultdict(float)
    for sample, count in counts.items():
        found[stage_of(sample)] += count / total * cpu_s
    return found


class Sampled:
    """A running server whose processes count."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, out: Path) -> None:
        self.process, self.port, self._out = process, port, out
        self.worker = self.of_worker(begin=True)["pid"]

    def of_worker(self, *, begin: bool = False) -> Any:
        return program.ask(f"http://127.0.0.1:{self.port}{invoke('sampled')}", {"input": {"begin": begin}})["output"]

    def of_server(self) -> dict[str, int]:
        self._out.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        until(self._out.exists)
        found: dict[str, int] = json.loads(self._out.read_text())
        return found

    def cpu(self) -> dict[str, tuple[float, float]]:
        """User and system seconds: of the server's main thread, its other threads, and the worker."""
        threads = {
            int(place.name): tree.user_and_system_s(place) for place in Path(f"/proc/{self.process.pid}/task").iterdir()
        }
        main = threads.pop(self.process.pid)
        others = (sum(user for user, _ in threads.values()), sum(system for _, system in threads.values()))
        return {"main": main, "others": others, "worker": tree.user_and_system_s(Path(f"/proc/{self.worker}"))}


@contextmanager
def sampled_server(folder: Path) -> Iterator[Sampled]:
    project = folder / "project"
    project.mkdir(parents=True)
    (project / "jobs.py").write_text(JOBS)
    sampler = Path(__file__).with_name("sampler.py")
    shutil.copy(sampler, project / "sampler.py")
    port = floors.free_port()
    out = folder / "server.json"
    command = [sys.executable, "-P", str(sampler), str(out), "server", "--project", str(project), "--port", str(port)]
    environment = program.environment(folder / "home")
    with program.started(command, environment=environment, log=folder / "server.log") as process:
        first_answer(process, port, http_load.request_bytes(invoke("echo"), BODY))
        yield Sampled(process, port, out)


def account(server: Sampled, connections: int, seconds: float) -> dict[str, Any]:
    """Microseconds of CPU per call by stage, in the order of a call, with so many calls under way."""

    def load(seconds: float) -> int:
        if connections == 1:
            request = http_load.request_bytes(invoke("echo"), BODY)
            return len(http_load.one_at_a_time(server.port, request, seconds))
        return closed_loop.load(server.port, invoke("echo"), BODY, connections=connections, seconds=seconds).count

    load(1.0)
    server.of_server()
    server.of_worker()
    before, begin = server.cpu(), time.perf_counter()
    calls = load(seconds)
    taken, after = time.perf_counter() - begin, server.cpu()
    used = {who: (after[who][0] - before[who][0], after[who][1] - before[who][1]) for who in before}
    samples, worker_samples = server.of_server(), server.of_worker()["counts"]
    found = stages(samples, server_stage, sum(used["main"])) | stages(worker_samples, worker_stage, sum(used["worker"]))
    found["other threads (store, log)"] = sum(used["others"])
    return {
        "connections": connections,
        "calls": calls,
        "calls_per_s": calls / taken,
        "kernel_us": sum(system for _, system in used.values()) / calls * 1e6,
        "samples": sum(samples.values()) + sum(worker_samples.values()),
        "stages_us": {stage: found.get(stage, 0.0) / calls * 1e6 for stage in ORDER},
    }


def main() -> None:
    """Prints the account, and writes it to the file that is named."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    seconds = 2.0 if "--quick" in sys.argv else 8.0
    with (
        tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch,
        sampled_server(Path(scratch) / "sampled") as server,
    ):
        accounts = [account(server, connections, seconds) for connections in (1, 32)]
    for one in accounts:
        print(f"c={one['connections']}: {one['calls']} calls, {one['samples']} samples")
        for stage, taken in one["stages_us"].items():
            print(f"  {taken:8.1f} µs  {stage}")
        print(f"  {sum(one['stages_us'].values()):8.1f} µs  all of it; {one['kernel_us']:.1f} µs of them in the kernel")
    for path in (argument for argument in sys.argv[1:] if not argument.startswith("-")):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(accounts, indent=1) + "\n")


if __name__ == "__main__":
    main()
