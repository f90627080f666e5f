"""What is acknowledged is on disk: after kill -9, restarts, a full disk; and what happens with a damaged database."""

import asyncio
import contextlib
import functools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashmesh.executions.record import Execution, Kind, Outcome
from flashmesh.executions.sqlite import behind
from flashmesh.executions.sqlite.database import Durability
from flashmesh.executions.sqlite.files import Files
from flashmesh.executions.sqlite.schema import DatabaseDamaged, DatabaseLocked, DatabaseTooNew
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Retention, StoreUnavailable
from flashmesh.functions.errors import DuplicateExecution, ExecutionNotFound, IdempotencyConflict
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

LARGE = 100_000


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def new(name: str, *, payload: bytes = b"{}", key: str | None = None, kind: Kind = "async") -> Execution:
    return Execution(
        ExecutionId(name),
        FunctionId("m.f"),
        EndpointName("m"),
        kind,
        1.0,
        payload=payload,
        idempotency_key=key,
        meta={"trace": "t", "webhook": "http://x"},
    )


def succeed(store: SqliteStore, execution: Execution, result: bytes = b"1") -> None:
    if execution.status is Status.QUEUED:
        store.start(execution, execution.attempt, at=2.0, worker="w", build="b")
    store.finish(execution, execution.attempt, Outcome(event=Event.SUCCEED, result=result), at=time.time())


def fail(store: SqliteStore, name: str, result: bytes = b"") -> None:
    execution = store.get(ExecutionId(name))
    store.start(execution, execution.attempt, at=2.0, worker="w", build="b")
    store.finish(execution, execution.attempt, Outcome(event=Event.FAIL, result=result), at=time.time())


def durable(store: SqliteStore) -> Awaitable[StoreUnavailable | None]:
    """What a caller that asks now is told."""
    told: asyncio.Future[StoreUnavailable | None] = asyncio.get_running_loop().create_future()
    store.when_durable(told.set_result)
    return asyncio.wait_for(told, 30)


def known(store: SqliteStore, name: str) -> bool:
    try:
        store.get(ExecutionId(name))
    except ExecutionNotFound:
        return False
    return True


