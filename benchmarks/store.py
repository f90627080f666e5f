"""What the store of the control plane costs alone: calls accepted for later, next to a bare group commit of such rows.

Each of some producers makes a record, waits until it is durable, and makes the next one, as connections of `:enqueue`
do. The floor is a thread that commits what has gathered, one statement per row, and tells the loop once per group.
"""

import asyncio
import gc
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import uvloop

from benchmarks.measure import percentile
from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.executions.states import Event
from flashmesh.gateway.identities import new_execution_id
from flashmesh.kit.ids import EndpointName, FunctionId

BODY = b'{"input": {"name": "Ada", "numbers": [1, 2, 3, 4, 5, 6, 7, 8], "text": "' + b"x" * 200 + b'"}}'
SECONDS = 1.0
ROUNDS = 5

Told = Callable[[], None]
Accept = Callable[[Told], None]


class Floor:
    """Rows of the same size, committed in groups by a thread."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, durability: str) -> None:
        self._loop = loop
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
        self._connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        self._connection.execute("CREATE TABLE accepted (row INTEGER PRIMARY KEY, id TEXT UNIQUE, payload BLOB)")
        self._row = 0
        self._rows: list[tuple[Any, ...]] = []
        self._told: list[Told] = []
        self._guard = threading.Lock()
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def accept(self, told: Told) -> None:
        self._row += 1
        with self._guard:
            self._rows.append((self._row, new_execution_id(), BODY))
            self._told.append(told)
            first = len(self._rows) == 1
        if first:
            self._wake.put(True)

    def _run(self) -> None:
        while self._wake.get():
            with self._guard:
                rows, self._rows = self._rows, []
                told, self._told = self._told, []
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO accepted VALUES (?, ?, ?)", rows)
            self._connection.execute("COMMIT")
            self._loop.call_soon_threadsafe(self._tell, told)

    def _tell(self, told: list[Told]) -> None:
        for one in told:
            one()

    def close(self) -> None:
        self._wake.put(False)
        self._thread.join()
        self._connection.close()


class Product:
    """The store; with `ending` each call also begins and ends, as a worker beside it would have it."""

    def __init__(self, path: Path, loop: asyncio.AbstractEventLoop, durability: Any, *, ending: bool) -> None:
        self._store = SqliteStore(path, loop=loop, durability=durability)
        self._ending = ending

    def accept(self, told: Told) -> None:
        store = self._store
        execution = Execution(
            new_execution_id(),
            FunctionId("hello"),
            EndpointName("hello"),
            "async",
            time.time(),
            "application/json",
            "application/json",
            BODY,
            {"mode": "async", "trace": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        )
        store.create(execution)

        def durable(error: object) -> None:
            assert error is None
            if self._ending:
                store.start(execution, 1, at=time.time(), worker="w1", build="b1")
                outcome = Outcome(event=Event.SUCCEED, result=b'{"greeting": "Hello"}', result_type="application/json")
                store.finish(execution, 1, outcome, at=time.time())
            told()

        store.when_durable(durable)

    def close(self) -> None:
        self._store.close()


class Load:
    """Producers that wait for their own acknowledgement each. Waits in seconds."""

    def __init__(self, accept: Accept, producers: int, loop: asyncio.AbstractEventLoop) -> None:
        self._accept = accept
        self._producers = producers
        self._loop = loop
        self.waits: list[float] = []
        self._running = True
        self._over: asyncio.Future[None] = loop.create_future()
        self._out = 0

    async def run(self, seconds: float) -> tuple[float, float, float]:
        """Accepts per second, CPU microseconds of the loop's thread per accept, of the whole process."""
        begin, thread, process = time.perf_counter(), time.thread_time(), time.process_time()
        for _ in range(self._producers):
            self._next()
        self._loop.call_later(seconds, self._stop)
        await self._over
        count = len(self.waits)
        return (
            count / (time.perf_counter() - begin),
            (time.thread_time() - thread) / count * 1e6,
            (time.process_time() - process) / count * 1e6,
        )

    def _stop(self) -> None:
        self._running = False

    def _next(self) -> None:
        began = time.perf_counter()
        self._out += 1

        def told() -> None:
            self.waits.append(time.perf_counter() - began)
            self._out -= 1
            if self._running:
                self._loop.call_soon(self._next)  # its answer and its next request are turns of their own
            elif not self._out:
                self._over.set_result(None)

        self._accept(told)


async def _one(make: Callable[[Path, asyncio.AbstractEventLoop], Any], producers: int) -> tuple[float, ...]:
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(dir=Path.home()) as directory:
        subject = make(Path(directory) / "store.db", loop)
        load = Load(subject.accept, producers, loop)
        result = await load.run(SECONDS)
        subject.close()
    waits = load.waits
    return (*result, statistics.median(waits) * 1e3, percentile(waits, 0.99) * 1e3)


def compare(producers: int, durability: str) -> None:
    """Print a line per subject: medians of rounds in turns."""
    subjects: dict[str, Callable[[Path, asyncio.AbstractEventLoop], Any]] = {
        "bare group commit": lambda path, loop: Floor(path, loop, durability),
        "store, accepted": lambda path, loop: Product(path, loop, durability, ending=False),
        "store, accepted and ended": lambda path, loop: Product(path, loop, durability, ending=True),
    }
    rounds: dict[str, list[tuple[float, ...]]] = {name: [] for name in subjects}
    for number in range(ROUNDS):
        for name in list(subjects) if number % 2 else reversed(subjects):
            gc.collect()
            rounds[name].append(uvloop.run(_one(subjects[name], producers)))
    floor = 0.0
    for name, results in rounds.items():
        rate, loop_us, all_us, p50, p99 = (statistics.median(column) for column in zip(*results, strict=True))
        floor = floor or rate
        print(
            f"c={producers:<3} {durability:<6} {name:<26} {rate:8.0f}/s {rate / floor:5.2f}  "
            f"loop {loop_us:5.1f} us, process {all_us:5.1f} us  p50 {p50:.2f} ms, p99 {p99:.2f} ms"
        )


if __name__ == "__main__":
    for how in ("full", "normal"):
        for count in (1, 32):
            compare(count, how)
