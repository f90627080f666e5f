"""What a running session costs: start, edit, cold start, workers, calls."""

import os
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks import closed_loop, floors, http_load
from benchmarks.measure import Row, in_turns, percentile, python, timed
from benchmarks.product import Session, private_megabytes, running, until
from benchmarks.program import flash

ECHO = {"a": 1, "text": "x" * 80}


def start_to_first_200(folder: Path, rounds: int = 5) -> list[Row]:
    """From the command to the first 200 of /ping and to the first answer of a function."""
    first_answer: list[float] = []

    def product() -> float:
        begin = time.perf_counter()
        with running(folder) as session:
            taken = time.perf_counter() - begin
            session.output("/workers/echo/run_sync", {"x": ECHO})
            first_answer.append(time.perf_counter() - begin)
        return taken

    def floor() -> float:
        begin = time.perf_counter()
        with floors.bare_uvicorn(folder.parent):
            return time.perf_counter() - begin

    ours, bare = in_turns(product, floor, rounds)
    return [
        Row("flash run to first 200", ours * 1e3, "ms", "bare uvicorn to first 200", bare * 1e3, "≤ 1000 ms (500)"),
        Row(
            "flash run to first function answer",
            statistics.median(first_answer) * 1e3,
            "ms",
            "bare uvicorn to first 200",
            bare * 1e3,
        ),
    ]


def edit_to_served(session: Session, rounds: int = 9) -> list[Row]:
    """From the write of a file to the first answer by its new code."""

    def edited(file: str, old: str, new: str, ask: object) -> float:
        path = session.folder / file
        text = path.read_text().replace(old, new)

        def act() -> None:
            path.write_text(text)
            until(ask, pause=0.001)

        return timed(act)

    queue, routes = [], []
    for number in range(rounds):
        queue.append(
            edited(
                "versioned.py",
                f"return {number}",
                f"return {number + 1}",
                lambda n=number: session.output("/versioned/run_sync", {}) == n + 1,
            )
        )
        routes.append(
            edited(
                "routes.py",
                f'"version": {number}',
                f'"version": {number + 1}',
                lambda n=number: session.get("/routes/version")["version"] == n + 1,
            )
        )
    floor = statistics.median(_uvicorn_reload(session.folder.parent, rounds=3))
    return [
        Row(
            "edit → served, queue function",
            statistics.median(queue) * 1e3,
            "ms",
            "uvicorn --reload",
            floor * 1e3,
            "≤ 300 ms (100)",
        ),
        Row(
            "edit → served, HTTP route",
            statistics.median(routes) * 1e3,
            "ms",
            "uvicorn --reload",
            floor * 1e3,
            "≤ 300 ms (100)",
        ),
    ]


def _uvicorn_reload(folder: Path, rounds: int) -> list[float]:
    app = folder / "reloaded" / "reloaded_app.py"
    app.parent.mkdir(exist_ok=True)
    head = "from fastapi import FastAPI\napp = FastAPI()\n\n"
    body = head + "@app.get('/')\nasync def version() -> int:\n    return {number}\n"
    app.write_text(body.format(number=0))
    port = floors.free_port()
    url = f"http://127.0.0.1:{port}/"
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "reloaded_app:app",
        "--reload",
        "--port",
        str(port),
        "--log-level",
        "error",
    ]
    # Bytecode of an edit within the same second would be taken for the edit's: it has the same size and time.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(command, cwd=app.parent, stderr=subprocess.DEVNULL, env=environment)

    def served(number: int) -> bool:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                return int(answer.read()) == number
        except OSError:
            return False

    taken = []
    try:
        until(lambda: served(0))
        for number in range(1, rounds + 1):
            begin = time.perf_counter()
            app.write_text(body.format(number=number))
            until(lambda n=number: served(n))
            taken.append(time.perf_counter() - begin)
    finally:
        process.terminate()
        process.wait()
    return taken


def cold_start(session: Session, rounds: int = 9) -> list[Row]:
    """0 workers, template warm → first answer, next to a bare fork, and to a new interpreter."""

    def once() -> float:
        until(lambda: not session.worker_pids("workers_short"), pause=0.05)
        return timed(lambda: session.output("/workers/wake/run_sync", {"x": 1}))

    session.output("/workers/wake/run_sync", {"x": 1})
    whole = statistics.median(once() for _ in range(rounds))
    warm = statistics.median(timed(lambda: session.output("/workers/echo/run_sync", {"x": ECHO})) for _ in range(200))
    interpreter = statistics.median(python("-c", "pass") for _ in range(9))
    return [
        Row(
            "cold start 0 → answer, over HTTP",
            whole * 1e3,
            "ms",
            "python -c pass",
            interpreter * 1e3,
        ),
        Row(
            "of it, beyond a warm call",
            (whole - warm) * 1e3,
            "ms",
            "warm call, new connection",
            warm * 1e3,
            "≤ 8 ms (3)",
        ),
    ]


