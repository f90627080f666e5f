"""What the server counts, and how Prometheus reads it.

A call costs a few additions to plain integers when it ends; everything that can be known without counting (what waits,
what runs, how much memory) is looked up when somebody asks. Times are kept in microseconds and shown in seconds.
"""

import os
import platform
import resource
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from flashmesh import __version__
from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.kit.ids import FunctionId

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0),
)
"""Upper bounds of every histogram. From a tenth of a millisecond, what a small function takes, to half an hour."""
MOST_FUNCTIONS: Final = 1000
"""Functions with a series of their own. Those beyond are counted together under `other`."""
_BOUNDS_US: Final = tuple(round(bound * 1_000_000) for bound in BUCKETS_S)
_OTHER: Final = FunctionId("other")

Labels = Mapping[str, str]
Sample = tuple[str, str, str, Labels, float]
"""Name, type (`counter` or `gauge`), help, labels, value."""


class Histogram:
    """Counts by bucket. `observe` takes whole microseconds."""

    __slots__ = ("counts", "total_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_US) + 1)
        self.total_us = 0

    def observe(self, us: int) -> None:
        self.counts[bisect_left(_BOUNDS_US, us)] += 1
        self.total_us += us


class FunctionCounts:
    """One function's."""

    __slots__ = ("cold", "init", "outcomes", "rejected", "restarts", "run", "started", "total", "wait")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = dict.fromkeys(
            (Status.SUCCESS, Status.ERROR, Status.TIMEOUT, Status.CANCELLED), 0
        )
        self.started = 0
        """Executions that ended after they had begun at least once."""
        self.restarts = 0
        """Attempts beyond the first."""
        self.cold = 0
        self.rejected = 0
        self.run = Histogram()
        self.wait = Histogram()
        self.total = Histogram()
        self.init = Histogram()


class Metrics:
    """Fed by the dispatcher as executions end; `exposition` is what `/metrics` answers."""

    def __init__(self, unfinished: Callable[[], Iterable[Execution]] = tuple) -> None:
        """Args:
        unfinished: every execution that waits or runs now; asked when the metrics are read.
        """
        self._unfinished = unfinished
        self._functions: dict[FunctionId, FunctionCounts] = {}
        self._sources: list[Callable[[], Iterable[Sample]]] = []
        self._histograms: list[tuple[str, str, Histogram]] = []
        self._began = time.time()

    # Counting

    def ended(self, execution: Execution) -> None:
        """An execution has ended."""
        counts = self._functions.get(execution.function) or self._of(execution.function)
        counts.outcomes[execution.status] += 1
        queue, run, cold = execution.queue_us, execution.run_us, execution.cold_us
        bounds = _BOUNDS_US
        wait = counts.wait  # `observe`, written out: three calls would double the cost
        wait.counts[bisect_left(bounds, queue)] += 1
        wait.total_us += queue
        total = counts.total
        total.counts[bisect_left(bounds, queue + cold + run)] += 1
        total.total_us += queue + cold + run
        if execution.attempt > 1:
            counts.restarts += execution.attempt - 1
        if execution.started_at is None:
            return
        counts.started += 1
        ran = counts.run
        ran.counts[bisect_left(bounds, run)] += 1
        ran.total_us += run
        if cold:
            counts.cold += 1
            counts.init.observe(cold)

    def rejected(self, function: FunctionId) -> None:
        """A call was refused because its queue is full."""
        self._of(function).rejected += 1

    def _of(self, function: FunctionId) -> FunctionCounts:
        found = self._functions.get(function)
        if found is None:
            if len(self._functions) >= MOST_FUNCTIONS:
                function = _OTHER
            found = self._functions.setdefault(function, FunctionCounts())
        return found

    # Others' numbers

    def add_source(self, source: Callable[[], Iterable[Sample]]) -> None:
        """Ask `source` for samples whenever the metrics are read. Samples of one name stand together."""
        self._sources.append(source)

    def add_histogram(self, name: str, help: str, histogram: Histogram) -> None:
        """Show a histogram that somebody else feeds."""
        self._histograms.append((name, help, histogram))

    # Showing

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        page = _Page()
        live = self._live()
        functions = sorted({*self._functions, *live})
        counts = {name: self._functions.get(name) or FunctionCounts() for name in functions}
        _function_counters(page, counts, live)
        for name, help, read in _HISTOGRAMS:
            page.head(name, "histogram", help)
            for function in functions:
                page.histogram(name, f'function="{_escaped(function)}"', read(counts[function]))
        for name, help, histogram in self._histograms:
            page.head(name, "histogram", help)
            page.histogram(name, "", histogram)
        for source in self._sources:
            page.samples(source())
        page.samples(_process(self._began))
        return page.text()

    def _live(self) -> dict[FunctionId, "_Live"]:
        found: dict[FunctionId, _Live] = {}
        for execution in self._unfinished():
            function = execution.function
            if function not in self._functions and len(self._functions) >= MOST_FUNCTIONS:
                function = _OTHER
            found.setdefault(function, _Live()).add(execution)
        return found


class _Live:
    """A function's executions that have not ended. Counters take them in, so that none ever falls."""

    __slots__ = ("restarts", "running", "waiting")

    def __init__(self) -> None:
        self.waiting = self.running = 0
        self.restarts = 0
        """Their attempts beyond the first; of one that waits, the next one counts."""

    def add(self, execution: Execution) -> None:
        if execution.status is Status.RUNNING:
            self.running += 1
        else:
            self.waiting += 1
        self.restarts += execution.attempt - 1


_NONE: Final = _Live()

_HISTOGRAMS: Final[Sequence[tuple[str, str, Callable[[FunctionCounts], Histogram]]]] = (
    ("function_latency_seconds", "Run time of the body, in the worker.", lambda counts: counts.run),
    ("function_queue_wait_seconds", "Time in the queue, without cold start.", lambda counts: counts.wait),
    ("function_e2e_latency_seconds", "From acceptance to the end.", lambda counts: counts.total),
    ("function_init_duration_seconds", "What callers waited for a worker to start.", lambda counts: counts.init),
)


def _function_counters(
    page: "_Page", counts: Mapping[FunctionId, FunctionCounts], lives: Mapping[FunctionId, _Live]
) -> None:
    def accepted(one: FunctionCounts, live: _Live) -> int:
        return sum(one.outcomes.values()) + live.waiting + live.running

    def outcome(status: Status) -> Callable[[FunctionCounts, _Live], int]:
        return lambda one, _: one.outcomes[status]

    rows: list[tuple[str, str, Callable[[FunctionCounts, _Live], int]]] = [
        ("enqueue_total", "Calls accepted.", accepted),
        (
            "dispatch_total",
            "Attempts begun.",
            lambda one, live: one.started + one.restarts + live.running + live.restarts,
        ),
        ("success_total", "Executions that succeeded.", outcome(Status.SUCCESS)),
        ("error_total", "Executions that failed.", outcome(Status.ERROR)),
        ("timeout_total", "Executions stopped at their limit.", outcome(Status.TIMEOUT)),
        ("cancelled_total", "Executions cancelled.", outcome(Status.CANCELLED)),
        (
            "retry_total",
            "Attempts beyond the first of an execution.",
            lambda one, live: one.restarts + live.restarts,
        ),
        ("queue_rejected_total", "Calls refused: queue full.", lambda one, _: one.rejected),
        ("cold_start_total", "Executions that waited for a worker to start.", lambda one, _: one.cold),
        ("warm_start_total", "Executions that did not.", lambda one, _: one.started - one.cold),
        ("queue_depth", "Calls that wait.", lambda _, live: live.waiting),
        ("in_flight", "Calls that run.", lambda _, live: live.running),
    ]
    for word, help, read in rows:
        name = "function_" + word
        page.head(name, "counter" if word.endswith("_total") else "gauge", help)
        for function, one in counts.items():
            page.line(name, f'function="{_escaped(function)}"', read(one, lives.get(function, _NONE)))


class _Page:
    """Text of the exposition, built line by line."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._headed: set[str] = set()

    def head(self, name: str, kind: str, help: str) -> None:
        if name not in self._headed:
            self._headed.add(name)
            self._lines.append(f"# HELP {name} {help}\n# TYPE {name} {kind}\n")

    def line(self, name: str, labels: str, value: float) -> None:
        self._lines.append(f"{name}{{{labels}}} {value:.17g}\n" if labels else f"{name} {value:.17g}\n")

    def samples(self, samples: Iterable[Sample]) -> None:
        for name, kind, help, labels, value in samples:
            self.head(name, kind, help)
            self.line(name, ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items()), value)

    def histogram(self, name: str, labels: str, histogram: Histogram) -> None:
        before = labels + "," if labels else ""
        total = 0
        for bound, count in zip(BUCKETS_S, histogram.counts, strict=False):
            total += count
            self._lines.append(f'{name}_bucket{{{before}le="{bound:g}"}} {total}\n')
        total += histogram.counts[-1]
        self._lines.append(f'{name}_bucket{{{before}le="+Inf"}} {total}\n')
        self.line(f"{name}_sum", labels, histogram.total_us / 1_000_000)
        self.line(f"{name}_count", labels, total)

    def text(self) -> bytes:
        return "".join(self._lines).encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _process(began: float) -> Iterable[Sample]:
    """What Prometheus' own clients say of their process."""
    labels = {"version": __version__, "python": platform.python_version()}
    yield "flash_build_info", "gauge", "Always 1; the labels tell what runs.", labels, 1
    used = resource.getrusage(resource.RUSAGE_SELF)
    yield "process_cpu_seconds_total", "counter", "User and system time.", {}, used.ru_utime + used.ru_stime
    yield "process_start_time_seconds", "gauge", "When the server began.", {}, began
    try:
        pages = Path("/proc/self/statm").read_text().split()
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only
    except OSError:
        return  # not Linux
    size = os.sysconf("SC_PAGE_SIZE")
    yield "process_resident_memory_bytes", "gauge", "Memory in use.", {}, int(pages[1]) * size
    yield "process_virtual_memory_bytes", "gauge", "Address space.", {}, int(pages[0]) * size
    yield "process_open_fds", "gauge", "Open descriptors.", {}, descriptors
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield "process_max_fds", "gauge", "Most descriptors.", {}, limit
