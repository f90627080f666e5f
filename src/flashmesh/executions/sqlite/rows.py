"""Records as rows and back. Pure."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from flashmesh.executions.items import ItemBuffer
from flashmesh.executions.record import Execution, Kind
from flashmesh.executions.states import Status
from flashmesh.kit.ids import EndpointName, ExecutionId

LARGE_BYTES: Final = 64 * 1024
"""Bytes above this are a file of their own. Lower: more files; higher: a large commit holds up small ones."""
STATEMENTS: Final = 4 * 33
"""Statements for many rows that are kept prepared: four kinds, for 1 to 32 rows and for 64."""
Row = tuple[Any, ...]
Column = Literal["payload", "result", "items"]
Files = Mapping[str, str]
"""Column → name of the file that holds its bytes."""

NEW: Final = (
    "row", "id", "function", "idempotency_key", "fingerprint", "status", "request", "payload_file", "payload",
)  # fmt: skip
"""What an execution is made of. `request` is packed: what never changes, and the client's meta."""
PROGRESS: Final = ("row", "status", "progress")
FINAL: Final = (
    *PROGRESS, "ended_at", "ended_no", "size", "outcome", "result_evicted", "result_file", "items_file",
    "items_cursor", "result", "items",
)  # fmt: skip
SUMMARY: Final = (*NEW[:-1], *PROGRESS[2:], *FINAL[3:-2])
"""All but what may be large."""
WHOLE: Final = (*SUMMARY, "result", "items")
"""All but the payload, which nobody needs who looks at what has ended."""
UNFINISHED: Final = (*SUMMARY, "payload")

Request = tuple[str, Kind, float, str, str, int, str | None, dict[str, Any]]
Progress = tuple[int, float | None, int, int, str, str]
Result = tuple[int, str, str, str]

INSERT_SQL: Final = f"INSERT INTO executions ({', '.join(NEW)}) VALUES {{}}"
"""With places for one row or many: the database lets other threads run while it works on all of them, where row by row
each one would wait for the interpreter."""


def _update(columns: Sequence[str], more: str = "") -> str:
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
    return f"INSERT INTO executions ({', '.join(columns)}) VALUES {{}} ON CONFLICT (row) DO UPDATE SET {changes}{more}"


PROGRESS_SQL: Final = _update(PROGRESS)
FINAL_SQL: Final = _update(FINAL, ", payload = NULL, payload_file = NULL")
"""Of rows that are there. The payload goes."""
FAILED_SQL: Final = _update(FINAL)
"""The payload stays: a client may have the call repeated."""


@functools.lru_cache(maxsize=STATEMENTS)
def statement(sql: str, columns: int, rows: int) -> str:
    """One of the three for so many rows: the same text each time, by which a connection finds what it prepared."""
    return sql.format(", ".join([f"({', '.join('?' * columns)})"] * rows))


def new_row(execution: Execution, fingerprint: bytes | None, request: bytes, files: Files) -> Row:
    """For NEW. `request` from `pack_request`."""
    return (
        execution.row,
        execution.id,
        execution.function,
        execution.idempotency_key,
        fingerprint,
        "QUEUED",
        request,
        files.get("payload"),
        None if "payload" in files else execution.payload,  # none at all is b"", as NULL says that it was dropped
    )


def progress_row(execution: Execution) -> Row:
    """For PROGRESS."""
    return (
        execution.row,
        execution.status._value_,
        _encode(
            (
                execution.attempt,
                execution.started_at,
                execution.queue_us,
                execution.cold_us,
                execution.worker,
                execution.build,
            )
        ),
    )


def final_row(execution: Execution, ended_no: int, files: Files) -> Row:
    """For FINAL."""
    items = execution.items
    outcome = (execution.run_us, execution.error_code, execution.error_message, execution.result_type)
    return (
        *progress_row(execution),
        execution.ended_at,
        ended_no,
        execution.size_bytes,
        _encode(outcome),
        execution.result_evicted,
        files.get("result"),
        files.get("items"),
        None if items is None else items.cursor,
        None if "result" in files else execution.result or None,
        None if items is None or "items" in files else pack_items(items.kept(), items.first),
    )


def pack_request(execution: Execution) -> bytes:
    """Raises TypeError, OverflowError, UnicodeEncodeError: its meta holds what cannot be written."""
    return _encode(
        (
            execution.endpoint,
            execution.kind,
            execution.created_at,
            execution.content_type,
            execution.accept,
            execution.deadline_ms,
            execution.retried_from,
            execution.meta,
        )
    )


def pack_items(items: list[bytes], first: int) -> bytes:
    return _encode((first, items))


def unpack_items(packed: bytes, cursor: int) -> ItemBuffer:
    first, items = _decode_items(packed)
    return ItemBuffer.of(items, first=first, cursor=cursor)


_encode = msgspec.msgpack.Encoder().encode
_decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode
_decode_result = msgspec.msgpack.Decoder(Result).decode
_decode_items = msgspec.msgpack.Decoder(tuple[int, list[bytes]]).decode


def execution_of(columns: Sequence[str], row: Row) -> tuple[Execution, dict[str, Any]]:
    """The record, and the row by column for what is not in it: `ended_no`, the files, the fingerprint.

    Bytes kept in files are missing from the record.
    """
    named = dict(zip(columns, row, strict=True))
    endpoint, kind, created_at, content_type, accept, deadline_ms, retried_from, meta = _decode_request(
        named["request"]
    )
    execution = Execution(
        named["id"],
        named["function"],
        EndpointName(endpoint),
        kind,
        created_at,
        content_type,
        accept,
        named.get("payload") or b"",
        meta,
        named["idempotency_key"],
        Status(named["status"]),
        deadline_ms=deadline_ms,
        retried_from=None if retried_from is None else ExecutionId(retried_from),
        row=named["row"],
    )
    if named["progress"] is not None:
        attempt, execution.started_at, queue_us, cold_us, execution.worker, execution.build = _decode_progress(
            named["progress"]
        )
        execution.attempt, execution.queue_us, execution.cold_us = attempt, queue_us, cold_us
    if named["ended_no"] is not None:
        execution.run_us, execution.error_code, execution.error_message, execution.result_type = _decode_result(
            named["outcome"]
        )
        execution.ended_at = named["ended_at"]
        execution.result = named.get("result") or b""
        execution.result_evicted = bool(named["result_evicted"])
        if named.get("items"):
            execution.items = unpack_items(named["items"], named["items_cursor"])
    return execution, named