def extra_workers(session: Session) -> list[Row]:
    import concurrent.futures

    def together(count: int) -> list[int]:
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda x: session.output("/workers/pid/run_sync", {"x": x}), range(count)))

    one = timed(lambda: together(1))
    eight = timed(lambda: together(8))
    pids = session.worker_pids("workers_wide")
    memory = statistics.median(private_megabytes(pid) for pid in pids)
    return [
        Row(
            f"seven more workers for a burst of 8 calls of 200 ms ({len(pids)} workers)",
            eight * 1e3,
            "ms",
            "one call",
            one * 1e3,
        ),
        Row("private memory of an extra warm worker", memory, "MB", goal="≤ 6 MB (3)"),
    ]


def job_per_call(session: Session, calls: int = 100) -> list[Row]:
    """A spare worker is made ready while a call runs; calls that follow at once wait for the next one to be made."""
    session.output("/workers/once/run_sync", {"x": 1})
    request = http_load.request_bytes("/workers/once/run_sync", b'{"input":{"x":1}}')
    warm = http_load.request_bytes("/workers/echo/run_sync", b'{"input":{"x":{"a":1}}}')
    fork = statistics.median(floors.fork_and_answer() for _ in range(50))
    rows = []
    for name, count, pause_s in (("10 calls a second", calls // 2, 0.1), ("back to back", calls, 0.0)):
        beyond = statistics.median(http_load.some(session.port, request, count, pause_s=pause_s)) - statistics.median(
            http_load.some(session.port, warm, count, pause_s=pause_s)
        )
        label = f"JOB mode: a process per call, beyond a warm call, {name}"
        rows.append(Row(label, beyond * 1e3, "ms", "bare fork and one byte back", fork * 1e3, "≤ 5 ms (1.5)"))
    return rows


def calls_through_the_server(session: Session, seconds: float = 2.0, rounds: int = 3) -> list[Row]:
    body = b'{"input":{"x":{"a":1,"text":"' + b"x" * 80 + b'"}}}'
    ours = http_load.request_bytes("/workers/echo/run_sync", body)
    rows: list[Row] = []
    with floors.bare_uvicorn(session.folder.parent) as bare_port:
        bare = http_load.request_bytes("/", body)
        single = in_turns(
            lambda: percentile(http_load.one_at_a_time(session.port, ours, seconds), 0.5),
            lambda: percentile(http_load.one_at_a_time(bare_port, bare, seconds), 0.5),
            rounds,
        )
        rows.append(
            Row(
                "sync call through the dev server, c=1, p50",
                single[0] * 1e6,
                "µs",
                "bare uvicorn",
                single[1] * 1e6,
                "≤ 1.8× (1.3)",
            )
        )
        rows += [_rate(session, bare_port, body, connections, seconds, rounds) for connections in (32, 512)]
    return rows


def _rate(session: Session, bare_port: int, body: bytes, connections: int, seconds: float, rounds: int) -> Row:
    loads: list[closed_loop.Load] = []

    def ours() -> float:
        path = "/workers/echo/run_sync"
        loads.append(closed_loop.load(session.port, path, body, connections=connections, seconds=seconds))
        return loads[-1].rate

    both = in_turns(
        ours,
        lambda: closed_loop.load(bare_port, "/", body, connections=connections, seconds=seconds).rate,
        rounds,
    )
    tail = statistics.median(load.p99_s for load in loads) * 1e3
    not_200 = sum(load.refused + load.broken for load in loads)
    note = f"p99 {tail:.1f} ms, {not_200} not 200, {closed_loop.client()}"
    return Row(
        f"calls per second through the dev server, c={connections}",
        both[0],
        "/s",
        "bare uvicorn",
        both[1],
        "≥ 0.4×",
        note,
    )


def peer_calls(session: Session) -> Row:
    session.output("/caller/run_sync", {"count": 20})
    ours = statistics.median(session.output("/caller/run_sync", {"count": 500}))
    with floors.bare_uvicorn(session.folder.parent) as port:
        request = http_load.request_bytes("/", b'{"input":{"a":1}}')
        floor = statistics.median(http_load.some(port, request, 500))
    return Row(
        "peer call on this machine, p50",
        ours * 1e6,
        "µs",
        "raw keep-alive request, bare uvicorn",
        floor * 1e6,
        "≤ 2× (1.3)",
    )


def stopping(folder: Path) -> Row:
    command = [flash(), "--version"]
    product, floor = in_turns(
        lambda: timed(lambda: subprocess.run(command, check=True, capture_output=True)), lambda: python("-c", "pass"), 9
    )
    return Row("flash --version", product * 1e3, "ms", "python -c pass", floor * 1e3)
