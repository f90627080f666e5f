"""Records as rows and back. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from flashmesh.executions.items import ItemBuffer
from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status

LARGE_BYTES: Final = 64 * 1024
"""Bytes above this are a file of their own. Lower: more files; higher: a large commit holds up small ones."""
Row = tuple[Any, ...]
Column = Literal["payload", "result", "items"]
Files = Mapping[str, str]
"""Column → name of the file that holds its bytes."""

NEW: Final = (
    "row", "id", "function", "endpoint", "kind", "created_at", "content_type", "accept", "idempotency_key",
    "fingerprint", "deadline_ms", "retried_from", "meta",
)  # fmt: skip
"""What is known when an execution is made, and never changes."""
PROGRESS: Final = ("row", "status", "attempt", "started_at", "queue_us", "cold_us", "worker", "build")
ENDED: Final = (
    "ended_at", "ended_no", "size", "run_us", "error_code", "error_message", "result_type", "result_evicted",
    "result_file", "items_file", "items_cursor", "result", "items",
)  # fmt: skip
PAYLOAD: Final = ("payload_file", "payload")
INSERT: Final = (*NEW, *PROGRESS[1:], *ENDED, *PAYLOAD)
FINAL: Final = (*PROGRESS, *ENDED, *PAYLOAD)
SUMMARY: Final = (*NEW, *PROGRESS[1:], *ENDED[:-2])
"""All but what may be large."""


def insert(table: str, columns: Sequence[str], rows: int) -> str:
    """A statement that inserts so many rows at once: the database lets other threads run while it works on all of them,
    where row by row each one would wait for the interpreter."""
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {_places(len(columns), rows)}"


def update(table: str, columns: Sequence[str], rows: int) -> str:
    """A statement that changes so many rows at once, which exist; the first column is the key."""
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    return f"{insert(table, columns, rows)} ON CONFLICT ({columns[0]}) DO UPDATE SET {changes}"


def _places(columns: int, rows: int) -> str:
    return ", ".join([f"({', '.join('?' * columns)})"] * rows)


def new_row(execution: Execution, fingerprint: bytes | None, meta: bytes, ended_no: int | None, files: Files) -> Row:
    """For INSERT. `meta` is packed by `pack_meta`; `ended_no` None = it has not ended."""
    return (
        execution.row,
        execution.id,
        execution.function,
        execution.endpoint,
        execution.kind,
        execution.created_at,
        execution.content_type,
        execution.accept,
        execution.idempotency_key,
        fingerprint,
        execution.deadline_ms,
        execution.retried_from,
        meta,
        *progress_row(execution)[1:],
        *_ended(execution, ended_no, files),
    )


def progress_row(execution: Execution) -> Row:
    """For PROGRESS."""
    return (
        execution.row,
        execution.status._value_,
        execution.attempt,
        execution.started_at,
        execution.queue_us,
        execution.cold_us,
        execution.worker,
        execution.build,
    )


def final_row(execution: Execution, ended_no: int | None, files: Files) -> Row:
    """For FINAL."""
    return (*progress_row(execution), *_ended(execution, ended_no, files))


def _ended(execution: Execution, ended_no: int | None, files: Files) -> Row:
    """For ENDED and PAYLOAD."""
    items = execution.items if ended_no is not None else None
    return (
        execution.ended_at,
        ended_no,
        execution.size_bytes if ended_no is not None else None,
        execution.run_us,
        execution.error_code,
        execution.error_message,
        execution.result_type,
        execution.result_evicted,
        files.get("result"),
        files.get("items"),
        None if items is None else items.cursor,
        None if "result" in files else execution.result or None,
        None if items is None or "items" in files else pack_items(items.kept(), items.first),
        files.get("payload"),
        None if "payload" in files else execution.payload or None,
    )


def pack_meta(meta: Mapping[str, Any]) -> bytes:
    """Raises TypeError, OverflowError: it holds what cannot be written."""
    return msgspec.msgpack.encode(meta) if meta else b""


def pack_items(items: list[bytes], first: int) -> bytes:
    return msgspec.msgpack.encode((first, items))


_decode_items = msgspec.msgpack.Decoder(tuple[int, list[bytes]]).decode


def execution_of(columns: Sequence[str], row: Row) -> tuple[Execution, dict[str, Any]]:
    """The record, and the row by column for what is not in it: `ended_no`, the files, the fingerprint.

    Bytes kept in files are missing from the record.
    """
    named = dict(zip(columns, row, strict=True))
    items: ItemBuffer | None = None
    if named.get("items"):
        items = unpack_items(named["items"], named["items_cursor"])
    execution = Execution(
        named["id"],
        named["function"],
        named["endpoint"],
        named["kind"],
        named["created_at"],
        named["content_type"],
        named["accept"],
        named.get("payload") or b"",
        msgspec.msgpack.decode(named["meta"]) if named["meta"] else {},
        named["idempotency_key"],
        Status(named["status"]),
        named["attempt"],
        named["started_at"],
        named["ended_at"],
        named["worker"],
        named["build"],
        named["error_code"],
        named["error_message"],
        named.get("result") or b"",
        named["result_type"],
        bool(named["result_evicted"]),
        named["run_us"],
        named["queue_us"],
        named["cold_us"],
        items,
        named["deadline_ms"],
        named["retried_from"],
        named["row"],
    )
    return execution, named


def unpack_items(packed: bytes, cursor: int) -> ItemBuffer:
    first, items = _decode_items(packed)
    return ItemBuffer.of(items, first=first, cursor=cursor)
