"""Ended executions that are on disk only, read back."""

from collections import OrderedDict
from collections.abc import Callable, Container, Hashable, Iterator
from typing import Any, Final

from flashmesh.executions.record import Execution
from flashmesh.executions.sqlite.database import Database
from flashmesh.executions.sqlite.files import Files
from flashmesh.executions.sqlite.ledger import Ledger
from flashmesh.executions.sqlite.rows import SUMMARY, UNFINISHED, WHOLE, execution_of, unpack_items
from flashmesh.executions.states import Status
from flashmesh.kit.ids import ExecutionId

_WHOLE: Final = f"SELECT {', '.join(WHOLE)} FROM executions WHERE "
_UNFINISHED: Final = f"SELECT {', '.join(UNFINISHED)} FROM executions WHERE ended_no IS NULL ORDER BY row"
_SUMMARY: Final = f"SELECT {', '.join(SUMMARY)} FROM executions WHERE "
_KEPT: Final = 64
"""Records that are asked for again soon: a client that reads a stream in pieces, or polls."""
_KEPT_BYTES: Final = 16 * 1024 * 1024


class Sieve:
    """Which values were added, nearly: never misses one, and takes few others for one.

    New keys are unknown nearly always, and so are new ids that are not the highest; asking the database each time would
    double the cost of accepting a call.
    """

    _BITS: Final = 1 << 23  # 1 MiB: one in 20 unknown values is asked for in vain after a million, none after 10 000

    def __init__(self) -> None:
        self._bits = bytearray(self._BITS >> 3)

    def add(self, value: Hashable) -> None:
        seed = hash(value)
        first, second = seed & (self._BITS - 1), seed >> 24 & (self._BITS - 1)
        self._bits[first >> 3] |= 1 << (first & 7)
        self._bits[second >> 3] |= 1 << (second & 7)

    def __contains__(self, value: Hashable) -> bool:
        seed = hash(value)
        first, second = seed & (self._BITS - 1), seed >> 24 & (self._BITS - 1)
        return bool(self._bits[first >> 3] & 1 << (first & 7)) and bool(self._bits[second >> 3] & 1 << (second & 7))


