"""`flash server` beside bare uvicorn that answers the same bytes itself: calls, durable accepts, start, memory."""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import closed_loop, floors, http_load, overload, tree
from benchmarks.closed_loop import Load
from benchmarks.measure import Row, in_turns, percentile
from benchmarks.served import BODY, Server, enqueue, invoke, serving

EXECUTIONS = 100_000
"""So many before memory is looked at."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """Two servers under the same load, and how long it lasts.

    Attributes:
        done: answers of ours so far.
    """

    server: Server
    bare: floors.Bare
    seconds: float
    rounds: int
    done: list[int] = dataclasses.field(default_factory=list)

    def ours(self, path: str, connections: int, *, token: str = "", accepted: int = 200) -> Load:
        load = closed_loop.load(
            self.server.port,
            path,
            BODY,
            connections=connections,
            seconds=self.seconds,
            token=token,
            accepted=accepted,
        )
        self.done.append(load.count)
        return load

    def floor(self, connections: int) -> Load:
        return closed_loop.load(self.bare.port, "/", BODY, connections=connections, seconds=self.seconds)


def server_rows(folder: Path, seconds: float = 2.0, rounds: int = 3, executions: int = EXECUTIONS) -> Iterator[Row]:
    """All of them. `folder` is a scratch directory."""
    yield start_to_first_answer(folder, rounds)
    with serving(folder) as server, floors.bare_server(folder) as bare:
        yield idle_memory(server)
        bench = Bench(server, bare, seconds, rounds)
        http_load.some(server.port, http_load.request_bytes(invoke("echo"), BODY), 2000)
        yield sync_alone(bench)
        for connections in (32, 64, 512):
            yield from sync_rows(bench, connections)
        yield with_token(bench)
        yield from accepts(bench)
        yield memory_after(bench, executions)
    with serving(folder / "overloaded") as server:
        yield from overload.overload_rows(server, seconds)
    with serving(folder / "asgi", variables={"FLASH_SERVER_LEAN": "no"}) as server, floors.bare_server(folder) as bare:
        yield asgi_alone(Bench(server, bare, seconds, rounds))


def start_to_first_answer(folder: Path, rounds: int) -> Row:
    """From the command to the first 200 of a call, a worker's start included; beside the start of bare uvicorn."""

    def ours() -> float:
        begin = time.perf_counter()
        with serving(folder):
            return time.perf_counter() - begin

    def bare() -> float:
        begin = time.perf_counter()
        with floors.bare_server(folder):
            return time.perf_counter() - begin

    both = in_turns(ours, bare, rounds)
    return Row(
        "flash server --project: start to first answer",
        both[0] * 1e3,
        "ms",
        "start of bare uvicorn",
        both[1] * 1e3,
        "≤ 600 ms (300)",
        "a worker's start included",
    )


def idle_memory(server: Server) -> Row:
    note = f"with keeper, template and worker {tree.tree_pss_mb(server.pid):.0f} MB, what they share counted once"
    return Row("flash server, idle memory", server.rss_mb(), "MB", goal="≤ 80 MB (60)", note=note)


def memory_after(bench: Bench, executions: int) -> Row:
    while sum(bench.done) < executions:
        bench.ours(invoke("echo"), 64)
    name = f"flash server, memory after {executions:,} executions"
    return Row(name, bench.server.rss_mb(), "MB", goal="≤ 300 MB", note=f"{sum(bench.done):,} calls")


def sync_alone(bench: Bench) -> Row:
    """One client, one request after the other, from a blocking socket."""
    ours, bare = http_load.request_bytes(invoke("echo"), BODY), http_load.request_bytes("/", BODY)
    both = in_turns(
        lambda: percentile(http_load.one_at_a_time(bench.server.port, ours, bench.seconds), 0.5),
        lambda: percentile(http_load.one_at_a_time(bench.bare.port, bare, bench.seconds), 0.5),
        bench.rounds,
    )
    return Row("sync invoke, c=1, p50", both[0] * 1e6, "µs", "bare uvicorn", both[1] * 1e6, "≤ 1.8× (1.3)")


