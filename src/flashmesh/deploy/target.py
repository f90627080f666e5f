"""Where endpoints run, as whoever deploys sees it: a port with one implementation for each kind of place."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.project.manifest import EndpointAddress
from flashmesh.project.model import Project, ResourceSpec


class DeployFailed(FlashmeshError):
    """A resource could not be brought up. What served before goes on; mend the cause and run `flash deploy` again."""

    code = "DEPLOY_FAILED"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Deployable:
    """One resource of one build, ready to be served in one environment."""

    endpoint: EndpointName
    """The endpoint's id: the same for the resource's whole life in this environment."""
    app: str
    environment: str
    resource: ResourceSpec
    """With the environment's values in `config.env`."""
    project: Project
    """Its root is the unpacked, read-only build folder."""
    build: BuildId
    """What workers run: its configuration, its sources and its environment's values."""
    manifest: Path
    """The environment's manifest on this machine, which its workers route calls by."""
    address: str | None = None
    """The URL it had before, which it keeps; None the first time."""
    allow_cpu: bool = False
    """Serve it also where the GPU it declares is not: on another one, or without."""
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Variables its workers get below the resource's own: FLASH_SERVER, FLASH_ENV, …"""


class Target(Protocol):
    """One kind of place. Calls for different endpoints may run at once; those for one endpoint come one by one."""

    async def deploy(self, wanted: Deployable) -> EndpointAddress:
        """Serve it, or serve this build of it instead of the one before.

        Returns when this build takes calls. Calls that run or wait meanwhile lose nothing: the build before goes on
        until this one is ready, and then finishes what it runs.

        Raises:
            DeployFailed: with the reason for people; what served before serves on, and a first deploy leaves nothing.
        """
        ...

    async def resize(self, wanted: Deployable) -> EndpointAddress:
        """Take over other worker counts without replacing a worker."""
        ...

    async def adopt(self, wanted: Deployable) -> EndpointAddress:
        """After a start: go on with what may serve already, and restart nothing that runs this build.

        Raises DeployFailed when it cannot be served now, for example because its port is taken.
        """
        ...

    async def remove(self, endpoint: EndpointName) -> None:
        """Serve it no longer. Running calls may finish, which is waited for as long as its drain limit. Idempotent."""
        ...
