"""The Store port over a SQLite database: accepted is on disk, and nothing on the loop waits for the disk.

Executions that have not ended are objects in memory, as in the memory store, and so is every decision about them; rows
are written behind them. A change marks its execution; once per turn of the loop the marked ones become rows of a group
(`_flush`), so an execution that starts and ends between two commits is written once. The writer commits groups; then
the loop hears of it (`_settled`), and whoever asked is told. Ended executions leave memory once they are on disk and
newer ones need the place; retention then speaks about numbers (ledger.py), and rows follow it later (`Sweep`).

Calls that nobody was promised anything about (sync, without an idempotency key) are never written.
"""

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Final

from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.sqlite import ledger as ledgers
from flashmesh.executions.sqlite.archive import Archive
from flashmesh.executions.sqlite.database import Database, Durability
from flashmesh.executions.sqlite.files import Content, Files, Keeping
from flashmesh.executions.sqlite.ledger import Ledger
from flashmesh.executions.sqlite.residents import Residents
from flashmesh.executions.sqlite.rows import LARGE_BYTES, Column, final_row, new_row, pack_meta, progress_row
from flashmesh.executions.sqlite.writer import Group, Statement, Sweep, not_written
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Retention, StoreUnavailable, already_exists, fingerprint, unknown
from flashmesh.functions.errors import IdempotencyConflict
from flashmesh.kit.ids import ExecutionId

Then = Callable[[StoreUnavailable | None], None]
Contents = Mapping[Column, Content]

WINDOW_COUNT: Final = 10_000
WINDOW_BYTES: Final = 64 * 1024 * 1024
"""Ended executions that stay in memory. Higher: fewer reads from disk, more memory."""
_LAZY_S: Final = 0.05
"""Nobody waits for the news that a call runs; a fast one has ended by then and is written once."""
_PROBE_S: Final = 1.0
_SWEEP_S: Final = 1.0
_SWEEP_AT: Final = 500
"""Rows that retention has overtaken are removed after so many, or at the first write after `_SWEEP_S`."""

_log = logging.getLogger(__name__)


