"""The one writer: a thread that commits what has gathered while its last commit ran.

A disk that confirms every commit takes about as long for one row as for a hundred. So changes gather in an open group;
the thread takes it when it is free, writes it in one transaction, and tells the loop once per group. Under load groups
grow by themselves, without load a change waits for nobody. A commit that waits for no disk (`inline`) is made at once,
on the loop, while nothing else is under way: waking a thread costs more than such a commit.
"""

import asyncio
import dataclasses
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from queue import Empty, SimpleQueue
from typing import Any, Final

from flashmesh.executions.record import Execution
from flashmesh.executions.sqlite import rows
from flashmesh.executions.sqlite.rows import Row
from flashmesh.executions.store import StoreUnavailable

_MOST_ROWS: Final = 64
"""Per statement: 832 values at most, and every SQLite takes 999."""
_ANY_ROWS: Final = 32
"""Up to here a statement of just so many rows is prepared and kept. After each statement the thread waits for the
interpreter, which the loop may keep for a millisecond: few statements are a short commit."""
_PARAMETERS: Final = 900
_INLINE_ROWS: Final = 4
"""A larger group is no business of the loop."""
_SWEEP_ROWS: Final = 200
"""Rows removed per commit, of each kind, when few are added. More would hold up those who wait for the commit."""
_CHECKPOINT_PAGES: Final = 4000
"""The log is copied into the database when it is longer than this (of 4 KiB). More: fewer copies, each of which holds
up some hundred calls for some milliseconds, and a longer log."""
_LEAST_SHARE: Final = 0.02
_EXPIRED: Final = """
    SELECT row, payload_file, result_file, items_file FROM executions
    WHERE ended_no IS NOT NULL AND idempotency_key IS {keyed} NULL AND {bound} ORDER BY ended_no LIMIT ?
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Sweep:
    """Remove what retention has overtaken: numbers up to these."""

    plain: int
    keyed_results: int
    keyed: int


@dataclasses.dataclass(slots=True)
class Statement:
    """Another part's write: statements that are written together or not at all. Its own mistake (a constraint, a wrong
    statement) is told to `then` and harms nobody."""

    steps: Sequence[tuple[str, Sequence[Any]]]
    then: Callable[[Exception | None], None] | None
    error: Exception | None = None


@dataclasses.dataclass(slots=True, eq=False)
class Group:
    """Changes that are committed together. The loop fills it, the thread writes it, the loop hears of it."""

    forgotten: list[int] = dataclasses.field(default_factory=list)
    """Rows to remove before anything is inserted."""
    inserts: list[Row] = dataclasses.field(default_factory=list)
    progress: list[Row] = dataclasses.field(default_factory=list)
    finals: list[Row] = dataclasses.field(default_factory=list)
    """Their payloads go."""
    failed: list[Row] = dataclasses.field(default_factory=list)
    """Final too, and their payloads stay."""
    statements: list[Statement] = dataclasses.field(default_factory=list)
    sweep: Sweep | None = None
    records: list[Execution] = dataclasses.field(default_factory=list)
    """Whose rows these are, in the order they were said."""
    ended: list[Execution] = dataclasses.field(default_factory=list)
    """Those of them that stand here in their final state."""
    dropped: dict[int, list[str]] = dataclasses.field(default_factory=dict)
    """Row → files of its own that its final row no longer names."""
    thens: list[tuple[int, Callable[[StoreUnavailable | None], None]]] = dataclasses.field(default_factory=list)
    """Who waits, and the row whose change they said last."""
    error: Exception | None = None
    refused: dict[int, Exception] = dataclasses.field(default_factory=dict)
    """Rows that could not be written for a reason of their own."""
    released: list[str] = dataclasses.field(default_factory=list)
    """Files that removed rows named."""
    more: bool = False
    """The sweep has not come to its end."""
    took_s: float = 0.0
    """How long its commit took."""

    @property
    def size(self) -> int:
        return len(self.records) + len(self.statements) + len(self.forgotten)

    def join(self, later: "Group") -> None:
        self.forgotten += later.forgotten
        self.inserts += later.inserts
        self.progress += later.progress
        self.finals += later.finals
        self.failed += later.failed
        self.dropped |= later.dropped
        self.statements += later.statements
        self.records += later.records
        self.refused |= later.refused
        self.ended += later.ended
        self.thens += later.thens
        self.sweep = later.sweep or self.sweep


class Writer:
    """Commits groups, in order. Everything but `_run` is called on the loop; so are `committed` and all callbacks."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        loop: asyncio.AbstractEventLoop,
        inline: bool,
    ) -> None:
        self._connection = connection
        self._loop = loop
        self._inline = inline
        self.committed: Callable[[Group], None] = lambda group: None
        """Told of every group, also of one that failed."""
        self.took: Callable[[float], None] = lambda seconds: None
        """Told, on the loop, how long each commit took."""
        self.outstanding: list[Group] = []
        """Groups that were submitted and are not committed as far as the loop knows."""
        self._guard = threading.Lock()
        self._open: Group | None = None
        self._working = threading.Lock()
        self._asked = False
        self._wake: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Group] = SimpleQueue()
        self._changes = 0
        """Since the log was copied: pages that were changed, if no two changes had met on one."""
        self._share = 1.0
        """How many of so many pages the log really held the last time: changes that follow each other share theirs."""
        self._thread = threading.Thread(target=self._run, name="flashmesh-writer", daemon=True)
        self._thread.start()

    def submit(self, part: Group) -> Group:
        """Commit this with what else has gathered. Returns the group it became part of."""
        cheap = self._inline and not self.outstanding and part.size <= _INLINE_ROWS and part.sweep is None
        if cheap and self._working.acquire(blocking=False):  # it is not free while the log is being copied
            self.outstanding.append(part)
            try:
                self._commit(part)
            finally:
                self._working.release()
            self._deliver_one(part)
            if self._log_is_long:
                self._ask()
            return part
        with self._guard:
            if self._open is None:
                self._open = part
                self.outstanding.append(part)
            else:
                self._open.join(part)
                part = self._open
        self._ask()
        return part

    def wait(self) -> None:
        """Block until every group is committed, and tell who waits."""
        while self.outstanding:
            self._deliver_one(self._done.get())

    def close(self) -> None:
        """Commit what is left, end the thread and close the connection."""
        self.wait()
        self._wake.put(False)
        self._thread.join()
        try:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error:
            pass  # the log stays beside the database and is read at the next start
        self._connection.close()

    def _ask(self) -> None:
        if not self._asked:
            self._asked = True
            self._wake.put(True)

    def _deliver(self) -> None:
        while True:
            try:
                group = self._done.get_nowait()
            except Empty:
                return
            self._deliver_one(group)

    def _deliver_one(self, group: Group) -> None:
        self.outstanding.remove(group)
        self.took(group.took_s)
        self.committed(group)
        for one in group.statements:
            if one.then is not None:
                one.then(one.error if group.error is None else not_written(group.error))

    @property
    def _log_is_long(self) -> bool:
        return self._changes * self._share > _CHECKPOINT_PAGES

    # The thread

    def _run(self) -> None:
        while self._wake.get():
            self._asked = False
            with self._guard:
                group, self._open = self._open, None
            if group is not None:
                with self._working:
                    self._commit(group)
                self._done.put(group)
                try:
                    self._loop.call_soon_threadsafe(self._deliver)
                except RuntimeError:
                    pass  # the loop is closed: `wait` delivers
            if self._log_is_long or (group is not None and group.error is not None):
                with self._working:
                    self._checkpoint()

    def _commit(self, group: Group) -> None:
        began = time.perf_counter()
        try:
            try:
                self._write(group, one_by_one=False)
            except (
                sqlite3.IntegrityError,
                sqlite3.InterfaceError,
                sqlite3.ProgrammingError,
                ValueError,
                OverflowError,
            ):
                # One row cannot be written: without it the others can.
                self._roll_back()
                group.released.clear()
                self._write(group, one_by_one=True)
        except Exception as error:  # the boundary of one commit
            group.error = error
            group.released.clear()
            self._roll_back()
        group.took_s = time.perf_counter() - began
        self._changes += 4 + 2 * group.size

    def _write(self, group: Group, *, one_by_one: bool) -> None:
        """In one transaction, committed. Raises what SQLite raises; the transaction may be open then."""
        connection = self._connection
        changes = (
            (rows.INSERT_SQL, group.inserts),
            (rows.PROGRESS_SQL, group.progress),
            (rows.FINAL_SQL, group.finals),
            (rows.FAILED_SQL, group.failed),
        )
        if not (one_by_one or group.forgotten or group.statements or group.sweep):
            steps = [step for sql, many in changes for step in _steps(sql, many)]
            if len(steps) == 1:  # a statement alone is a transaction of its own
                connection.execute(*steps[0])
                return
        connection.execute("BEGIN IMMEDIATE")
        if group.forgotten:
            marks = ", ".join("?" * len(group.forgotten))
            self._remove(
                f"SELECT row, payload_file, result_file, items_file FROM executions WHERE row IN ({marks})",
                group.forgotten,
                group,
            )
        for sql, many in changes:
            if one_by_one:
                for row in many:
                    error = None if row[0] in group.refused else self._try([(rows.statement(sql, len(row), 1), row)])
                    if error is not None:
                        group.refused[row[0]] = error
                continue
            for step in _steps(sql, many):
                connection.execute(*step)
        for one in group.statements:
            one.error = self._try(one.steps)
        if group.sweep is not None:
            self._sweep(group.sweep, group)
        connection.execute("COMMIT")

    def _try(self, steps: Sequence[tuple[str, Sequence[Any]]]) -> Exception | None:
        """Statements that may fail, alone and together: why they did. Raises when the transaction is over (the disk is
        full)."""
        connection = self._connection
        failed: Exception | None = None
        connection.execute("SAVEPOINT one")
        try:
            for sql, parameters in steps:
                connection.execute(sql, parameters)
        except Exception as error:
            if not connection.in_transaction or _is_disk(error):
                raise
            connection.execute("ROLLBACK TO one")
            failed = error
        connection.execute("RELEASE one")
        return failed

    def _sweep(self, sweep: Sweep, group: Group) -> None:
        limit = max(_SWEEP_ROWS, 2 * (len(group.finals) + len(group.failed)))  # faster than they come
        removed = [
            self._remove(_EXPIRED.format(keyed=keyed, bound="ended_no <= ?"), (number, limit), group)
            for keyed, number in (("", sweep.plain), ("NOT", sweep.keyed))
        ]
        removed.append(
            self._remove(
                _EXPIRED.format(keyed="NOT", bound="ended_no <= ? AND size > 0"),
                (sweep.keyed_results, limit),
                group,
                "UPDATE executions SET size = 0, result_evicted = 1, payload = NULL, payload_file = NULL, "
                "result = NULL, result_file = NULL, items = NULL, items_file = NULL",
            )
        )
        group.more = max(removed) >= limit

    def _remove(
        self,
        select: str,
        parameters: Sequence[Any],
        group: Group,
        statement: str = "DELETE FROM executions",
    ) -> int:
        found = self._connection.execute(select, parameters).fetchall()
        for start in range(0, len(found), _PARAMETERS):
            wanted = [row[0] for row in found[start : start + _PARAMETERS]]
            self._connection.execute(f"{statement} WHERE row IN ({', '.join('?' * len(wanted))})", wanted)
        group.released += [name for row in found for name in row[1:] if name]
        return len(found)

    def _roll_back(self) -> None:
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            pass  # it is rolled back already

    def _checkpoint(self) -> None:
        """Copy the log into the database, so that it starts over; readers are not waited for."""
        changes, self._changes = self._changes, 0
        try:
            ((_, pages, _),) = self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.Error:
            return  # the log grows until it can be copied
        if pages > 0 and changes:
            self._share = min(max(pages / changes, _LEAST_SHARE), 1.0)


def not_written(error: Exception) -> StoreUnavailable:
    """What is said about a group that failed."""
    unavailable = StoreUnavailable(
        f"the server's database cannot be written ({error}), so nothing new is accepted. Make room on the disk or "
        "correct what is wrong with it; the server goes on by itself then"
    )
    unavailable.__cause__ = error
    return unavailable


def _is_disk(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_BUSY,
    )


def _steps(sql: str, many: list[Row]) -> Iterator[tuple[str, list[Any]]]:
    """Statements, each with its values, that write all of these rows."""
    start = 0
    while (left := len(many) - start) > 0:
        size = _MOST_ROWS if left >= _MOST_ROWS else min(left, _ANY_ROWS)
        chunk = many[start : start + size]
        yield rows.statement(sql, len(chunk[0]), size), list(chain.from_iterable(chunk))
        start += size
