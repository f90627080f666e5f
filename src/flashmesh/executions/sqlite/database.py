"""The server's one database: opened, checked, written by one writer, read beside it. Other parts use it too."""

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from flashmesh.executions.sqlite.rows import STATEMENTS
from flashmesh.executions.sqlite.schema import (
    EXECUTIONS,
    DatabaseDamaged,
    DatabaseLocked,
    DatabaseUnusable,
    damaged,
    migrate,
)
from flashmesh.executions.sqlite.writer import Group, Statement, Writer

Durability = Literal["full", "normal"]
T = TypeVar("T")
_LOCK_WAIT_S: Final = 2.0
"""How long a commit, or opening, waits for another process that writes: longer than a backup's step."""
_CHECK_BYTES: Final = 16 * 1024 * 1024
"""A database up to this size is checked as a whole when it is opened (some 50 ms); a larger one as it is read."""
_OTHER_STATEMENTS: Final = 64
"""Kept prepared beside those that write executions."""
_OLDEST_SQLITE: Final = (3, 24)
"""The first with upserts."""


class Database:
    """One SQLite file in WAL mode. Everything is called on the loop's thread.

    `write` goes through the writer of the executions, so that nobody waits for another one's lock; it is durable when
    `then(None)` is called. `read` has a connection of its own and sees what is committed.
    """

    def __init__(self, path: Path, *, loop: asyncio.AbstractEventLoop, durability: Durability = "full") -> None:
        """Open it, make or migrate the tables.

        Raises DatabaseTooNew, DatabaseDamaged (a copy was made), DatabaseLocked, DatabaseUnusable.
        """
        self.path = path
        self.opening = True
        """Damage that is found now is a reason to keep a copy; later that would hold everything up."""
        if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
            raise DatabaseUnusable(
                f"Python's SQLite is {sqlite3.sqlite_version}, too old to keep executions: it has to be "
                f"{'.'.join(map(str, _OLDEST_SQLITE))} at least. Use a newer Python, or `--store memory`"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _make_private(path)
        self._writing = self._opened(lambda: _writing(path, durability))
        try:
            self.add_schema("executions", EXECUTIONS)
            self._reading = self._opened(lambda: _reading(path))
        except BaseException:
            self._writing.close()
            raise
        self.writer = Writer(self._writing, loop=loop, inline=durability == "normal")

    def add_schema(self, name: str, statements: Sequence[str]) -> None:
        """Bring the tables of one part up to date; for start-up, before anything else is said to the database.

        Args:
            name: the part's. Its tables should begin with it.
            statements: all there ever were, oldest first. Those this database has not seen are run, once each. A new
                version only appends to them.

        Raises DatabaseTooNew, DatabaseDamaged, DatabaseLocked.
        """
        if hasattr(self, "writer"):
            self.writer.wait()
        self._opened(lambda: migrate(self._writing, name, statements, self.path))

    def write(
        self, sql: str, parameters: Sequence[Any] = (), then: Callable[[Exception | None], None] | None = None
    ) -> None:
        """One statement, committed with what else has gathered.

        `then(None)` once it is durable; `then(error)` when it was not written: a sqlite3.Error for a mistake of its
        own, a StoreUnavailable when nothing can be written now (it is not tried again).
        """
        self.write_together([(sql, parameters)], then)

    def write_together(
        self, statements: Sequence[tuple[str, Sequence[Any]]], then: Callable[[Exception | None], None] | None = None
    ) -> None:
        """As `write`, of several statements: all of them are written or none, also if the machine stops meanwhile."""
        self.writer.submit(Group(statements=[Statement(statements, then)]))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What is committed. Blocks: for start-up and for what is rare, or found by a key."""
        return self.rows(sql, parameters)

    def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._reading.execute(sql, tuple(parameters)).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error

    def close(self) -> None:
        """Write what was said, and close."""
        self.writer.wait()
        self._reading.close()
        self.writer.close()

    def _opened(self, step: Callable[[], T]) -> T:
        try:
            return step()
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.DatabaseError) -> Exception:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            if self.opening:
                return damaged(self.path, error)
            return DatabaseDamaged(f"{self.path} is damaged ({error}). Start the server again: it says what to do")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return DatabaseLocked(
                f"{self.path} is locked: another process is writing to it. Stop that server or tool (`fuser "
                f"{self.path}` names it), then try again"
            )
        if isinstance(error, sqlite3.OperationalError) and code not in (sqlite3.SQLITE_ERROR,):
            return DatabaseUnusable(
                f"{self.path} cannot be used ({error}). Look at the disk and the file's permissions"
            )
        return error


def _make_private(path: Path) -> None:
    """Payloads and values of environment variables are in it: for its owner only. SQLite's own files follow suit."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
    except OSError:
        pass  # opening it says what is wrong


def _writing(path: Path, durability: Durability) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        isolation_level=None,
        check_same_thread=False,
        timeout=_LOCK_WAIT_S,
        cached_statements=STATEMENTS + _OTHER_STATEMENTS,
    )
    try:
        if path.stat().st_size <= _CHECK_BYTES:
            [(found,), *_] = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != "ok":
                raise _malformed(found)
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        connection.execute("PRAGMA wal_autocheckpoint = 0")  # the writer does that, beside the commits
        connection.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        connection.close()
        raise
    return connection


def _malformed(found: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(found)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _reading(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=_LOCK_WAIT_S)
    try:
        connection.execute("PRAGMA query_only = 1")
        connection.execute("PRAGMA schema_version").fetchall()  # opens the file, and says now what is wrong with it
    except BaseException:
        connection.close()
        raise
    return connection