@contextlib.contextmanager
def opened(path: Path, **options: object) -> Iterator[SqliteStore]:
    store = SqliteStore(path, loop=asyncio.get_running_loop(), **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


def rows(path: Path, sql: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def files(path: Path) -> list[str]:
    return sorted(file.name for file in path.with_name(path.name + "-files").iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "executions.db"


# Acknowledged means on disk


@on_a_loop
async def test_an_end_is_written_with_the_next_call_that_somebody_waits_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes no commit of its own, which the next call would have to wait for."""
    monkeypatch.setattr(behind, "_ENDED_S", 3600.0)
    with opened(path) as store:
        commits: list[float] = []
        store.database.writer.took = commits.append
        first = new("first")
        store.create(first)
        await durable(store)
        succeed(store, first)
        acknowledged: list[object] = []
        store.when_durable(acknowledged.append, about=first.id)
        for _ in range(3):
            await asyncio.sleep(0)
        assert store.database.writer.outstanding == []
        store.create(new("second"))
        await durable(store)
        assert len(commits) == 2
        assert acknowledged == [None]
        assert rows(path, "SELECT id, status FROM executions ORDER BY row") == [
            ("first", "SUCCESS"),
            ("second", "QUEUED"),
        ]


@pytest.mark.parametrize("durability", ["full", "normal"])
@on_a_loop
async def test_an_end_that_nothing_follows_is_written_soon(path: Path, durability: Durability) -> None:
    """Also one that is said while the call's first row is being written."""
    with opened(path, durability=durability) as store:
        for name in ("quiet", "at once"):
            execution = new(name)
            store.create(execution)
            if name == "quiet":
                await durable(store)
            succeed(store, execution)
            told: asyncio.Future[StoreUnavailable | None] = asyncio.get_running_loop().create_future()
            store.when_durable(told.set_result, about=execution.id)
            assert await asyncio.wait_for(told, 30) is None
        assert rows(path, "SELECT status FROM executions") == [("SUCCESS",), ("SUCCESS",)]


@on_a_loop
async def test_an_id_is_taken_once_also_out_of_order(path: Path) -> None:
    """Ids that sort behind all others are not asked for; those that do not are."""
    names = ["m", "z", "a", "q", "zz"]
    with opened(path, window=Retention(count=1)) as store:
        for name in names:
            execution = new(name)
            store.create(execution)
            succeed(store, execution)
        await durable(store)
        for name in names:
            with pytest.raises(DuplicateExecution):
                store.create(new(name))
    with opened(path) as store:
        for name in names:
            with pytest.raises(DuplicateExecution):
                store.create(new(name))


@pytest.mark.parametrize("durability", ["full", "normal"])
@on_a_loop
async def test_who_waits_is_told_after_the_commit_and_in_order(path: Path, durability: Durability) -> None:
    """At the moment of the callback another connection finds the row."""
    with opened(path, durability=durability) as store:
        told: list[str] = []
        for number in range(100):
            store.create(new(f"e{number}"))

            def then(error: StoreUnavailable | None, name: str = f"e{number}") -> None:
                assert error is None and rows(path, f"SELECT id FROM executions WHERE id = '{name}'")
                told.append(name)

            store.when_durable(then)
            if number % 7 == 0:
                await asyncio.sleep(0)
        assert await durable(store) is None
        assert told == [f"e{number}" for number in range(100)]


@on_a_loop
async def test_nothing_waits_when_nothing_was_promised(path: Path) -> None:
    """A sync call without a key is never written, and asking about it costs no commit."""
    with opened(path) as store:
        succeed_all = [new(f"e{number}", kind="sync") for number in range(3)]
        for execution in succeed_all:
            store.create(execution)
            succeed(store, execution)
        told: list[StoreUnavailable | None] = []
        store.when_durable(told.append)
        assert told == [None] and known(store, "e0")
    assert rows(path, "SELECT * FROM executions") == []


@on_a_loop
async def test_what_arrives_while_one_commit_runs_forms_the_next(path: Path) -> None:
    """A thousand calls that arrive while the disk is busy take one commit."""
    with opened(path) as store:
        store.create(new("first"))
        assert await durable(store) is None
        commits = 0
        settled = store.database.writer.committed

        def count(group: Any) -> None:
            nonlocal commits
            commits += 1
            settled(group)

        store.database.writer.committed = count
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # the disk is "busy"
        for number in range(1000):
            store.create(new(f"e{number}"))
            await asyncio.sleep(0)
        other.execute("COMMIT")
        other.close()
        assert await durable(store) is None
        assert commits <= 3


@on_a_loop
async def test_queued_and_running_executions_are_there_after_a_restart_with_all_they_were_made_of(path: Path) -> None:
    """Payload, meta, key, limit, attempt and order, for those that wait and those that ran."""
    with opened(path) as store:
        waiting = new("waiting", payload=b"p" * LARGE, key="k")
        waiting.deadline_ms, waiting.retried_from = 5000, ExecutionId("older")
        again = new("again")
        for execution in (waiting, again, new("running"), new("done")):
            store.create(execution)
        for name in ("again", "running"):
            store.start(store.get(ExecutionId(name)), 1, at=3.0, worker="w", build="b")
        store.requeue(again, 1)
        succeed(store, store.get(ExecutionId("done")))
    with opened(path) as store:
        first, second, third = store.unfinished()
        assert (first.id, first.payload, first.meta) == ("waiting", b"p" * LARGE, {"trace": "t", "webhook": "http://x"})
        assert (first.idempotency_key, first.deadline_ms, first.retried_from) == ("k", 5000, "older")
        assert (first.status, first.created_at, first.endpoint, first.kind) == (Status.QUEUED, 1.0, "m", "async")
        assert (second.id, second.status, second.attempt) == ("again", Status.QUEUED, 2)
        assert (third.id, third.status, third.worker, third.build) == ("running", Status.RUNNING, "w", "b")
        succeed(store, first)
        assert store.get(ExecutionId("done")).result == b"1"
        assert [one.id for one in store.recent()] == ["done", "running", "again", "waiting"]
        newest = new("newest")
        assert store.create(newest).row > third.row


@on_a_loop
async def test_idempotency_keys_survive_restarts(path: Path) -> None:
    """The same body gives the same execution and its result, another body a conflict, before and after it ended."""
    with opened(path) as store:
        succeed(store, store.create(new("ended", key="a")), b"answer")
        store.create(new("sync", key="b", kind="sync"))
    for _ in range(2):
        with opened(path, window=Retention(count=0)) as store:
            assert store.create(new("x", key="a")).result == b"answer"
            assert store.create(new("x", key="b", kind="sync")).id == "sync"
            for key in "ab":
                with pytest.raises(IdempotencyConflict):
                    store.create(new("x", key=key, payload=b"other"))
            with pytest.raises(DuplicateExecution):
                store.create(new("ended"))
            assert not known(store, "x")


ACCEPTS = r"""
import asyncio, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_sqlite_durability import new, succeed
from flashmesh.executions.sqlite.store import SqliteStore

async def main():
    loop = asyncio.get_running_loop()
    store = SqliteStore(Path(sys.argv[1]), loop=loop, durability=sys.argv[3])
    numbers = iter(range(10**9))

    def accept():
        number = next(numbers)
        execution = store.create(new(f"e{number}", payload=b"p" * (100_000 if number % 50 == 0 else 100)))
        def accepted(error):
            assert error is None
            os.write(1, f"accepted e{number}\n".encode())
            if number % 3 == 0:
                succeed(store, execution, b"r" * (100_000 if number % 99 == 0 else 10))
                store.when_durable(lambda error: os.write(1, f"ended e{number}\n".encode()))
            loop.call_soon(accept)
        store.when_durable(accepted)

    for _ in range(32):
        accept()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def accept_and_die(path: Path, after: int, durability: Durability) -> list[str]:
    """Run ACCEPTS until it has said so many lines, kill it, and return all it has said."""
    command = [sys.executable, "-c", ACCEPTS, str(path), str(Path(__file__).parent), durability]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        said: list[str] = []
        while len(said) < after:
            line = process.stdout.readline()
            assert line, "the process ended by itself"
            said.append(line.decode().strip())
        os.kill(process.pid, signal.SIGKILL)
        return said + process.stdout.read().decode().split("\n")[:-1]


@pytest.mark.parametrize(("after", "durability"), [(200, "full"), (1500, "full"), (3000, "normal")])
@on_a_loop
async def test_after_kill_9_everything_that_was_acknowledged_is_there(
    path: Path, after: int, durability: Durability
) -> None:
    """A process that accepts under load is killed; whatever it said is on disk, as it said it, bytes and all."""
    said = accept_and_die(path, after, durability)
    with opened(path, retention=Retention(count=10**6, bytes=10**10)) as store:
        for line in said:
            word, _, name = line.partition(" ")
            number = int(name[1:]) if name else 0
            if word == "ended":
                execution = store.get(ExecutionId(name))
                assert (execution.status, len(execution.result)) == (Status.SUCCESS, LARGE if number % 99 == 0 else 10)
            elif word == "accepted":
                execution = store.get(ExecutionId(name))
                if not execution.ended:
                    assert len(execution.payload) == (LARGE if number % 50 == 0 else 100)
        named = rows(path, "SELECT payload_file, result_file FROM executions")
        assert set(files(path)) == {name for row in named for name in row if name}
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@on_a_loop
async def test_ten_thousand_queued_executions_are_read_back(path: Path) -> None:
    """None is missing, oldest first."""
    with opened(path) as store:
        for number in range(10_000):
            store.create(new(f"e{number}", payload=b"x" * 300))
    with opened(path) as store:
        assert [one.id for one in store.unfinished()] == [f"e{number}" for number in range(10_000)]


# Large bytes


@on_a_loop
async def test_large_payloads_and_results_are_files_that_go_with_the_last_who_needs_them(path: Path) -> None:
    """Equal bytes are one file; a payload's goes when its call has ended, a result's when retention takes it."""
    with opened(path, retention=Retention(count=1), window=Retention(count=0)) as store:
        one, two = store.create(new("one", payload=b"p" * LARGE)), store.create(new("two", payload=b"p" * LARGE))
        assert await durable(store) is None
        assert len(files(path)) == 1
        succeed(store, one, b"r" * LARGE)
        store.sync()
        assert len(files(path)) == 2 and len(store.get(ExecutionId("one")).result) == LARGE
        succeed(store, two, b"s" * LARGE)
        assert not known(store, "one")
        assert len(store.get(ExecutionId("two")).result) == LARGE
    with opened(path, retention=Retention(count=1)) as store:
        store.create(new("three"))
        store.sync()
        store._files.close()  # has done what it was told
        assert rows(path, "SELECT id FROM executions ORDER BY row") == [("two",), ("three",)]
        assert len(files(path)) == 1


@on_a_loop
async def test_a_large_payload_of_a_failed_call_is_kept_over_a_restart_and_goes_with_its_record(path: Path) -> None:
    """It counts in the bytes; equal bytes of a call that succeeds are still one file."""
    retention = Retention(bytes=3 * LARGE)
    with opened(path, retention=retention) as store:
        for name in ("fails", "succeeds"):
            store.create(new(name, payload=b"p" * LARGE))
        assert await durable(store) is None
        fail(store, "fails")
        succeed(store, store.get(ExecutionId("succeeds")))
        store.sync()
        assert len(files(path)) == 1
    with opened(path, retention=retention) as store:
        assert store.payload(store.get(ExecutionId("fails"))) == b"p" * LARGE
        assert store.payload(store.get(ExecutionId("succeeds"))) is None
        store.create(new("waits", payload=b"q" * LARGE))
        assert await durable(store) is None
    with opened(path, retention=retention) as store:
        fail(store, "waits", b"r" * LARGE)
        assert not known(store, "fails") and known(store, "waits")
        store._behind._more = True
        store.sync()
        store._files.close()  # has done what it was told
        assert len(files(path)) == 2
        assert store.payload(store.get(ExecutionId("waits"))) == b"q" * LARGE
    with opened(path, retention=Retention(age_s=-1.0)) as store:
        store._behind._more = True
        store.sync()
    with opened(path) as store:
        assert files(path) == []


@on_a_loop
async def test_a_call_whose_payload_file_is_lost_is_known_and_cannot_be_repeated(path: Path) -> None:
    with opened(path) as store:
        store.create(new("fails", payload=b"p" * LARGE))
        fail(store, "fails", b"why")
    for file in path.with_name(path.name + "-files").iterdir():
        file.unlink()
    with opened(path) as store:
        found = store.get(ExecutionId("fails"))
        assert (found.status, found.result, store.payload(found)) == (Status.ERROR, b"why", None)


@on_a_loop
async def test_a_small_commit_does_not_wait_for_a_large_payload(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the large one's file is being written, small calls are accepted; it is when its file is there."""
    gate = threading.Event()
    write = Files._write

    def slow(self: Files, content: bytes) -> str:
        gate.wait(30)
        return write(self, content)

    monkeypatch.setattr(Files, "_write", slow)
    with opened(path) as store:
        told: list[str] = []
        store.create(new("large", payload=b"p" * LARGE))
        store.when_durable(lambda error: told.append("large"))
        store.create(new("small"))
        assert await durable(store) is None
        store.when_durable(lambda error: told.append("large again"), about=ExecutionId("large"))
        store.create(new("small too"))
        assert await durable(store) is None
        assert told == []
        gate.set()
        store.sync()
        assert told == ["large", "large again"]


@on_a_loop
async def test_files_that_no_row_names_are_removed_at_start(path: Path) -> None:
    """A process that was killed between file and row leaves nothing behind for long."""
    with opened(path) as store:
        store.create(new("one", payload=b"p" * LARGE))
    directory = path.with_name(path.name + "-files")
    (directory / "orphan").write_bytes(b"x")
    (directory / "half.part").write_bytes(b"x")
    with opened(path) as store:
        assert len(files(path)) == 1
        assert store.unfinished()[0].payload == b"p" * LARGE


@on_a_loop
async def test_a_lost_file_is_an_execution_that_failed_or_a_result_that_is_no_more(path: Path) -> None:
    """Nobody is given wrong bytes, and nothing hangs."""
    with opened(path) as store:
        store.create(new("waits", payload=b"p" * LARGE))
        succeed(store, store.create(new("done")), b"r" * LARGE)
    for file in path.with_name(path.name + "-files").iterdir():
        file.write_bytes(b"other bytes")
    with opened(path) as store:
        assert store.unfinished() == []
        assert store.get(ExecutionId("waits")).error_code == "PAYLOAD_LOST"
        assert store.get(ExecutionId("done")).result_evicted


# Retention


@on_a_loop
async def test_ended_in_the_future_counts_as_ended_at_the_start(path: Path) -> None:
    """Where the clock was set back between two starts, a record is kept for another age, and not for the difference."""
    now = 1_000_000.0
    retention = Retention(age_s=50)
    with opened(path, now=lambda: now, retention=retention) as store:
        for name, at, key in (("plain", now + 7200, None), ("keyed", now + 7200, "k"), ("later", now, None)):
            execution = store.create(new(name, key=key))
            store.start(execution, 1, at=at, worker="w", build="b")
            store.finish(execution, 1, Outcome(event=Event.SUCCEED), at=at)
    with opened(path, now=lambda: now, retention=retention) as store:
        now += 50
        assert {one.id for one in store.recent()} == {"plain", "keyed", "later"}
        assert store.create(new("again", key="k")).id == "keyed"
        now += 1
        assert store.recent() == []
        assert store.create(new("anew", key="k")).id == "anew"


@on_a_loop
async def test_what_retention_takes_leaves_the_disk_too(path: Path) -> None:
    """By count and bytes at once, by age with the next write; keyed ones keep their row without the result."""
    now = 1_000_000.0
    retention = Retention(count=10, bytes=150, age_s=50)

    def run(store: SqliteStore, name: str, key: str | None) -> None:
        execution = store.create(new(name, key=key))
        store.start(execution, 1, at=now, worker="w", build="b")
        store.finish(execution, 1, Outcome(event=Event.SUCCEED, result=b"x" * 10), at=now)

    def sweep(store: SqliteStore) -> None:
        store.sync()
        store._behind._more = True  # the next write sweeps without waiting its second
        store.create(new(f"waits-{store._row}"))
        store.sync()
        while store._behind._more:
            store.sync()

    ended = "SELECT id FROM executions WHERE size IS NOT NULL AND idempotency_key IS {} NULL ORDER BY row"
    with opened(path, now=lambda: now, retention=retention, window=Retention(count=2)) as store:
        for number in range(700):
            run(store, f"e{number}", f"k{number}" if number % 70 == 0 else None)
        sweep(store)
        assert rows(path, ended.format("")) == [(f"e{number}",) for number in range(695, 700)]
        assert len(rows(path, ended.format("NOT"))) == 10
        for number in range(700, 720):
            run(store, f"e{number}", f"k{number}")
        sweep(store)
        assert rows(path, ended.format("")) == []
        evicted = rows(path, "SELECT id FROM executions WHERE result_evicted")
        assert len(evicted) == 15 and ("e0",) in evicted and ("e719",) not in evicted
        assert store.create(new("again", key="k0")).result_evicted
        assert store.get(ExecutionId("e719")).result == b"x" * 10
        now += 51
        assert not known(store, "e719")
        assert store.recent() == list(reversed(store.unfinished()))
        assert store.create(new("again", key="k0")).id == "again"
        sweep(store)
        assert {one.id for one in store.unfinished()} == {name for (name,) in rows(path, "SELECT id FROM executions")}


# A disk that is full


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of its own, and how to give it another size."""
    directory.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", directory], check=True) and None
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


async def fill(store: SqliteStore, payload: bytes) -> tuple[list[Execution], list[str]]:
    """Accept until it no longer goes: what was acknowledged, and what was refused."""
    accepted: list[Execution] = []
    refused: list[str] = []
    for number in range(1000):
        batch = [new(f"e{number}-{place}", payload=payload, key=f"k{number}-{place}") for place in range(5)]
        try:
            for execution in batch:
                store.create(execution)
        except StoreUnavailable:
            refused += [execution.id for execution in batch]
            return accepted, refused
        if await durable(store) is None:
            accepted += batch
        else:
            refused += [execution.id for execution in batch]
            return accepted, refused
    raise AssertionError("it never filled")


async def check_full_disk(store: SqliteStore, make_room: Callable[[], None]) -> tuple[list[Execution], list[str]]:
    accepted, refused = await fill(store, b"p" * 20_000)
    assert accepted and store.unavailable is not None
    assert not any(known(store, name) for name in refused)
    with pytest.raises(StoreUnavailable, match="Make room"):
        store.create(new("later"))
    assert known(store, accepted[0].id) and store.recent(limit=1)[0].id == accepted[-1].id
    assert store.create(new("repeated", payload=b"p" * 20_000, key="k0-0")).id == "e0-0"
    succeed(store, accepted[0], b"result")
    succeed(store, accepted[1], b"R" * LARGE)
    unkept = new("sync", kind="sync")
    store.create(unkept)
    succeed(store, unkept)
    assert store.get(ExecutionId("e0-0")).result == b"result"
    make_room()
    while await durable(store) is not None:
        pass  # told at every attempt
    assert store.unavailable is None
    assert store.create(new("after", payload=b"p" * 20_000, key=f"k{refused[0][1:]}")).id == "after"
    assert await durable(store) is None
    return accepted, refused


async def check_after(path: Path, accepted: list[Execution], refused: list[str]) -> None:
    with opened(path) as store:
        there = {one.id for one in store.recent(limit=10_000)}
        assert there == {one.id for one in accepted} | {"after"}
        assert store.get(ExecutionId("e0-1")).result == b"R" * LARGE
        assert not there & set(refused)


@pytest.mark.parametrize("durability", ["full", "normal"])
@on_a_loop
async def test_a_full_disk_refuses_new_calls_whole_and_recovers_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: Durability
) -> None:
    """503 for accepts; reads and running work go on; with room again everything that was said is written."""
    monkeypatch.setattr(behind, "_PROBE_S", 0.05)
    with small_disk(tmp_path / "disk", "1m") as resize:
        path = tmp_path / "disk" / "executions.db"
        with opened(path, durability=durability) as store:
            accepted, refused = await check_full_disk(store, lambda: resize("16m"))
        await check_after(path, accepted, refused)


@on_a_loop
async def test_a_database_that_may_not_grow_behaves_like_a_full_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same where nobody may mount disks."""
    monkeypatch.setattr(behind, "_PROBE_S", 0.05)
    with opened(path) as store:
        connection = store.database._writing
        connection.execute("PRAGMA max_page_count = 100").fetchall()

        def grow() -> None:
            store.database.writer.wait()
            connection.execute("PRAGMA max_page_count = 100000").fetchall()

        accepted, refused = await check_full_disk(store, grow)
    await check_after(path, accepted, refused)


@on_a_loop
async def test_a_payload_that_does_not_fit_on_the_disk_is_refused_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is left, and a small call is accepted. (One that comes while it fills the disk may be refused.)"""
    monkeypatch.setattr(behind, "_PROBE_S", 0.05)
    with small_disk(tmp_path / "disk", "2m"):
        path = tmp_path / "disk" / "executions.db"
        with opened(path) as store:
            store.create(new("large", payload=b"p" * 3_000_000, key="k"))
            assert isinstance(await durable(store), StoreUnavailable)
            store.create(new("small"))
            assert await durable(store) is None
            assert not known(store, "large") and known(store, "small") and files(path) == []
            assert store.create(new("other", key="k")).id == "other"


@contextlib.contextmanager
def busy(path: Path) -> Iterator[None]:
    """Another process is writing."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("COMMIT")


@on_a_loop
async def test_a_call_that_ends_while_its_first_row_is_being_written_is_written_as_ended(path: Path) -> None:
    """A sync call with a key does not wait for the disk; its row comes after."""
    with opened(path) as store:
        with busy(path):
            execution = store.create(new("quick", key="k", kind="sync"))
            await asyncio.sleep(0)
            assert store.database.writer.outstanding
            succeed(store, execution, b"answer")
            await asyncio.sleep(0)
        assert await durable(store) is None
    with opened(path) as store:
        assert store.create(new("again", key="k", kind="sync")).result == b"answer"


@on_a_loop
async def test_what_could_not_be_written_is_tried_until_it_can(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that run and end meanwhile lose nothing; only what would have to be acknowledged is refused."""
    monkeypatch.setattr("flashmesh.executions.sqlite.database._LOCK_WAIT_S", 0.01)
    monkeypatch.setattr(behind, "_PROBE_S", 0.02)
    with opened(path) as store:
        runs = store.create(new("runs"))
        large = store.create(new("large"))
        assert await durable(store) is None
        with busy(path):
            succeed(store, runs, b"result")
            store.create(new("refused", key="r"))
            keyed = store.create(new("keyed", key="k", kind="sync"))
            assert isinstance(await durable(store), StoreUnavailable)
            assert not known(store, "refused") and known(store, "keyed")
            succeed(store, keyed, b"answer")
            succeed(store, large, b"r" * LARGE)
            assert isinstance(await durable(store), StoreUnavailable)
            with pytest.raises(StoreUnavailable):
                store.create(new("refused", key="r"))
        while await durable(store) is not None:
            pass  # told at every attempt
    with opened(path) as store:
        assert store.unfinished() == []
        assert [store.get(ExecutionId(name)).result for name in ("runs", "keyed", "large")] == [
            b"result",
            b"answer",
            b"r" * LARGE,
        ]
        assert store.create(new("accepted", key="r")).id == "accepted"


# Databases that cannot be used


@on_a_loop
async def test_a_database_of_a_newer_version_is_refused_with_what_to_do(path: Path) -> None:
    """It is left as it is."""
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE schemas SET version = 99")
    with pytest.raises(DatabaseTooNew, match="Upgrade flashmesh"), opened(path):
        pass
    assert rows(path, "SELECT version FROM schemas") == [(99,)]


def damage(path: Path, start: int) -> bytes:
    """Put noise over two pages; what is in the file then."""
    content = bytearray(path.read_bytes())
    content[start : start + 8192] = random.Random(1).randbytes(8192)
    path.write_bytes(content)
    return bytes(content)


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


@pytest.mark.parametrize("where", ["header", "middle", "too large to be checked"])
@on_a_loop
async def test_a_damaged_database_is_refused_with_what_to_do_and_a_copy_is_kept(
    path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One copy per state of the file, however often a start is tried."""
    if where == "too large to be checked":
        monkeypatch.setattr("flashmesh.executions.sqlite.database._CHECK_BYTES", 0)
    with opened(path) as store:
        for number in range(500):
            store.create(new(f"e{number}"))
    content = damage(path, 0 if where == "header" else 4096 * 5)
    for _ in range(2):
        with pytest.raises(DatabaseDamaged, match=r"copy is at .*Restore a backup"), opened(path):
            pass
    copies = [file for file in path.parent.iterdir() if ".damaged-" in file.name]
    assert [bytes_of(copy) for copy in copies] == [content]
    assert bytes_of(path) == content


@on_a_loop
async def test_a_database_that_another_process_writes_to_is_an_error_that_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a traceback of SQLite."""
    monkeypatch.setattr("flashmesh.executions.sqlite.database._LOCK_WAIT_S", 0.05)
    with opened(path):
        pass
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseLocked, match="another process"), opened(path):
            pass


# What else is kept in the database


@on_a_loop
async def test_other_parts_keep_tables_in_the_database_by_the_same_writer(path: Path) -> None:
    """Each statement of a schema runs once; a wrong write is told to who made it and harms nobody else's."""
    first = ["CREATE TABLE functions (name TEXT PRIMARY KEY, spec TEXT)"]
    with opened(path) as store:
        database = store.database
        database.add_schema("functions", first)
        told: list[object] = []
        database.write("INSERT INTO functions VALUES (?, ?)", ("a", "1"), told.append)
        database.write("INSERT INTO functions VALUES (?, ?)", ("a", "2"), told.append)
        store.create(new("e"))
        assert await durable(store) is None
        assert told[0] is None and isinstance(told[1], sqlite3.IntegrityError)
        assert database.read("SELECT * FROM functions") == [("a", "1")]
    with opened(path) as store:
        store.database.add_schema("functions", [*first, "ALTER TABLE functions ADD COLUMN zone TEXT DEFAULT 'z'"])
        store.database.add_schema("functions", [*first, "ALTER TABLE functions ADD COLUMN zone TEXT DEFAULT 'z'"])
        assert store.database.read("SELECT * FROM functions") == [("a", "1", "z")]
        assert known(store, "e")
        with pytest.raises(DatabaseTooNew):
            store.database.add_schema("functions", first)


@on_a_loop
async def test_an_execution_that_cannot_be_written_is_refused_alone(path: Path) -> None:
    """Text that is no Unicode in one call does not keep the others of its group from being accepted."""
    with opened(path) as store:
        good, bad = new("good"), new("bad\ud800")
        store.create(good)
        told = durable(store)
        store.create(bad)
        refused = durable(store)
        assert await told is None
        assert isinstance(await refused, StoreUnavailable)
        assert store.unfinished() == [good]
