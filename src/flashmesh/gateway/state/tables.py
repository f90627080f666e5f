"""The State Manager's tables. They keep its rules themselves: one deployment of an environment at a time, no
environment without its app, nothing removed that still serves. So a rule holds whoever writes, and after every crash.
"""

from collections.abc import Sequence
from typing import Any, Final

Step = tuple[str, Sequence[Any]]
"""A statement and its parameters."""

SCHEMA_NAME: Final = "state"
SCHEMA: Final[tuple[str, ...]] = (
    "CREATE TABLE state_apps (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, created_at REAL NOT NULL)",
    """
    CREATE TABLE state_environments (
        id TEXT PRIMARY KEY,
        app TEXT NOT NULL,
        name TEXT NOT NULL,
        created_at REAL NOT NULL,
        UNIQUE (app, name)
    )
    """,
    """
    CREATE TABLE state_builds (
        app TEXT NOT NULL,
        id TEXT NOT NULL,
        manifest BLOB NOT NULL,
        published BLOB,
        bytes INTEGER NOT NULL,
        created_at REAL NOT NULL,
        PRIMARY KEY (app, id)
    )
    """,
    """
    CREATE TABLE state_deployments (
        id TEXT PRIMARY KEY,
        environment TEXT NOT NULL,
        number INTEGER NOT NULL,
        kind TEXT NOT NULL,
        build TEXT,
        status TEXT NOT NULL,
        error TEXT,
        source TEXT NOT NULL,
        by TEXT NOT NULL,
        started_at REAL NOT NULL,
        finished_at REAL,
        wanted BLOB,
        env BLOB NOT NULL,
        UNIQUE (environment, number)
    )
    """,
    "CREATE UNIQUE INDEX state_deployments_running ON state_deployments (environment) WHERE status = 'running'",
    """
    CREATE TABLE state_progress (
        deployment TEXT NOT NULL,
        resource TEXT NOT NULL,
        state TEXT NOT NULL,
        error TEXT,
        at REAL NOT NULL,
        PRIMARY KEY (deployment, resource)
    )
    """,
    """
    CREATE TABLE state_resources (
        environment TEXT NOT NULL,
        identity TEXT NOT NULL,
        name TEXT NOT NULL,
        build TEXT,
        entry BLOB NOT NULL,
        env BLOB NOT NULL,
        source TEXT NOT NULL,
        recorded_at REAL NOT NULL,
        PRIMARY KEY (environment, identity)
    )
    """,
)
"""A release only appends to them. `app` and `environment` are ids. `published` is what a client of Flash's wrote over a
build's manifest. `wanted` and `entry` are JSON; `env` is too, of values that no face ever shows."""

_SERVES: Final = """
    (EXISTS (SELECT 1 FROM state_resources r WHERE r.environment = e.id)
    OR EXISTS (SELECT 1 FROM state_deployments d WHERE d.environment = e.id AND d.status = 'running'))
"""
ORPHANS: Final[tuple[Step, ...]] = (
    ("DELETE FROM state_environments WHERE app NOT IN (SELECT id FROM state_apps)", ()),
    ("DELETE FROM state_builds WHERE app NOT IN (SELECT id FROM state_apps)", ()),
    ("DELETE FROM state_deployments WHERE environment NOT IN (SELECT id FROM state_environments)", ()),
    ("DELETE FROM state_progress WHERE deployment NOT IN (SELECT id FROM state_deployments)", ()),
)
"""What goes with an app, an environment or a deployment: written together with its removal."""


def create_app(id: str, name: str, at: float) -> Step:
    return "INSERT INTO state_apps (id, name, created_at) VALUES (?, ?, ?)", (id, name, at)


def delete_app(id: str) -> Step:
    """Nothing happens while something serves or is being deployed."""
    sql = f"""
        DELETE FROM state_apps WHERE id = ?
        AND NOT EXISTS (SELECT 1 FROM state_environments e WHERE e.app = ? AND {_SERVES})
    """
    return sql, (id, id)


def create_environment(id: str, app: str, name: str, at: float) -> Step:
    """Nothing happens when the app is gone."""
    sql = """
        INSERT INTO state_environments (id, app, name, created_at)
        SELECT ?, id, ?, ? FROM state_apps WHERE id = ?
    """
    return sql, (id, name, at, app)


def delete_environment(id: str) -> Step:
    """Nothing happens while something serves or is being deployed."""
    sql = f"""
        DELETE FROM state_environments WHERE id IN
        (SELECT e.id FROM state_environments e WHERE e.id = ? AND NOT {_SERVES})
    """
    return sql, (id,)


