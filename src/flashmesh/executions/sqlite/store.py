"""The Store port over a SQLite database: accepted is on disk, and nothing on the loop waits for the disk.

Executions that have not ended are objects in memory, as in the memory store, and so is every decision about them; rows
are written behind them (behind.py), in groups (writer.py). Ended executions leave memory once they are on disk and
newer ones need the place (residents.py), and are read back when asked for (archive.py). Retention speaks about numbers
(ledger.py), and rows follow it later.

Calls that nobody was promised anything about (sync, without an idempotency key) are never written.
"""

import asyncio
import heapq
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Final

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.sqlite import ledger as ledgers
from flashmesh.executions.sqlite.archive import Archive
from flashmesh.executions.sqlite.behind import Behind, Then
from flashmesh.executions.sqlite.database import Database, Durability
from flashmesh.executions.sqlite.files import Files
from flashmesh.executions.sqlite.ledger import Ledger
from flashmesh.executions.sqlite.residents import Residents
from flashmesh.executions.sqlite.rows import pack_request
from flashmesh.executions.sqlite.writer import Sweep, not_written
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Retention, already_exists, fingerprint, unknown
from flashmesh.functions.errors import IdempotencyConflict
from flashmesh.kit.clock import SteadyClock
from flashmesh.kit.ids import ExecutionId

WINDOW_COUNT: Final = 10_000
WINDOW_BYTES: Final = 64 * 1024 * 1024
"""Ended executions that stay in memory. Higher: fewer reads from disk, more memory."""
_SWEEP_S: Final = 1.0
_SWEEP_AT: Final = 100
"""Rows that retention has overtaken are removed after so many, or with the first write after `_SWEEP_S`."""