class SqliteStore:
    """See the module. Everything is called, and calls back, on the loop's thread."""

    def __init__(
        self,
        path: Path,
        *,
        loop: asyncio.AbstractEventLoop,
        now: Callable[[], float] = time.time,
        retention: Retention | None = None,
        window: Retention | None = None,
        durability: Durability = "full",
    ) -> None:
        """Open the database (made when missing) and read back what has not ended.

        Args:
            path: the database file; large payloads and results lie in `<path>-files` beside it.
            now: UTC seconds, as `Execution.ended_at`.
            retention: bounds of what is kept on disk.
            window: bounds of the ended executions kept in memory, of both kinds.
            durability: "full": what is accepted survives a power cut. "normal": it survives the end of this process,
                and commits wait for no disk.

        Raises DatabaseUnusable: too new, damaged, locked, or not readable; each says what to do.
        """
        self._loop = loop
        self._now = now
        self._retention = retention = retention or Retention()
        self._residents = Residents(
            window or Retention(count=min(retention.count, WINDOW_COUNT), bytes=min(retention.bytes, WINDOW_BYTES))
        )
        self._plain, self._keyed = Ledger(retention), Ledger(retention)
        self.database = Database(path, loop=loop, durability=durability)
        self._writer = self.database.writer
        self._writer.committed = self._settled
        self._files = Files(path.with_name(path.name + "-files"), loop=loop)
        self._files.kept = self._filed
        self._archive = Archive(
            self.database, self._files, plain=self._plain, keyed=self._keyed, let_go=self._save_cursor
        )
        self._row = 0
        self._last = 0
        """Row of the execution that was changed, or found by its key, last: what `when_durable` is about."""
        self._dirty: dict[int, Execution] = {}
        """Row → execution whose row is older than the record."""
        self._unwritten: dict[int, tuple[bytes | None, bytes]] = {}
        """Row → fingerprint and packed meta, until its first commit."""
        self._inserting: dict[int, Group] = {}
        """Row → the group with its first row. Its next change waits for that commit, which may fail."""
        self._staging: dict[int, int] = {}
        """Row → how many times its large bytes are being written to files. Nothing else is written of it meanwhile."""
        self._again: dict[int, Contents] = {}
        """Row → what could not be written to files, to be tried again."""
        self._file_names: dict[int, dict[str, str]] = {}
        self._ended_no: dict[int, int] = {}
        """Row → number, until its last commit."""
        self._forgotten: list[int] = []
        self._thens: list[tuple[int, Then]] = []
        self._asked: asyncio.Handle | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None
        self._unavailable: Exception | None = None
        self._swept = 0
        self._sweep_at = 0.0
        self._more = False
        try:
            self._open()
        except BaseException:
            self.database.close()
            raise

    def _open(self) -> None:
        rows = self.database.rows
        for ledger, keyed in ((self._plain, ""), (self._keyed, "NOT")):
            for number, size, at in rows(
                "SELECT ended_no, size, ended_at FROM executions "
                f"WHERE ended_no IS NOT NULL AND idempotency_key IS {keyed} NULL ORDER BY ended_no"
            ):
                ledger.restore(number, size, at)
        self._row = rows("SELECT coalesce(max(row), 0) FROM executions")[0][0]
        named = rows(
            "SELECT payload_file, result_file, items_file FROM executions "
            "WHERE payload_file IS NOT NULL OR result_file IS NOT NULL OR items_file IS NOT NULL"
        )
        self._files.open(name for row in named for name in row if name)
        for execution, row in list(self._archive.unfinished()):
            self._residents.admit(execution, row["fingerprint"])
            if row["payload_file"]:
                self._file_names[execution.row] = {"payload": row["payload_file"]}
                if row["payload"] is None:
                    self._lost(execution)
        self._retain()
        if self._plain.floor or self._keyed.floor:
            self._soon()

    def _lost(self, execution: Execution) -> None:
        message = "the payload's file is missing or damaged, so the call cannot run. Call the function again"
        outcome = Outcome(event=Event.FAIL, error_code="PAYLOAD_LOST", error_message=message)
        self.finish(execution, execution.attempt, outcome, at=self._now())

    # The port

    def create(self, execution: Execution) -> Execution:
        residents = self._residents
        if execution.id in residents.by_id:
            raise already_exists(execution.id)
        if execution.kind == "async" or execution.idempotency_key is not None:
            return self._create_written(execution)
        self._row += 1
        execution.row = self._row
        residents.by_id[execution.id] = execution
        return execution

    def _create_written(self, execution: Execution) -> Execution:
        body: bytes | None = None
        if execution.idempotency_key is not None:
            body = fingerprint(execution.function, execution.content_type, execution.payload)
            known = self._known(execution, execution.idempotency_key, body)
            if known is not None:
                self._last = known.row
                return known
        if self._archive.has(execution.id):
            raise already_exists(execution.id)
        if self._unavailable is not None and execution.kind == "async":
            raise not_written(self._unavailable)
        meta = pack_meta(execution.meta)
        self._row += 1
        row = self._last = execution.row = self._row
        self._residents.admit(execution, body)
        self._unwritten[row] = (body, meta)
        if len(execution.payload) > LARGE_BYTES:
            self._stage(row, {"payload": execution.payload})
        self._dirty[row] = execution
        self._soon()
        return execution

    def _known(self, execution: Execution, key: str, body: bytes) -> Execution | None:
        """The execution that the key names. Raises IdempotencyConflict."""
        oldest = self._oldest()
        resident = self._residents.keys.get((execution.function, key))
        if resident is not None:
            known = self._residents.by_id[resident[1]]
            if known.ended_at is not None and known.ended_at < oldest:
                self._forget(known)
            elif resident[0] != body:
                raise IdempotencyConflict
            else:
                return known
        found = self._archive.by_key(execution.function, key)
        if found is None:
            return None
        row, name, first_body, ended_at = found
        if ended_at < oldest:
            self._forgotten.append(row)  # before the new row takes its key
            return None
        if first_body != body:
            raise IdempotencyConflict
        return self._archive.get(name)

    def get(self, execution: ExecutionId) -> Execution:
        record = self._residents.by_id.get(execution) or self._archive.get(execution)
        if record is None or (record.ended_at is not None and record.ended_at < self._oldest()):
            raise unknown(execution)
        return record

    def start(self, execution: Execution, attempt: int, *, at: float, worker: str, build: str) -> None:
        execution.begin(attempt, at=at, worker=worker, build=build)
        self._changed(execution)

    def requeue(self, execution: Execution, attempt: int) -> None:
        execution.wait_again(attempt)
        self._changed(execution)

    def _changed(self, execution: Execution) -> None:
        """It is to be written with the next commit, which nobody waits for."""
        if _is_written(execution) and self._residents.holds(execution):
            self._last = execution.row
            self._dirty[execution.row] = execution
            if self._lazy is None:
                self._lazy = self._loop.call_later(_LAZY_S, self._flush)

    def finish(self, execution: Execution, attempt: int, outcome: Outcome, *, at: float) -> None:
        execution.end(attempt, outcome, at=at)
        if not self._residents.holds(execution):
            return
        if execution.kind == "sync" and execution.idempotency_key is None:
            self._residents.retire(execution)
        else:
            self._finish_written(execution, at)
        self._evict(at - self._retention.age_s)

    def _finish_written(self, execution: Execution, at: float) -> None:
        row, keyed = execution.row, execution.idempotency_key is not None
        number = (self._keyed if keyed else self._plain).add(execution.size_bytes, at)
        self._ended_no[row] = number
        self._residents.number(execution, number, keyed=keyed)
        self._last = row
        self._dirty[row] = execution
        large = _large(execution)
        if large:
            self._stage(row, large)
        self._retain()
        self._soon()

    def recent(
        self,
        *,
        function: str | None = None,
        status: Status | None = None,
        limit: int = 100,
        after: ExecutionId | None = None,
    ) -> list[Execution]:
        before = None if after is None else self._position(after)
        oldest = self._oldest()
        by_id = self._residents.by_id
        resident = (
            one
            for one in reversed(by_id.values())
            if (before is None or one.row < before)
            and (function is None or one.function == function)
            and (status is None or one.status is status)
        )
        archived = (
            one
            for one in self._archive.newest(function=function, status=status, before=before, page=min(limit, 500) + 1)
            if one.id not in by_id
        )
        both = heapq.merge(resident, archived, key=lambda one: -one.row)
        return list(islice((one for one in both if one.ended_at is None or one.ended_at >= oldest), limit))

    def _position(self, execution: ExecutionId) -> int:
        resident = self._residents.by_id.get(execution)
        row = resident.row if resident is not None else self._archive.position(execution)
        if row is None:
            raise unknown(execution)
        return row

    def unfinished(self) -> list[Execution]:
        return [execution for execution in self._residents.by_id.values() if not execution.ended]

    def when_durable(self, then: Then) -> None:
        if not self._dirty and not self._writer.outstanding and not self._thens:
            then(None)
            return
        self._thens.append((self._last, then))
        self._soon()

    # Life

    def sync(self) -> None:
        """Block until everything said so far is on disk and everybody has been told. Raises StoreUnavailable."""
        while True:
            self._files.wait()
            self._flush(probe=True)
            self._writer.wait()
            if self._unavailable is not None:
                raise not_written(self._unavailable)
            if not self._dirty and not self._thens and not self._files.outstanding:
                return

    def close(self) -> None:
        """Write what was said and close. What cannot be written is logged and left."""
        for execution in list(self._residents.by_id.values()):
            if execution.items is not None and execution.ended:
                self._save_cursor(execution)
        try:
            self.sync()
        except StoreUnavailable as error:
            _log.error("what happened last could not be written: %s", error)
        for handle in (self._asked, self._lazy, self._probe_timer):
            if handle is not None:
                handle.cancel()
        self._files.close()
        self.database.close()

    # Writing behind

    def _soon(self) -> None:
        if self._asked is None:
            self._asked = self._loop.call_soon(self._flush)

    def _flush(self, *, probe: bool = False) -> None:
        """Make rows of what has changed and hand them to the writer."""
        for handle in (self._asked, self._lazy):
            if handle is not None:
                handle.cancel()
        self._asked = self._lazy = None
        if self._unavailable is not None and not probe:
            return  # the next probe takes everything along
        part = Group()
        held: dict[int, Execution] = {}
        for row, execution in self._dirty.items():
            if row in self._staging or row in self._inserting:
                held[row] = execution
            else:
                self._put(part, row, execution)
        self._dirty = held
        part.forgotten, self._forgotten = self._forgotten, []
        part.sweep = self._sweep()
        if self._unavailable is not None:
            part.statements.append(
                Statement("UPDATE schemas SET version = version WHERE name = 'executions'", (), None)
            )
        self._place_thens(part)
        if part.size or part.sweep is not None:
            group = self._writer.submit(part)
            if group is not part:
                for execution in part.records:
                    if self._inserting.get(execution.row) is part:
                        self._inserting[execution.row] = group
        elif self._writer.outstanding:
            self._writer.outstanding[-1].thens += part.thens
        else:
            for _, then in part.thens:
                self._tell(then, None)

    def _put(self, part: Group, row: int, execution: Execution) -> None:
        number = self._ended_no.get(row)
        files = {} if execution.result_evicted else self._file_names.get(row, {})
        new = self._unwritten.get(row)
        if number is not None:
            files = {column: name for column, name in files.items() if column != "payload"}
            part.ended.append(execution)
        if new is not None:
            body, meta = new
            part.inserts.append(new_row(execution, body, meta, number, files))
            self._inserting[row] = part
        elif number is not None:
            part.finals.append(final_row(execution, number, files))
        else:
            part.progress.append(progress_row(execution))
        part.records.append(execution)

    def _place_thens(self, part: Group) -> None:
        """Each waits with the group that holds what it is about, or until that can be written."""
        waiting, self._thens = self._thens, []
        for row, then in waiting:
            if row in self._dirty:
                self._thens.append((row, then))
            else:
                self._inserting.get(row, part).thens.append((row, then))

    def _settled(self, group: Group) -> None:
        """A group was committed, or failed as a whole."""
        if group.error is not None:
            self._failed(group, group.error)
            return
        if self._unavailable is not None:
            self._recovered()
        self._more = self._more or group.more
        for name in group.released:
            self._files.release(name)
        for execution in group.records:
            if self._inserting.pop(execution.row, None) is not None:
                del self._unwritten[execution.row]
                if execution.row in group.refused:
                    self._undo(execution)
        for execution in group.ended:
            self._written(execution)
        for row, error in group.refused.items():
            _log.error("an execution could not be written (row %d): %s", row, error)
        for row, then in group.thens:
            refused = group.refused.get(row)
            self._tell(then, None if refused is None else not_written(refused))
        if self._dirty or self._thens or self._more:
            self._soon()

    def _written(self, execution: Execution) -> None:
        """Its final state is on disk."""
        row = execution.row
        number = self._ended_no.pop(row, None)
        names = self._file_names.pop(row, None)
        for column, name in (names or {}).items():
            if column == "payload" or execution.result_evicted:
                self._files.release(name)
        if self._residents.holds(execution):
            self._residents.retire(execution, number)
            self._evict(self._oldest())

    def _failed(self, group: Group, error: Exception) -> None:
        """Nothing of the group was written: async creates never were, everything else is tried again."""
        for execution in group.records:
            row = execution.row
            if self._inserting.pop(row, None) is not None and execution.kind == "async":
                self._undo(execution)
            elif row in self._ended_no or self._residents.holds(execution):
                self._dirty.setdefault(row, execution)
        self._forgotten = group.forgotten + self._forgotten
        self._more = self._more or group.sweep is not None
        self._break(error)
        for _, then in group.thens:
            self._tell(then, not_written(error))

    def _undo(self, execution: Execution) -> None:
        row = execution.row
        self._dirty.pop(row, None)
        self._unwritten.pop(row, None)
        self._residents.unnumber(self._ended_no.pop(row, None), keyed=execution.idempotency_key is not None)
        self._residents.forget(execution)
        for name in self._file_names.pop(row, {}).values():
            self._files.release(name)

    def _break(self, error: Exception) -> None:
        if self._unavailable is None:
            _log.error("%s", not_written(error))
        self._unavailable = error
        if self._probe_timer is None:
            self._probe_timer = self._loop.call_later(_PROBE_S, self._probe)

    def _probe(self) -> None:
        """Try to write what has gathered, or anything."""
        self._probe_timer = None
        self._flush(probe=True)

    def _recovered(self) -> None:
        self._unavailable = None
        if self._probe_timer is not None:
            self._probe_timer.cancel()
            self._probe_timer = None
        _log.warning("the server's database can be written again")
        again, self._again = self._again, {}
        for row, contents in again.items():
            self._unstage(row)
            self._stage(row, contents)
        self._soon()

    # Large bytes

    def _stage(self, row: int, contents: Contents) -> None:
        self._staging[row] = self._staging.get(row, 0) + 1
        self._files.keep(row, contents)

    def _filed(self, keeping: Keeping) -> None:
        """The files of a row are written, or could not be."""
        row, execution = keeping.row, self._dirty.get(keeping.row)
        if execution is None:  # undone meanwhile
            for name in keeping.names.values():
                self._files.release(name)
            self._unstage(row)
        elif keeping.error is None:
            self._file_names.setdefault(row, {}).update(keeping.names)
            self._unstage(row)
        elif "payload" not in keeping.contents:
            self._again[row] = keeping.contents
            self._break(keeping.error)
            return
        elif execution.kind == "async":
            self._unstage(row)
            self._undo(execution)
            told = [then for about, then in self._thens if about == row]
            self._thens = [(about, then) for about, then in self._thens if about != row]
            for then in told:
                self._tell(then, not_written(keeping.error))
        else:
            self._again[row] = keeping.contents  # it runs; its key is written when there is room
            self._break(keeping.error)
            return
        self._soon()

    def _unstage(self, row: int) -> None:
        left = self._staging.pop(row, 1) - 1
        if left:
            self._staging[row] = left

    # Keeping no more than asked

    def _oldest(self) -> float:
        return self._now() - self._retention.age_s

    def _retain(self) -> None:
        plain, keyed, residents = self._plain, self._keyed, self._residents
        plain_floor, keyed_floor = plain.floor, keyed.floor
        ledgers.apply(self._retention, plain, keyed, self._oldest())
        for execution in residents.overtaken(plain_floor, plain.floor, keyed=False):
            residents.forget(execution)
        for execution in residents.overtaken(keyed_floor, keyed.floor, keyed=True):
            residents.drop_result(execution)

    def _sweep(self) -> Sweep | None:
        """What to remove with the group that is being made, now and then."""
        plain, keyed = self._plain.floor, self._keyed.floor
        now = self._loop.time()
        behind = plain + keyed - self._swept
        if not self._more and behind < _SWEEP_AT and now < self._sweep_at:
            return None
        self._more = False
        self._swept = plain + keyed
        self._sweep_at = now + _SWEEP_S
        return Sweep(plain, keyed, self._oldest())

    def _forget(self, execution: Execution) -> None:
        """Too old to be known: its row goes before another one takes its key."""
        row = execution.row
        self._residents.forget(execution)
        self._residents.unnumber(self._ended_no.pop(row, None), keyed=True)
        self._dirty.pop(row, None)
        if row in self._unwritten and row not in self._inserting:
            self._undo(execution)
        else:
            self._forgotten.append(row)

    def _evict(self, oldest: float) -> None:
        for leaving in self._residents.leaving(oldest):
            self._save_cursor(leaving)

    def _save_cursor(self, execution: Execution) -> None:
        """How far its items were handed out, for whoever reads on after it has left memory."""
        items = execution.items
        if items is not None and items.cursor and _is_written(execution):
            self.database.write("UPDATE executions SET items_cursor = ? WHERE row = ?", (items.cursor, execution.row))

    def _tell(self, then: Then, outcome: StoreUnavailable | None) -> None:
        try:
            then(outcome)
        except Exception as error:  # the boundary of one caller: the others are told all the same
            self._loop.call_exception_handler({"message": "a caller of when_durable failed", "exception": error})


def _is_written(execution: Execution) -> bool:
    return execution.kind == "async" or execution.idempotency_key is not None


def _large(execution: Execution) -> Contents:
    """What of an ended execution belongs into files."""
    contents: dict[Column, Content] = {}
    if len(execution.result) > LARGE_BYTES:
        contents["result"] = execution.result
    items = execution.items
    if items is not None and items.bytes > LARGE_BYTES:
        contents["items"] = (items.kept(), items.first)
    return contents
