"""From a resource's entry in a manifest to what a target can serve: its project, its values, its place."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from flashmesh.deploy.target import Deployable
from flashmesh.gateway.deployments.manifest_files import ManifestFiles
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import Environment, Manifest
from flashmesh.project.identity import endpoint_id, worker_build
from flashmesh.project.restored import project_of, with_env

_MOST_REMEMBERED: Final = 64
_PER_RESOURCE: Final = frozenset({"resources", "function_registry", "routes"})


class Folders(Protocol):
    """Where builds are unpacked: the artifact store."""

    async def unpacked(self, id: str) -> Path: ...


class Deployables:
    """Asks the State Manager for builds and the artifact store for their folders."""

    def __init__(
        self,
        *,
        state: StateManager,
        artifacts: Folders,
        manifests: ManifestFiles,
        server_url: str,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ`: variables that workers of every deployed endpoint get, below those of their place."""
        self._state = state
        self._artifacts = artifacts
        self._manifests = manifests
        self._server_url = server_url
        self._shared = dict(environ or {})
        self._common: dict[tuple[str, str], Manifest] = {}

    async def folder(self, build: str) -> Path:
        """The build's files. Raises what `ArtifactStore.unpacked` raises."""
        return await self._artifacts.unpacked(build)

    async def of(
        self,
        environment: Environment,
        identity: str,
        name: str,
        entry: Mapping[str, Any],
        *,
        build: str,
        values: Mapping[str, str],
        values_hash: str,
        address: str | None,
    ) -> Deployable:
        """One resource of one build in one environment.

        Args:
            entry: of a manifest; its settings count, whatever the build's own manifest says of worker counts.
            address: the URL it had before.
        Raises:
            BuildNotFound, ArtifactDamaged, DiskFull, ManifestInvalid, and what unpacking raises.
        """
        root = await self._artifacts.unpacked(build)
        project = project_of(self._alone(environment.app, build, name, entry), root)
        (resource,) = project.resources
        return Deployable(
            endpoint=endpoint_id(environment.app, environment.name, identity),
            app=environment.app,
            environment=environment.name,
            resource=with_env(resource, values),
            project=project,
            build=worker_build(str(entry["config_hash"]), values_hash),
            manifest=self._manifests.path(environment.app, environment.name),
            address=address,
            environ=self._environ(environment),
        )

    def _alone(self, app: str, build: str, name: str, entry: Mapping[str, Any]) -> Manifest:
        """The build's manifest with this resource only."""
        common = self._common.get((app, build))
        if common is None:
            if len(self._common) >= _MOST_REMEMBERED:
                self._common.clear()
            manifest = self._state.build_manifest(app, build)
            common = {field: value for field, value in manifest.items() if field not in _PER_RESOURCE}
            self._common[(app, build)] = common
        return {**common, "resources": {name: entry}}

    def _environ(self, environment: Environment) -> dict[str, str]:
        return self._shared | {
            "FLASH_SERVER": self._server_url,
            "FLASH_APP": environment.app,
            "FLASH_ENV": environment.name,
            "FLASH_ENVIRONMENT_ID": environment.id,
            "FLASH_STATE_MANAGER_URL": f"{self._server_url}/graphql",
        }