class SqliteStore:
    """See the module. Everything is called, and calls back, on the loop's thread."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float] | None = None,
        retention: Retention | None = None,
        window: Retention | None = None,
        durability: Durability = "full",
    ) -> None:
        """Open the database (made when missing) and read back what has not ended.

        Args:
            path: the database file; large payloads and results lie in `<path>-files` beside it.
            now: UTC seconds of a clock that nobody sets; by it ages are told. Default SteadyClock.
            retention: bounds of what is kept on disk.
            window: bounds of the ended executions kept in memory, of both kinds.
            durability: "full": what is accepted survives a power cut. "normal": it survives the end of this process,
                and commits wait for no disk.

        Raises DatabaseUnusable: too new, damaged, locked, or not readable; each says what to do.
        """
        retention = retention or Retention()
        self._loop = loop
        self._now = now or SteadyClock()
        self._retention = retention
        self._residents = Residents(
            window or Retention(count=min(retention.count, WINDOW_COUNT), bytes=min(retention.bytes, WINDOW_BYTES))
        )
        self._by_id = self._residents.by_id
        self._plain, self._keyed = Ledger(retention), Ledger(retention)
        self._row = 0
        self._swept = 0
        self._sweep_at = 0.0
        self.database = Database(path, loop=loop, durability=durability)
        """For other parts, which keep their tables in the same file by the same writer."""
        try:
            self._files = Files(path.with_name(path.name + "-files"), loop=loop)
            self._behind = Behind(self, writer=self.database.writer, files=self._files, loop=loop)
            self._archive = Archive(
                self.database, self._files, plain=self._plain, keyed=self._keyed, let_go=self._save_cursor
            )
            self._read_back()
            self.database.opening = False
        except BaseException:
            self.database.close()
            raise

    def _read_back(self) -> None:
        rows = self.database.rows
        now = self._now()
        for ledger, keyed in ((self._plain, ""), (self._keyed, "NOT")):
            latest = 0.0
            for number, size, at in rows(
                "SELECT ended_no, size, ended_at FROM executions "
                f"WHERE ended_no IS NOT NULL AND idempotency_key IS {keyed} NULL ORDER BY ended_no"
            ):
                latest = max(latest, min(at, now))  # the clock may have been set between two of them
                ledger.restore(number, size, latest)
        self._row = rows("SELECT coalesce(max(row), 0) FROM executions")[0][0]
        named = rows(
            "SELECT payload_file, result_file, items_file FROM executions "
            "WHERE payload_file IS NOT NULL OR result_file IS NOT NULL OR items_file IS NOT NULL"
        )
        self._files.open(name for row in named for name in row if name)
        for execution, row in list(self._archive.unfinished()):
            self._residents.admit(execution, row["fingerprint"])
            if row["payload_file"]:
                self._behind.restored(execution.row, row["payload_file"])
                if row["payload"] is None:
                    self._lost(execution)
        self._retain()
        if self._plain.floor or self._keyed.floor:
            self._behind.soon()

    def _lost(self, execution: Execution) -> None:
        message = "the payload's file is missing or damaged, so the call cannot run. Call the function again"
        outcome = Outcome(event=Event.FAIL, error_code="PAYLOAD_LOST", error_message=message)
        execution.drop_payload()
        self.finish(execution, execution.attempt, outcome, at=self._now())

    # The port

    def create(self, execution: Execution) -> Execution:
        if execution.id in self._by_id:
            raise already_exists(execution.id)
        if execution.kind == "async" or execution.idempotency_key is not None:
            return self._create_written(execution)
        self._row += 1
        execution.row = self._row
        self._by_id[execution.id] = execution
        return execution

    def _create_written(self, execution: Execution) -> Execution:
        body: bytes | None = None
        if execution.idempotency_key is not None:
            body = fingerprint(execution.function, execution.content_type, execution.payload)
            known = self._known(execution.function, execution.idempotency_key, body)
            if known is not None:
                self._behind.found(known)
                return known
        if self._archive.has(execution.id):
            raise already_exists(execution.id)
        if self._behind.unavailable is not None and execution.kind == "async":
            raise not_written(self._behind.unavailable)
        request = pack_request(execution)
        self._row += 1
        execution.row = self._row
        self._residents.admit(execution, body)
        self._archive.remember(execution)
        self._behind.created(execution, body, request)
        return execution

    def _known(self, function: str, key: str, body: bytes) -> Execution | None:
        """The execution that the key names. Raises IdempotencyConflict."""
        self._forget_old()
        resident = self._residents.keys.get((function, key))
        if resident is not None:
            known = self._by_id[resident[1]]
            if resident[0] != body:
                raise IdempotencyConflict
            return known
        found = self._archive.by_key(function, key)
        if found is None:
            return None
        row, name, first_body, number = found
        if number <= self._keyed.aged:
            self._behind.remove(row)
            return None
        if first_body != body:
            raise IdempotencyConflict
        return self._archive.get(name)

    def get(self, execution: ExecutionId) -> Execution:
        self._forget_old()
        record = self._by_id.get(execution) or self._archive.get(execution)
        if record is None:
            raise unknown(execution)
        return record

    def start(self, execution: Execution, attempt: int, *, at: float, worker: str, build: str) -> None:
        execution.begin(attempt, at=at, worker=worker, build=build)
        if execution.kind == "async" or execution.idempotency_key is not None:
            self._changed(execution)

    def requeue(self, execution: Execution, attempt: int) -> None:
        execution.wait_again(attempt)
        if execution.kind == "async" or execution.idempotency_key is not None:
            self._changed(execution)

    def _changed(self, execution: Execution) -> None:
        if self._residents.holds(execution):
            self._behind.changed(execution)

    def finish(self, execution: Execution, attempt: int, outcome: Outcome, *, at: float) -> None:
        execution.end(attempt, outcome, at=at)
        if self._by_id.get(execution.id) is not execution:
            return
        if execution.kind == "async" or execution.idempotency_key is not None:
            keyed = execution.idempotency_key is not None
            number = (self._keyed if keyed else self._plain).add(execution.size_bytes, self._now())
            self._residents.number(execution, number, keyed=keyed)
            self._behind.ended(execution, number)
            self._retain()
        elif self._residents.retire(execution, now := self._now()):
            self._evict(now)

    def payload(self, execution: Execution) -> bytes | None:
        if execution.payload_dropped or execution.result_evicted:
            return None
        return execution.payload if self._residents.holds(execution) else self._archive.payload(execution)

    def recent(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        after: ExecutionId | None = None,
    ) -> list[Execution]:
        self._forget_old()
        before = None if after is None else self._position(after)
        by_id = self._by_id
        resident = (
            one
            for one in reversed(by_id.values())
            if (before is None or one.row < before)
            and (function is None or one.function == function)
            and (status is None or one.status is status)
        )
        archived = self._archive.newest(
            function=function, status=status, before=before, page=min(limit, 500) + 1, without=by_id
        )
        return list(islice(heapq.merge(resident, archived, key=lambda one: -one.row), limit))

    def _position(self, execution: ExecutionId) -> int:
        resident = self._by_id.get(execution)
        row = resident.row if resident is not None else self._archive.position(execution)
        if row is None:
            raise unknown(execution)
        return row

    def unfinished(self) -> list[Execution]:
        return [execution for execution in self._by_id.values() if not execution.ended]

    def when_durable(self, then: Then, *, about: ExecutionId | None = None) -> None:
        resident = None if about is None else self._by_id.get(about)
        if resident is not None:
            self._behind.found(resident)
        self._behind.when_durable(then, patient=about is not None)

    # Life

    @property
    def unavailable(self) -> Exception | None:
        """Why nothing can be written at the moment; it is tried again every second."""
        return self._behind.unavailable

    def sync(self) -> None:
        """Block until everything said so far is on disk and everybody has been told. Raises StoreUnavailable."""
        self._behind.sync()

    def close(self) -> None:
        """Write what was said and close. What cannot be written is logged and left."""
        for execution in [one for one in self._by_id.values() if one.items is not None and one.ended]:
            self._save_cursor(execution)
        self._behind.close()
        self._files.close()
        self.database.close()

    # What the writing tells

    def undo(self, execution: Execution) -> None:
        """It could not be written, so it never was."""
        self._residents.forget(execution)

    def settled(self, execution: Execution) -> None:
        """Its final state is on disk, so it may leave memory."""
        if self._residents.holds(execution) and self._residents.retire(execution, now := self._now()):
            self._evict(now)

    def sweep(self, *, urgent: bool) -> Sweep | None:
        """What to remove with the group that is being made, now and then."""
        plain, results, keyed, now = self._plain.floor, self._keyed.floor, self._keyed.aged, self._loop.time()
        out = plain + results + keyed
        if out == 0 or (not urgent and out - self._swept < _SWEEP_AT and now < self._sweep_at):
            return None
        self._swept = out
        self._sweep_at = now + _SWEEP_S
        return Sweep(plain, results, keyed)

    # Keeping no more than asked

    def _forget_old(self) -> None:
        """Whoever asks sees nothing that is older than it may be."""
        self._retain()
        self._evict(self._now())

    def _retain(self) -> None:
        plain, keyed, residents = self._plain, self._keyed, self._residents
        plain_floor, keyed_floor, keyed_aged = plain.floor, keyed.floor, keyed.aged
        ledgers.apply(self._retention, plain, keyed, self._now() - self._retention.age_s)
        if plain.floor != plain_floor:
            for execution in residents.overtaken(plain_floor, plain.floor, keyed=False):
                residents.forget(execution)
        if keyed.floor != keyed_floor:
            for execution in residents.overtaken(keyed_floor, keyed.floor, keyed=True, stays=True):
                residents.drop_result(execution)
        if keyed.aged != keyed_aged:
            for execution in residents.overtaken(keyed_aged, keyed.aged, keyed=True):
                if execution.booked < 0:  # its key may be taken again, so its row must not come later
                    self._behind.forget(execution)
                residents.forget(execution)

    def _evict(self, now: float) -> None:
        for leaving in self._residents.leaving(now, self._retention.age_s):
            if leaving.kind == "async" or leaving.idempotency_key is not None:
                self._archive.take(leaving)
                self._save_cursor(leaving)

    def _save_cursor(self, execution: Execution) -> None:
        """How far its items were handed out, for whoever reads on after it has left memory."""
        items = execution.items
        if items is not None and items.cursor and (execution.kind == "async" or execution.idempotency_key is not None):
            self.database.write("UPDATE executions SET items_cursor = ? WHERE row = ?", (items.cursor, execution.row))
