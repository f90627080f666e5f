"""What the State Manager tells: questions to what is committed."""

from typing import Any

from flashmesh.gateway.database import Database
from flashmesh.gateway.state import rows
from flashmesh.gateway.state.naming import not_found
from flashmesh.gateway.state.records import (
    App,
    AppNotFound,
    Build,
    BuildNotFound,
    Deployment,
    DeploymentNotFound,
    Environment,
    EnvironmentId,
    EnvironmentNotFound,
    Manifest,
    Progress,
    Served,
)
from flashmesh.gateway.state.scope import Holder, Scope, find_scope
from flashmesh.gateway.state.view import PER_RESOURCE, deployed_manifest


class StateReader:
    """Everything is called on the event loop's thread, and blocks it for well under a millisecond; a manifest of a
    hundred resources takes three."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Apps

    def apps(self) -> list[App]:
        """All, by name."""
        return [rows.app(row) for row in self._read(f"{rows.APPS} ORDER BY name")]

    def app(self, name: str) -> App:
        """Raises AppNotFound."""
        for row in self._read(f"{rows.APPS} WHERE name = ?", name):
            return rows.app(row)
        raise not_found(AppNotFound, "There is no app", name, [app.name for app in self.apps()])

    def app_of_id(self, id: str) -> App:
        """Raises AppNotFound."""
        for row in self._read(f"{rows.APPS} WHERE id = ?", id):
            return rows.app(row)
        raise AppNotFound(f"There is no app with the id {id!r}. `flash app list` shows them.")

    # Environments

    def environments(self, app: str | None = None) -> list[Environment]:
        """Those of one app, or of all; by app and name. Raises AppNotFound."""
        if app is None:
            return [rows.environment(row) for row in self._read(f"{rows.ENVIRONMENTS} ORDER BY a.name, e.name")]
        id = self.app(app).id
        found = self._read(f"{rows.ENVIRONMENTS} WHERE e.app = ? ORDER BY e.name", id)
        return [rows.environment(row) for row in found]

    def environment(self, app: str, name: str) -> Environment:
        """Raises AppNotFound, EnvironmentNotFound."""
        for row in self._read(f"{rows.ENVIRONMENTS} WHERE a.name = ? AND e.name = ?", app, name):
            return rows.environment(row)
        known = [one.name for one in self.environments(app)]
        raise not_found(EnvironmentNotFound, f"The app {app!r} has no environment", name, known)

    def environment_of_id(self, id: str) -> Environment:
        """Raises EnvironmentNotFound."""
        for row in self._read(f"{rows.ENVIRONMENTS} WHERE e.id = ?", id):
            return rows.environment(row)
        raise EnvironmentNotFound(f"There is no environment with the id {id!r}. `flash env list` shows them.")

    # Builds

    def builds(self, app: str) -> list[Build]:
        """Newest first. Raises AppNotFound."""
        id = self.app(app).id
        found = self._read(f"{rows.BUILDS} WHERE b.app = ? ORDER BY b.created_at DESC, b.id", id)
        return [rows.build(row) for row in found]

    def build(self, app: str, id: str) -> Build:
        """Raises AppNotFound, BuildNotFound."""
        for row in self._read(f"{rows.BUILDS} WHERE a.name = ? AND b.id = ?", app, id):
            return rows.build(row)
        known = [one.id for one in self.builds(app)]
        raise not_found(BuildNotFound, f"The app {app!r} has no build", id, known)

    def builds_of_id(self, id: str) -> list[Build]:
        """The build, for each app that has it: equal sources are one build."""
        return [rows.build(row) for row in self._read(f"{rows.BUILDS} WHERE b.id = ? ORDER BY a.name", id)]

    def build_manifest(self, app: str, id: str) -> Manifest:
        """As it was built. Raises AppNotFound, BuildNotFound, StateDamaged."""
        self.build(app, id)
        [(data,)] = self._read(
            "SELECT b.manifest FROM state_builds b JOIN state_apps a ON a.id = b.app WHERE a.name = ? AND b.id = ?",
            app,
            id,
        )
        return rows.decoded(data, "state_builds", f"{app}/{id}")

    def published(self, app: str, id: str) -> Manifest | None:
        """What a client of Flash's wrote over the build's manifest. Raises StateDamaged."""
        for (data,) in self._read(
            "SELECT b.published FROM state_builds b JOIN state_apps a ON a.id = b.app WHERE a.name = ? AND b.id = ?",
            app,
            id,
        ):
            return None if data is None else rows.decoded(data, "state_builds", f"{app}/{id}")
        return None

    # Deployments

    def running(self, app: str, environment: str) -> Deployment | None:
        """The deployment of that environment that runs. Raises AppNotFound, EnvironmentNotFound."""
        running = self.environment(app, environment).running
        return None if running is None else self.deployment(running)

    def deployment(self, id: str) -> Deployment:
        """Raises DeploymentNotFound."""
        for row in self._read(f"{rows.DEPLOYMENTS} WHERE d.id = ?", id):
            return rows.deployment(row)
        raise DeploymentNotFound(f"There is no deployment {id!r}, or it is too old to be remembered.")

    def deployments(self, app: str, environment: str) -> list[Deployment]:
        """Newest first. Raises AppNotFound, EnvironmentNotFound."""
        id = self.environment(app, environment).id
        found = self._read(f"{rows.DEPLOYMENTS} WHERE d.environment = ? ORDER BY d.number DESC", id)
        return [rows.deployment(row) for row in found]

    def unfinished(self) -> list[Deployment]:
        """Those that run; after a start, those that a crash cut short. Oldest first."""
        found = self._read(f"{rows.DEPLOYMENTS} WHERE d.status = 'running' ORDER BY d.started_at, d.id")
        return [rows.deployment(row) for row in found]

    def wanted(self, deployment: str) -> Manifest | None:
        """What shall serve when it is done. Raises DeploymentNotFound, StateDamaged."""
        for (data,) in self._read("SELECT wanted FROM state_deployments WHERE id = ?", deployment):
            return None if data is None else rows.decoded(data, "state_deployments", deployment)
        raise DeploymentNotFound(f"There is no deployment {deployment!r}, or it is too old to be remembered.")

    def wanted_env(self, deployment: str) -> dict[str, dict[str, str]]:
        """Its values of environment variables, by identity: for who deploys. Raises DeploymentNotFound."""
        for (data,) in self._read("SELECT env FROM state_deployments WHERE id = ?", deployment):
            return rows.decoded(data, "state_deployments", deployment)
        raise DeploymentNotFound(f"There is no deployment {deployment!r}, or it is too old to be remembered.")

    def progress_of(self, deployment: str) -> list[Progress]:
        """By resource."""
        sql = "SELECT resource, state, error, at FROM state_progress WHERE deployment = ? ORDER BY resource"
        return [rows.progress(row) for row in self._read(sql, deployment)]

    # What serves

    def served(self, environment: EnvironmentId) -> list[Served]:
        """What is recorded for an environment, by identity. Raises StateDamaged."""
        found = self._read(f"{rows.RESOURCES} WHERE environment = ? ORDER BY identity", environment)
        return [rows.served(row) for row in found]

    def served_env(self, environment: EnvironmentId, identity: str) -> dict[str, str]:
        """Values of environment variables that a resource serves with: for who starts its workers."""
        sql = "SELECT env FROM state_resources WHERE environment = ? AND identity = ?"
        for (data,) in self._read(sql, environment, identity):
            return rows.decoded(data, "state_resources", identity)
        return {}

    def manifest(self, app: str, environment: str) -> dict[str, Any]:
        """The manifest of what serves. Raises AppNotFound, EnvironmentNotFound, StateDamaged."""
        place = self.environment(app, environment)
        sql = """
            SELECT id, wanted FROM state_deployments WHERE environment = ? AND build IS NOT NULL
            ORDER BY (status = 'succeeded') DESC, number DESC LIMIT 1
        """
        common: dict[str, Any] = {}
        for id, wanted in self._read(sql, place.id):
            if wanted is not None:
                common = rows.partly(wanted, "state_deployments", id, PER_RESOURCE)
        return deployed_manifest(
            app=app, environment=environment, build=place.build, common=common, served=self.served(place.id)
        )

    def scope(self, app: str | None, environment: str | None, holder: Holder | None = None) -> Scope:
        """Which environment a request means. Raises AppNotFound, EnvironmentNotFound, OutOfScope, ScopeAmbiguous."""
        known: dict[str, list[str]] = {one.name: [] for one in self.apps()}
        for one in self.environments():
            known[one.app].append(one.name)
        return find_scope(known, app, environment, holder)

    def _read(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._database.read(sql, parameters)