def sync_rows(bench: Bench, connections: int) -> Iterator[Row]:
    """So many clients at once: calls per second, CPU per call; with many, the tail over the ideal queue as well."""
    ours, floor, cpu, floor_cpu = _in_turns(bench, lambda: bench.ours(invoke("echo"), connections), connections)
    refused, broken = sum(load.refused for load in ours), sum(load.broken for load in ours)
    p99 = statistics.median(load.p99_s for load in ours)
    rate = statistics.median(load.rate for load in ours)
    name = f"sync invoke, c={connections}"
    note = f"p99 {p99 * 1e3:.1f} ms; errors: {refused + broken}; {closed_loop.client()}"
    yield Row(
        f"{name}, calls/s",
        rate,
        "/s",
        "bare uvicorn",
        statistics.median(load.rate for load in floor),
        "≥ 0.8× (1.2)" if connections == 32 else "",
        note,
    )
    yield Row(
        f"{name}, CPU per call",
        cpu * 1e6,
        "µs",
        "bare uvicorn",
        floor_cpu * 1e6,
        "≤ 1.6× (1.1)" if connections == 32 else "",
        "server, keeper, template and worker",
    )
    if connections == 512:
        ideal = connections / rate
        yield Row(f"{name}, p99", p99 * 1e3, "ms", "512 / calls per second", ideal * 1e3, "≤ 5× (2)", note)


def _in_turns(bench: Bench, ours: Callable[[], Load], connections: int) -> tuple[list[Load], list[Load], float, float]:
    """The loads of both in turns, and the median CPU seconds per answer of both."""
    loads: list[Load] = []
    floor_loads: list[Load] = []
    costs: list[float] = []
    floor_costs: list[float] = []

    def product() -> float:
        before = bench.server.cpu_s()
        load = ours()
        loads.append(load)
        costs.append((bench.server.cpu_s() - before) / max(1, load.count))
        return load.rate

    def floor() -> float:
        before = tree.cpu_s(bench.bare.pid)
        load = bench.floor(connections)
        floor_loads.append(load)
        floor_costs.append((tree.cpu_s(bench.bare.pid) - before) / max(1, load.count))
        return load.rate

    in_turns(product, floor, bench.rounds)
    return loads[1:], floor_loads[1:], statistics.median(costs[1:]), statistics.median(floor_costs[1:])


def with_token(bench: Bench) -> Row:
    """Every call carries a token of scope `call`, which is verified."""
    token = bench.server.token()
    both = in_turns(
        lambda: bench.ours(invoke("echo"), 32, token=token).rate,
        lambda: bench.ours(invoke("echo"), 32).rate,
        bench.rounds,
    )
    return Row("sync invoke, c=32, with a token, calls/s", both[0], "/s", "the same without", both[1], "", "")


def accepts(bench: Bench) -> Iterator[Row]:
    """Durable accepts: every 202 was committed. What was accepted runs meanwhile, as it does in life."""
    ours, floor, _, _ = _in_turns(bench, lambda: bench.ours(enqueue("echo"), 32, accepted=202), 32)
    refused = sum(load.refused + load.broken for load in ours)
    name = "durable async accepts, c=32"
    rates = [statistics.median(load.rate for load in loads) for loads in (ours, floor)]
    tails = [statistics.median(load.p99_s for load in loads) * 1e3 for loads in (ours, floor)]
    yield Row(f"{name}, per second", rates[0], "/s", "bare uvicorn", rates[1], "≥ 0.35× (0.6)", f"not 202: {refused}")
    yield Row(f"{name}, p99", tails[0], "ms", "bare uvicorn", tails[1], "≤ 15 ms (5)")


def asgi_alone(bench: Bench) -> Row:
    """Everything through uvicorn: FLASH_SERVER_LEAN=no."""
    both = in_turns(lambda: bench.ours(invoke("echo"), 32).rate, lambda: bench.floor(32).rate, bench.rounds)
    name = "sync invoke, c=32, lean HTTP front off, calls/s"
    return Row(name, both[0], "/s", "bare uvicorn", both[1], "≥ 0.4× (0.5)", closed_loop.client())


def main() -> None:
    """`python -m benchmarks.server`: these rows alone; with `--quick` in about a minute."""
    import tempfile

    from benchmarks.__main__ import line

    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    quick = "--quick" in sys.argv
    with tempfile.TemporaryDirectory(prefix="flash-bench-") as scratch:
        for row in server_rows(Path(scratch), *((1.0, 1, 10_000) if quick else ())):
            print(json.dumps(row.__dict__) if "--json" in sys.argv else line(row), flush=True)


if __name__ == "__main__":
    main()
