"""The tables, how older ones become these, and what is said about a database that cannot be used.

Each part that keeps something in the database has a named schema: a sequence of statements that only ever grows at its
end. The table `schemas` says how many of each have been run, so opening runs the rest; a number higher than what is
known here was written by a newer version.
"""

import shutil
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from flashmesh.functions.errors import FlashmeshError

EXECUTIONS: Final[Sequence[str]] = (
    # What is asked for by its value has a column; the rest is packed (rows.py), as every column costs each insert.
    # What may be large stands last: a row is read up to the last column that is asked for.
    """
    CREATE TABLE executions (
        row INTEGER PRIMARY KEY,
        id TEXT UNIQUE,
        function TEXT,
        idempotency_key TEXT,
        fingerprint BLOB,
        status TEXT,
        ended_at REAL,
        ended_no INTEGER,
        size INTEGER,
        result_evicted INTEGER DEFAULT 0,
        items_cursor INTEGER,
        payload_file TEXT,
        result_file TEXT,
        items_file TEXT,
        request BLOB,
        progress BLOB,
        outcome BLOB,
        payload BLOB,
        result BLOB,
        items BLOB
    )
    """,
    "CREATE UNIQUE INDEX executions_key ON executions (function, idempotency_key) WHERE idempotency_key IS NOT NULL",
    "CREATE INDEX executions_live ON executions (row) WHERE ended_no IS NULL",
    """
    CREATE INDEX executions_ended ON executions (ended_no, size, ended_at)
        WHERE ended_no IS NOT NULL AND idempotency_key IS NULL
    """,
    """
    CREATE INDEX executions_ended_keyed ON executions (ended_no, size, ended_at)
        WHERE ended_no IS NOT NULL AND idempotency_key IS NOT NULL
    """,
    """
    CREATE INDEX executions_files ON executions (row)
        WHERE payload_file IS NOT NULL OR result_file IS NOT NULL OR items_file IS NOT NULL
    """,
)
"""`ended_no` counts the executions that have ended, those with an idempotency key apart; `size` is what is kept of an
ended one's payload, result and items, in bytes. The `_file` columns name a file beside the database that holds the
bytes."""


class DatabaseUnusable(FlashmeshError):
    """The server's database cannot be used as it is."""

    code = "DATABASE_UNUSABLE"
    status = 500


class DatabaseTooNew(DatabaseUnusable):
    """The database was written by a newer version of flashmesh. Upgrade, or name another directory with `--data`."""


class DatabaseDamaged(DatabaseUnusable):
    """The database is damaged. Restore it from a backup, or move it away to begin with an empty one."""


class DatabaseLocked(DatabaseUnusable):
    """Another process is writing to the database. Stop it, then try again."""


def migrate(connection: sqlite3.Connection, name: str, statements: Sequence[str], path: Path) -> None:
    """Run those of the schema's statements that this database has not seen, all or none of them.

    Raises DatabaseTooNew. `connection` commits by itself (isolation_level None); `path` is for the message.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schemas (name TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        row = connection.execute("SELECT version FROM schemas WHERE name = ?", (name,)).fetchone()
        version = 0 if row is None else row[0]
        if version > len(statements):
            raise DatabaseTooNew(
                f"{path} was written by a newer flashmesh (its {name} are at version {version}, this one knows "
                f"{len(statements)}). Upgrade flashmesh, or use another directory with `--data`"
            )
        for statement in statements[version:]:
            connection.execute(statement)
        connection.execute(
            "INSERT INTO schemas VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET version = excluded.version",
            (name, len(statements)),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def damaged(path: Path, reason: object) -> DatabaseDamaged:
    """The error for a damaged database, after a copy of its files was made beside it (one per state of the file)."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(path.stat().st_mtime))
    copy = path.with_name(f"{path.name}.damaged-{stamp}")
    kept = f"A copy is at {copy}"
    try:
        if not copy.exists():
            for end in ("-wal", ""):  # the log belongs to the file; the file last, as it tells that the copy is whole
                source = Path(f"{path}{end}")
                if source.exists() and source.stat().st_size:
                    shutil.copy2(source, f"{copy}{end}")
    except OSError as error:
        kept = f"No copy could be made ({error})"
    return DatabaseDamaged(
        f"{path} is damaged ({reason}). {kept}. Restore a backup, rescue what can be read with "
        f"`sqlite3 {path} .recover`, or move {path.name}* away to begin with an empty one"
    )
