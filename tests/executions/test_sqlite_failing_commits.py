"""Calls of all kinds while commits fail and succeed by turns: what was said to whom is what is on disk in the end."""

import asyncio
import contextlib
import random
import sqlite3
from pathlib import Path

import pytest

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.sqlite import behind
from flashmesh.executions.sqlite.database import Durability
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Retention, StoreUnavailable
from flashmesh.functions.errors import ExecutionNotFound
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

KEEP_ALL = Retention(count=10**6, bytes=10**9)


class Traffic:
    """Random calls, and what was promised about each."""

    def __init__(self, store: SqliteStore, chance: random.Random) -> None:
        self.store = store
        self.chance = chance
        self.made = 0
        self.live: list[Execution] = []
        self.accepted: set[ExecutionId] = set()
        self.refused: set[ExecutionId] = set()
        self.failed: dict[ExecutionId, bytes] = {}
        """The payloads of what has failed."""

    def accept(self) -> None:
        self.made += 1
        number = self.made
        sync = number % 5 == 0
        execution = Execution(
            ExecutionId(f"e{number}"),
            FunctionId("m.f"),
            EndpointName("m"),
            "sync" if sync else "async",
            1.0,
            payload=b"%d" % number * (20_000 if number % 13 == 0 else 1),
            idempotency_key=f"k{number}" if sync or number % 7 == 0 else None,
        )
        try:
            self.store.create(execution)
        except StoreUnavailable:
            self.refused.add(execution.id)
            return
        if sync:
            self.accepted.add(execution.id)
            self.live.append(execution)
        else:
            self.store.when_durable(lambda error: self._told(execution, error))

    def _told(self, execution: Execution, error: StoreUnavailable | None) -> None:
        if error is None:
            self.accepted.add(execution.id)
            self.live.append(execution)
            return
        self.refused.add(execution.id)
        with pytest.raises(ExecutionNotFound):
            self.store.get(execution.id)

    def go_on(self) -> None:
        """Start, repeat or end one of those that live."""
        if not self.live:
            return
        execution = self.live.pop(self.chance.randrange(len(self.live)))
        if execution.status is Status.QUEUED:
            self.store.start(execution, execution.attempt, at=1.0, worker="w", build="b")
            self.live.append(execution)
        elif self.chance.random() < 0.2:
            self.store.requeue(execution, execution.attempt)
            self.live.append(execution)
        else:
            event = Event.FAIL if self.chance.random() < 0.5 else Event.SUCCEED
            if event is Event.FAIL:
                self.failed[execution.id] = execution.payload
            outcome = Outcome(event=event, result=result_of(execution.id))
            self.store.finish(execution, execution.attempt, outcome, at=self.store._now())


def result_of(execution: str) -> bytes:
    number = int(execution[1:])
    return b"%d" % number * (30_000 if number % 17 == 0 else 1)


async def turns(traffic: Traffic, path: Path) -> None:
    """Let things happen, while another process takes the database's lock now and then."""
    chance = traffic.chance
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as other:
        for _ in range(1000):
            what = chance.random()
            if what < 0.02 and not other.in_transaction:
                with contextlib.suppress(sqlite3.OperationalError):
                    other.execute("BEGIN IMMEDIATE")
            elif what < 0.08 and other.in_transaction:
                other.execute("COMMIT")
            elif what < 0.45:
                traffic.accept()
            elif what < 0.85:
                traffic.go_on()
            else:
                await asyncio.sleep(0.003 if what > 0.97 else 0)
        if other.in_transaction:
            other.execute("COMMIT")


async def all_written(store: SqliteStore) -> None:
    loop = asyncio.get_running_loop()
    while True:
        told: asyncio.Future[StoreUnavailable | None] = loop.create_future()
        store.when_durable(told.set_result)
        if await asyncio.wait_for(told, 30) is None:
            return store.sync()


def check(store: SqliteStore, traffic: Traffic) -> None:
    live = {execution.id: execution for execution in traffic.live}
    for name in traffic.accepted:
        found = store.get(name)
        if name in live:
            expected = live[name]
            assert (found.status, found.attempt) == (expected.status, expected.attempt)
            assert found.payload == expected.payload
        else:
            status = Status.ERROR if name in traffic.failed else Status.SUCCESS
            assert (found.status, found.result) == (status, result_of(name))
            assert store.payload(found) == traffic.failed.get(name)
    assert {one.id for one in store.recent(limit=10**6)} == traffic.accepted
    assert not traffic.accepted & traffic.refused


def files_without_rows(store: SqliteStore, path: Path) -> set[str]:
    named = store.database.read("SELECT payload_file, result_file FROM executions")
    there = {file.name for file in path.with_name(path.name + "-files").iterdir()}
    return there ^ {name for row in named for name in row if name}


@pytest.mark.parametrize("durability", ["full", "normal"])
@pytest.mark.parametrize("seed", range(4))
def test_what_was_promised_is_on_disk_whatever_commits_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, durability: Durability
) -> None:
    """Accepted ones are there as they stand, refused ones are not, and no file is left without a row."""
    monkeypatch.setattr("flashmesh.executions.sqlite.database._LOCK_WAIT_S", 0.005)
    monkeypatch.setattr(behind, "_PROBE_S", 0.01)
    path = tmp_path / "executions.db"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        window = Retention(count=(0, 5, 1000, 0)[seed])
        store = SqliteStore(path, loop=loop, retention=KEEP_ALL, window=window, durability=durability)
        traffic = Traffic(store, random.Random(seed))
        await turns(traffic, path)
        await all_written(store)
        check(store, traffic)
        store.close()
        store = SqliteStore(path, loop=loop, retention=KEEP_ALL)
        check(store, traffic)
        assert files_without_rows(store, path) == set()
        store.close()

    asyncio.run(main())
