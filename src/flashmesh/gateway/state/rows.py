"""Between rows of the State Manager's tables and its records. A row that cannot be read is an error, never left out."""

from collections.abc import Collection
from typing import Any, Final

import msgspec

from flashmesh.gateway.database import Database
from flashmesh.gateway.state.records import (
    App,
    Build,
    Deployment,
    Environment,
    Progress,
    Served,
    StateDamaged,
)

Row = tuple[Any, ...]

APPS: Final = "SELECT id, name, created_at FROM state_apps"
ENVIRONMENTS: Final = """
    SELECT e.id, a.name, a.id, e.name, e.created_at,
        (SELECT COUNT(*) FROM state_resources r WHERE r.environment = e.id),
        (SELECT d.id FROM state_deployments d WHERE d.environment = e.id AND d.status = 'running'),
        (SELECT d.build FROM state_deployments d WHERE d.environment = e.id AND d.build IS NOT NULL
            ORDER BY (d.status = 'succeeded') DESC, d.number DESC LIMIT 1)
    FROM state_environments e JOIN state_apps a ON a.id = e.app
"""
BUILDS: Final = """
    SELECT b.id, a.name, b.bytes, b.created_at FROM state_builds b JOIN state_apps a ON a.id = b.app
"""
DEPLOYMENTS: Final = """
    SELECT d.id, a.name, e.name, e.id, d.number, d.kind, d.build, d.status, d.error, d.source, d.by, d.started_at,
        d.finished_at
    FROM state_deployments d JOIN state_environments e ON e.id = d.environment JOIN state_apps a ON a.id = e.app
"""
RESOURCES: Final = "SELECT identity, name, entry, source, recorded_at FROM state_resources"

_CHECKED: Final = (
    ("state_builds", "app || '/' || id", ("manifest", "published")),
    ("state_deployments", "id", ("wanted", "env")),
    ("state_resources", "environment || '/' || identity", ("entry", "env")),
)
"""Table, what names a row in it, and its columns that hold JSON."""


def app(row: Row) -> App:
    return App(id=row[0], name=row[1], created_at=row[2])


def environment(row: Row) -> Environment:
    return Environment(
        id=row[0],
        app=row[1],
        app_id=row[2],
        name=row[3],
        created_at=row[4],
        resources=row[5],
        running=row[6],
        build=row[7] if row[5] else None,
    )


def build(row: Row) -> Build:
    return Build(id=row[0], app=row[1], bytes=row[2], created_at=row[3])


def deployment(row: Row) -> Deployment:
    return Deployment(
        id=row[0],
        app=row[1],
        environment=row[2],
        environment_id=row[3],
        number=row[4],
        kind=row[5],
        build=row[6],
        status=row[7],
        error=row[8],
        source=row[9],
        by=row[10],
        started_at=row[11],
        finished_at=row[12],
    )


def progress(row: Row) -> Progress:
    return Progress(resource=row[0], state=row[1], error=row[2], at=row[3])


def served(row: Row) -> Served:
    entry = decoded(row[2], "state_resources", str(row[0]))
    return Served(identity=row[0], name=row[1], entry=entry, source=row[3], recorded_at=row[4])


def encoded(document: Any) -> bytes:
    return msgspec.json.encode(document)


def decoded(data: Any, table: str, key: str) -> dict[str, Any]:
    """The JSON object of a column. Raises StateDamaged."""
    try:
        return _object(data)
    except ValueError as error:
        raise StateDamaged(
            f"The row {key} of {table} cannot be read ({error}). Start the server again: it keeps a copy of the "
            "database and says what to do."
        ) from error


def partly(data: Any, table: str, key: str, without: Collection[str]) -> dict[str, Any]:
    """As `decoded`, without what need not be read: most of a manifest is its resources."""
    try:
        return {name: msgspec.json.decode(raw) for name, raw in _fields(data).items() if name not in without}
    except (msgspec.MsgspecError, ValueError):
        return decoded(data, table, key)  # which says what is wrong


def _object(data: Any) -> dict[str, Any]:
    """Raises ValueError: it is no JSON object."""
    document: dict[str, Any] = _read(data, dict[str, Any])
    return document


def _fields(data: Any) -> dict[str, msgspec.Raw]:
    """The same, with values that are only looked over: four times as fast."""
    fields: dict[str, msgspec.Raw] = _read(data, dict[str, msgspec.Raw])
    return fields


def _read(data: Any, kind: Any) -> Any:
    if not isinstance(data, bytes):
        raise ValueError(f"it holds {type(data).__name__}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def damage(database: Database) -> str | None:
    """The first row that cannot be read, and why; None when all can."""
    for table, key, columns in _CHECKED:
        for column in columns:
            sql = f"SELECT {key}, {column} FROM {table} WHERE {column} IS NOT NULL"
            for name, data in database.read(sql):
                try:
                    _fields(data)
                except ValueError as error:
                    return f"table {table}, row {name}, column {column}: {error}"
    return None
