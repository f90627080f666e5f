"""One endpoint as the local target keeps it. Plain state; the target alone changes it."""

import asyncio
from pathlib import Path
from typing import Literal

from flashmesh.deploy.local.gpus import Devices
from flashmesh.deploy.local.plans import requirements_of
from flashmesh.kit.ids import BuildId, EndpointName
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.queueing.ports import WorkerPort
from flashmesh.worker.keeper.client import EndpointSockets
from flashmesh.worker.spec import WorkerSpec

Stage = Literal["", "building", "starting", "warm"]
"""What is under way before the first worker is there; warm = the template is connected."""


class Hosted:
    """One declared endpoint and what is known of its template."""

    def __init__(self, resource: ResourceSpec, project: Project, build: BuildId) -> None:
        self.resource = resource
        self.project = project
        self.build = build
        self.generation = 1
        self.sockets: EndpointSockets | None = None
        self.prepared: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        """The requirements that `site_dirs` were made for."""
        self.site_dirs: list[Path] = []
        self.spec: WorkerSpec | None = None
        """What its template was given last."""
        self.starting: asyncio.Task[None] | None = None
        self.running = False
        """The keeper has a template for it."""
        self.port: WorkerPort | None = None
        self.wanted = 0
        self.devices: Devices | None = None
        self.closing = False

    @property
    def name(self) -> EndpointName:
        return self.resource.name

    @property
    def requirements(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the resource and its functions; of the project."""
        return requirements_of(self.resource), self.project.requirements

    @property
    def drain_s(self) -> float:
        """How long its running calls may take to finish when it has to leave."""
        return 30.0 if self.spec is None else self.spec.drain_limit_s