def add_build(app: str, id: str, manifest: bytes, size: int, at: float) -> Step:
    """Nothing happens when the app is gone. A build that is there is brought up to date."""
    sql = """
        INSERT INTO state_builds (app, id, manifest, bytes, created_at)
        SELECT id, ?, ?, ?, ? FROM state_apps WHERE id = ?
        ON CONFLICT (app, id) DO UPDATE
        SET manifest = excluded.manifest, bytes = excluded.bytes, created_at = excluded.created_at
    """
    return sql, (id, manifest, size, at, app)


def forget_builds(before: float) -> Step:
    """Builds that were added before then, and that no remembered deployment names and no resource runs."""
    sql = """
        DELETE FROM state_builds WHERE created_at < ?
        AND id NOT IN (SELECT build FROM state_deployments WHERE build IS NOT NULL)
        AND id NOT IN (SELECT build FROM state_resources WHERE build IS NOT NULL)
    """
    return sql, (before,)


def publish(app: str, id: str, manifest: bytes) -> Step:
    return "UPDATE state_builds SET published = ? WHERE app = ? AND id = ?", (manifest, app, id)


def begin(
    id: str,
    environment: str,
    *,
    kind: str,
    build: str | None,
    source: str,
    by: str,
    at: float,
    wanted: bytes | None,
    env: bytes,
) -> Step:
    """Nothing happens when the environment or the build is gone. Raises IntegrityError while another one runs."""
    sql = """
        INSERT INTO state_deployments
            (id, environment, number, kind, build, status, source, by, started_at, wanted, env)
        SELECT ?, e.id, 1 + COALESCE((SELECT MAX(d.number) FROM state_deployments d WHERE d.environment = e.id), 0),
            ?, ?, 'running', ?, ?, ?, ?, ?
        FROM state_environments e
        WHERE e.id = ? AND (? IS NULL OR EXISTS (SELECT 1 FROM state_builds b WHERE b.app = e.app AND b.id = ?))
    """
    return sql, (id, kind, build, source, by, at, wanted, env, environment, build, build)


def forget_deployments(environment: str, keep: int) -> Step:
    """All that ended, but for the newest `keep` and the one that the environment was brought to last."""
    sql = """
        DELETE FROM state_deployments WHERE environment = ? AND status <> 'running'
        AND number <= (SELECT MAX(number) FROM state_deployments WHERE environment = ?) - ?
        AND number <> COALESCE((
            SELECT MAX(number) FROM state_deployments
            WHERE environment = ? AND status = 'succeeded' AND build IS NOT NULL
        ), 0)
    """
    return sql, (environment, environment, keep, environment)


def finish(id: str, status: str, error: str | None, at: float) -> Step:
    """Nothing happens to one that has ended."""
    sql = "UPDATE state_deployments SET status = ?, error = ?, finished_at = ? WHERE id = ? AND status = 'running'"
    return sql, (status, error, at, id)


def progress(deployment: str, resource: str, state: str, error: str | None, at: float) -> Step:
    sql = """
        INSERT INTO state_progress (deployment, resource, state, error, at)
        SELECT id, ?, ?, ?, ? FROM state_deployments WHERE id = ?
        ON CONFLICT (deployment, resource) DO UPDATE
        SET state = excluded.state, error = excluded.error, at = excluded.at
    """
    return sql, (resource, state, error, at, deployment)


def record(
    environment: str,
    identity: str,
    *,
    name: str,
    build: str | None,
    entry: bytes,
    env: bytes | None,
    source: str | None,
    at: float,
) -> Step:
    """Nothing happens when the environment is gone. `env` and `source` None: those that are there stay."""
    sql = """
        INSERT INTO state_resources (environment, identity, name, build, entry, env, source, recorded_at)
        SELECT id, ?, ?, ?, ?, ?, ?, ? FROM state_environments WHERE id = ?
        ON CONFLICT (environment, identity) DO UPDATE
        SET name = excluded.name, build = excluded.build, entry = excluded.entry, recorded_at = excluded.recorded_at
    """
    if env is not None:
        sql += ", env = excluded.env"
    if source is not None:
        sql += ", source = excluded.source"
    return sql, (identity, name, build, entry, env or b"{}", source or "", at, environment)


def forget(environment: str, identity: str) -> Step:
    return "DELETE FROM state_resources WHERE environment = ? AND identity = ?", (environment, identity)
