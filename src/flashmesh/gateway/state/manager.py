"""The State Manager: what is deployed, in the server's database.

Writes return when they are durable. The tables keep the rules (tables.py), so a write looks afterwards whether it was
made, and says why not. Whatever happens in between, a crash included, leaves the state before a write or the one after.

An environment's resources are recorded by their identity, which outlives their names: see `project/identity.py`.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping
from secrets import token_hex
from typing import Any, Final

from flashmesh.executions.sqlite.schema import damaged
from flashmesh.gateway.database import Database, durable
from flashmesh.gateway.state import rows, tables
from flashmesh.gateway.state.reader import StateReader
from flashmesh.gateway.state.records import (
    AlreadyExists,
    App,
    AppId,
    AppNotFound,
    Build,
    BuildNotFound,
    Deployment,
    DeploymentEnded,
    DeploymentId,
    DeploymentNotFound,
    DeploymentRunning,
    DeploymentStatus,
    Env,
    Environment,
    EnvironmentId,
    EnvironmentNotFound,
    Kind,
    Manifest,
    StillDeployed,
)
from flashmesh.project.appname import check_name

KEPT_DEPLOYMENTS: Final = 50
"""Of an environment: as far back as a rollback reaches. Each holds a manifest and its values: some 100 KB."""
UNUSED_BUILD_S: Final = 24 * 3600.0
"""How long a build is kept that nothing is deployed from: its deploy may be asked for after its upload."""


class StateManager(StateReader):
    """Everything is called on the event loop's thread.

    Writes raise, besides what they say: StoreUnavailable, NotStored (status 503): nothing was changed.

    Args:
        clock: seconds since the epoch.
    Raises:
        DatabaseDamaged: a row cannot be read; a copy of the database was made. Also DatabaseTooNew.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(database)
        self._clock = clock
        database.add_schema(tables.SCHEMA_NAME, tables.SCHEMA)
        problem = rows.damage(database)
        if problem is not None:
            raise damaged(database.path, problem)

    # Apps

    async def create_app(self, name: str) -> App:
        """Raises AlreadyExists, BadName."""
        check_name(name, what="app")
        app = App(id=AppId(_new_id("app")), name=name, created_at=self._clock())
        try:
            await self._write(tables.create_app(app.id, app.name, app.created_at))
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(f"There is an app {name!r} already. `flash app get {name}` shows it.") from error
        return app

    async def delete_app(self, name: str) -> None:
        """With its environments, builds and deployments. Raises AppNotFound, StillDeployed, DeploymentRunning."""
        app = self.app(name)
        await self._write(tables.delete_app(app.id), *tables.ORPHANS)
        if self._read(f"{rows.APPS} WHERE id = ?", app.id):
            raise self._still_deployed(self.environments(name), f"app {name!r}")

    # Environments

    async def create_environment(self, app: str, name: str) -> Environment:
        """Raises AppNotFound, AlreadyExists, BadName."""
        check_name(name, what="environment")
        id = _new_id("env")
        try:
            await self._write(tables.create_environment(id, self.app(app).id, name, self._clock()))
        except sqlite3.IntegrityError as error:
            raise AlreadyExists(f"The app {app!r} has an environment {name!r} already.") from error
        return self.environment(app, name)

    async def ensure(self, app: str, environment: str) -> Environment:
        """That environment; it and its app are made when they are not there."""
        check_name(environment, what="environment")
        await self.ensure_app(app)
        try:
            return self.environment(app, environment)
        except EnvironmentNotFound:
            pass
        try:
            return await self.create_environment(app, environment)
        except AlreadyExists:
            return self.environment(app, environment)

    async def ensure_app(self, name: str) -> App:
        """That app; it is made when it is not there."""
        try:
            return self.app(name)
        except AppNotFound:
            pass
        try:
            return await self.create_app(name)
        except AlreadyExists:
            return self.app(name)

    async def delete_environment(self, app: str, name: str) -> None:
        """With its deployments. Raises AppNotFound, EnvironmentNotFound, StillDeployed, DeploymentRunning."""
        environment = self.environment(app, name)
        await self._write(tables.delete_environment(environment.id), *tables.ORPHANS)
        left = self._read(f"{rows.ENVIRONMENTS} WHERE e.id = ?", environment.id)
        if left:
            raise self._still_deployed([rows.environment(row) for row in left], f"environment {environment.place!r}")

    def _still_deployed(self, environments: list[Environment], what: str) -> StillDeployed | DeploymentRunning:
        for one in environments:
            if one.running is not None:
                return DeploymentRunning(self.deployment(one.running))
        places = ", ".join(one.place for one in environments if one.resources)
        return StillDeployed(
            f"The {what} cannot be deleted while something is deployed there ({places}). "
            "Take it down with `flash undeploy --all`."
        )

    # Builds

    async def add_build(self, app: str, id: str, manifest: Manifest, *, bytes: int = 0) -> Build:
        """Keep a build's manifest; one that is there is brought up to date. Raises AppNotFound."""
        data = rows.encoded(manifest)
        await self._write(tables.add_build(self.app(app).id, id, data, bytes, self._clock()))
        return self.build(app, id)

    async def publish(self, app: str, id: str, manifest: Manifest) -> None:
        """Keep what a client of Flash's says about a build. What is deployed does not change by it.

        Raises AppNotFound, BuildNotFound.
        """
        await self._write(tables.publish(self.app(app).id, id, rows.encoded(manifest)))
        self.build(app, id)

    async def forget_builds(self) -> set[str]:
        """Forget builds that nothing is deployed from, nor could be rolled back to; the ids of those that are left."""
        await self._write(tables.forget_builds(self._clock() - UNUSED_BUILD_S))
        return {str(id) for (id,) in self._read("SELECT id FROM state_builds")}

    # Deployments

    async def begin(
        self,
        app: str,
        environment: str,
        build: str | None,
        *,
        kind: Kind = "deploy",
        wanted: Manifest | None = None,
        env: Env | None = None,
        source: str = "",
        by: str = "",
    ) -> Deployment:
        """A deployment that runs from now on: nobody else begins one of this environment until it is finished.

        Args:
            build: what it brings the environment to; None: an undeploy.
            wanted: what shall serve when it is done.
            env: values of environment variables, by resource identity.
            source: machine and directory it comes from.
            by: name of the token that asks for it.
        Raises:
            DeploymentRunning: it names the one that runs.
            AppNotFound, EnvironmentNotFound, BuildNotFound.
        """
        place = self.environment(app, environment)
        if build is not None:
            self.build(app, build)
        id = DeploymentId(_new_id("dep"))
        began = tables.begin(
            id,
            place.id,
            kind=kind,
            build=build,
            source=source,
            by=by,
            at=self._clock(),
            wanted=None if wanted is None else rows.encoded(wanted),
            env=rows.encoded(env or {}),
        )
        try:
            await self._write(began, tables.forget_deployments(place.id, KEPT_DEPLOYMENTS), tables.ORPHANS[-1])
        except sqlite3.IntegrityError as error:
            running = self.running(app, environment)
            if running is None:  # it ended meanwhile
                return await self.begin(
                    app, environment, build, kind=kind, wanted=wanted, env=env, source=source, by=by
                )
            raise DeploymentRunning(running) from error
        try:
            return self.deployment(id)
        except DeploymentNotFound:
            self.environment(app, environment)  # raises when it went meanwhile
            raise BuildNotFound(f"The build {build!r} was removed meanwhile. Deploy again.") from None

    async def progress(self, deployment: str, resource: str, state: str, error: str | None = None) -> None:
        """Where one of its resources stands from now on."""
        await self._write(tables.progress(deployment, resource, state, error, self._clock()))

    async def finish(self, deployment: str, status: DeploymentStatus, error: str | None = None) -> Deployment:
        """End it. Raises DeploymentNotFound, and DeploymentEnded when it had ended in another way."""
        await self._write(tables.finish(deployment, status, error, self._clock()))
        ended = self.deployment(deployment)
        if (ended.status, ended.error) != (status, error):
            raise DeploymentEnded(f"Deployment {ended.number} of {ended.place} has {ended.status} already.")
        return ended

    # What serves

    async def record(
        self,
        environment: EnvironmentId,
        identity: str,
        entry: Mapping[str, Any] | None,
        *,
        name: str = "",
        env: Mapping[str, str] | None = None,
        source: str | None = None,
    ) -> None:
        """One resource's result, as it happens.

        Args:
            entry: its entry of the deployed manifest; None: it serves no longer.
            name: its name in the manifest; default: what the entry says in `name`, else the identity.
            env: the values it serves with; None: those recorded before.
            source: where it was deployed from; None: what was recorded before.
        Raises:
            EnvironmentNotFound.
        """
        if entry is None:
            await self._write(tables.forget(environment, identity))
            return
        step = tables.record(
            environment,
            identity,
            name=name or str(entry.get("name") or identity),
            build=entry.get("build"),
            entry=rows.encoded(entry),
            env=None if env is None else rows.encoded(env),
            source=source,
            at=self._clock(),
        )
        await self._write(step)
        self.environment_of_id(environment)

    async def _write(self, *steps: tables.Step) -> None:
        await durable(self._database, *steps)


def _new_id(kind: str) -> str:
    return f"{kind}-{token_hex(6)}"
