"""What was POSTed, and what was changed by PATCH, on disk: served again after a restart."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from flashmesh.gateway.database import Database, durable
from flashmesh.gateway.functions.spec import FunctionSpec

SCHEMA: Final[tuple[str, ...]] = (
    "CREATE TABLE functions_posted (name TEXT PRIMARY KEY, spec BLOB NOT NULL, created_at REAL NOT NULL)",
    "CREATE TABLE functions_changed (endpoint TEXT PRIMARY KEY, changes BLOB NOT NULL)",
)
"""A release only appends to them."""


class Stored(NamedTuple):
    spec: FunctionSpec
    created_at: float


class Catalog:
    """Two tables. Without a database nothing outlives the server."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        if database is not None:
            database.add_schema("functions", SCHEMA)

    def functions(self) -> list[Stored]:
        """All that were POSTed, by name. A row that this version cannot read is left out."""
        if self._database is None:
            return []
        found = []
        for data, created_at in self._database.read("SELECT spec, created_at FROM functions_posted ORDER BY name", ()):
            try:
                found.append(Stored(msgspec.json.decode(bytes(data), type=FunctionSpec), float(created_at)))
            except msgspec.MsgspecError:
                continue
        return found

    def changes(self) -> dict[str, dict[str, Any]]:
        """What PATCH changed, by endpoint."""
        if self._database is None:
            return {}
        rows = self._database.read("SELECT endpoint, changes FROM functions_changed", ())
        return {str(name): msgspec.json.decode(bytes(data)) for name, data in rows}

    async def keep(self, spec: FunctionSpec, created_at: float) -> None:
        """Returns when it is durable. Raises StoreUnavailable."""
        await self._write(
            "INSERT OR REPLACE INTO functions_posted (name, spec, created_at) VALUES (?, ?, ?)",
            (spec.name, msgspec.json.encode(spec), created_at),
        )

    async def drop(self, name: str) -> None:
        await self._write("DELETE FROM functions_posted WHERE name = ?", (name,))

    async def keep_changes(self, endpoint: str, changes: dict[str, Any]) -> None:
        await self._write(
            "INSERT OR REPLACE INTO functions_changed (endpoint, changes) VALUES (?, ?)",
            (endpoint, msgspec.json.encode(changes)),
        )

    async def _write(self, sql: str, parameters: Sequence[Any]) -> None:
        if self._database is not None:
            await durable(self._database, (sql, parameters))