class Archive:
    """Reads what the ledgers have not put out. A row may still be there a while after retention has taken it."""

    def __init__(
        self, database: Database, files: Files, *, plain: Ledger, keyed: Ledger, let_go: Callable[[Execution], None]
    ) -> None:
        """`let_go` is told of a record that leaves the few kept in memory."""
        self._database = database
        self._files = files
        self._plain = plain
        self._keyed = keyed
        self._let_go = let_go
        self._kept: OrderedDict[ExecutionId, tuple[Execution, int]] = OrderedDict()
        self._kept_bytes = 0
        newest = database.rows("SELECT row FROM executions WHERE ended_no IS NOT NULL ORDER BY row DESC LIMIT 1")
        self._top = newest[0][0] if newest else 0
        """The newest row that may not be in memory."""
        self._seen = Sieve()
        self._highest = database.rows("SELECT coalesce(max(id), '') FROM executions")[0][0]
        """No id sorts behind it. Ids are made in order, so a new one nearly always does."""
        for name, function, key in database.rows("SELECT id, function, idempotency_key FROM executions"):
            self._seen.add(name)
            if key is not None:
                self._seen.add((function, key))

    def unfinished(self) -> Iterator[tuple[Execution, dict[str, Any]]]:
        """Every execution that has not ended, oldest first, and its row (`payload` None: its file is lost)."""
        for row in self._database.rows(_UNFINISHED):
            execution, named = execution_of(UNFINISHED, row)
            if named["payload_file"]:
                named["payload"] = self._files.read(named["payload_file"])
                execution.payload = named["payload"] or b""
            yield execution, named

    def remember(self, execution: Execution) -> None:
        """Its id and key may be asked for when it is no longer in memory."""
        self._seen.add(execution.id)
        if execution.id > self._highest:
            self._highest = execution.id
        if execution.idempotency_key is not None:
            self._seen.add((execution.function, execution.idempotency_key))

    def has(self, execution: ExecutionId) -> bool:
        return (
            execution <= self._highest
            and execution in self._seen
            and bool(self._database.rows("SELECT 1 FROM executions WHERE id = ?", (execution,)))
        )

    def by_key(self, function: str, key: str) -> tuple[int, ExecutionId, bytes, int] | None:
        """Row, id, fingerprint and number of the execution that a key names. It may be too old to be kept."""
        if (function, key) not in self._seen:
            return None
        found = self._database.rows(
            "SELECT row, id, fingerprint, ended_no FROM executions WHERE function = ? AND idempotency_key = ? "
            "AND ended_no IS NOT NULL",
            (function, key),
        )
        return found[0] if found else None

    def get(self, execution: ExecutionId) -> Execution | None:
        kept = self._kept.get(execution)
        if kept is None:
            rows = self._database.rows(_WHOLE + "id = ? AND ended_no IS NOT NULL", (execution,))
            if not rows:
                return None
            record, named = execution_of(WHOLE, rows[0])
            self._fill(record, named)
            kept = self._keep(record, named["ended_no"])
        record, number = kept
        if record.idempotency_key is None:
            return record if number > self._plain.floor else None
        if number <= self._keyed.aged:
            return None
        if number <= self._keyed.floor and not record.result_evicted:
            record.drop_result()
        return record

    def payload(self, execution: Execution) -> bytes | None:
        """What was sent to make it. None: it was dropped, or its file is lost."""
        rows = self._database.rows("SELECT payload_file, payload FROM executions WHERE row = ?", (execution.row,))
        if not rows:
            return None
        file, payload = rows[0]
        return self._files.read(file) if file else payload

    def position(self, execution: ExecutionId) -> int | None:
        """Its row number."""
        found = self._database.rows(
            "SELECT row, ended_no, idempotency_key FROM executions WHERE id = ? AND ended_no IS NOT NULL", (execution,)
        )
        if not found or found[0][1] <= self._gone(found[0][2] is not None):
            return None
        return int(found[0][0])

    def _gone(self, keyed: bool) -> int:
        """The number up to which records are no longer kept."""
        return self._keyed.aged if keyed else self._plain.floor

    def take(self, execution: Execution) -> None:
        """It leaves memory."""
        self._top = max(self._top, execution.row)

    def newest(
        self,
        *,
        function: str | None,
        status: Status | None,
        before: int | None,
        page: int,
        without: Container[ExecutionId],
    ) -> Iterator[Execution]:
        """Ended ones, newest first, without results and items. Reads `page` rows at a time."""
        terms = ["ended_no IS NOT NULL", "row < ?"]
        wanted: list[Any] = []
        for column, value in (("function", function), ("status", status)):
            if value is not None:
                terms.append(f"{column} = ?")
                wanted.append(str(value))
        sql = f"{_SUMMARY}{' AND '.join(terms)} ORDER BY row DESC LIMIT ?"
        position = self._top + 1 if before is None else min(before, self._top + 1)
        while True:
            rows = self._database.rows(sql, (position, *wanted, page))
            for row in rows:
                position = row[0]
                if row[1] in without:
                    continue
                execution, named = execution_of(SUMMARY, row)
                keyed = named["idempotency_key"] is not None
                if named["ended_no"] > self._gone(keyed):
                    if keyed and named["ended_no"] <= self._keyed.floor:
                        execution.result_evicted = True
                    yield execution
            if len(rows) < page:
                return

    def _fill(self, record: Execution, named: dict[str, Any]) -> None:
        """Read what is kept in files. A lost file is a result that is no more."""
        for column in ("result", "items"):
            name = named[f"{column}_file"]
            if not name:
                continue
            content = self._files.read(name)
            if content is None:
                record.drop_result()
                return
            if column == "result":
                record.result = content
            else:
                record.items = unpack_items(content, named["items_cursor"])

    def _keep(self, record: Execution, number: int) -> tuple[Execution, int]:
        kept = self._kept[record.id] = (record, number)
        self._kept_bytes += record.size_bytes
        while len(self._kept) > _KEPT or (self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1):
            _, (leaving, _) = self._kept.popitem(last=False)
            self._let_go(leaving)
            self._kept_bytes = sum(one.size_bytes for one, _ in self._kept.values())
        return kept
