"""One endpoint as the local target keeps it: state, which the target alone changes, and what its template is told."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Literal

from flashmesh.deploy.local.gpus import Devices
from flashmesh.deploy.local.placed import Placed
from flashmesh.deploy.local.plans import requirements_of
from flashmesh.deploy.local.rollout import Rollout
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.queueing.ports import WorkerPort
from flashmesh.wire.frames import Cancel, Hello, Scale, Update
from flashmesh.worker.keeper.client import EndpointSockets
from flashmesh.worker.spec import WorkerSpec

Stage = Literal["", "building", "starting", "warm"]
"""What is under way before the first worker is there; warm = the template is connected."""


class Hosted:
    """One declared endpoint and what is known of its template."""

    def __init__(
        self, resource: ResourceSpec, project: Project, build: BuildId, *, placed: Placed | None = None
    ) -> None:
        """`placed`: of a deployed one, whose resource has the endpoint's id for its name."""
        self.resource = resource
        self.project = project
        self.build = build
        self.placed = placed
        self.generation = 1
        self.last_generation = 1
        """The highest that was ever offered to a template; one that came to nothing is not given again."""
        self.sockets: EndpointSockets | None = None
        self.prepared: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        """The requirements that `site_dirs` were made for."""
        self.site_dirs: list[Path] = []
        self.spec: WorkerSpec | None = None
        """What its template was given last, as far as it serves that."""
        self.rollout: Rollout | None = None
        """Another build of it, on its way to being served."""
        self.untold = False
        """Its limits were changed while its template was not connected."""
        self.starting: asyncio.Task[None] | None = None
        self.running = False
        """The keeper has a template for it."""
        self.port: WorkerPort | None = None
        self.wanted = 0
        self.devices: Devices | None = None
        self.closing = False

    def next_generation(self) -> int:
        self.last_generation += 1
        return self.last_generation

    def successor(self, resource: ResourceSpec, project: Project, build: BuildId, placed: Placed | None) -> "Hosted":
        """The same endpoint with another build, not served yet: in its place, at its address, with its GPUs."""
        if placed is not None and self.tcp is not None:
            placed = dataclasses.replace(placed, tcp=self.tcp)
        other = Hosted(resource, project, build, placed=placed)
        other.generation = self.next_generation()
        other.sockets, other.devices = self.sockets, self.devices
        other.prepared, other.site_dirs = self.prepared, self.site_dirs
        return other

    def become(self, other: "Hosted", spec: WorkerSpec) -> None:
        """Serve from now on what `other` is."""
        self.resource, self.project, self.build, self.placed = other.resource, other.project, other.build, other.placed
        self.generation, self.devices = other.generation, other.devices
        self.prepared, self.site_dirs = other.prepared, other.site_dirs
        self.spec = spec

    def linked(self, hello: Hello, port: WorkerPort) -> None:
        """Its template has connected: tell it what it has not heard yet."""
        self.port = port
        self.running = True
        spec = self.spec if self.rollout is None else self.rollout.spec
        if spec is not None and (self.untold or (hello.build, hello.incarnation) != (spec.build, spec.generation)):
            port.send(Update(spec.to_dict()))
            self.untold = False
        if self.wanted:
            port.send(Scale(self.wanted))

    def tell(self) -> bool:
        """Give its template what it is to serve. False: none is connected, or there is nothing to give."""
        if self.port is None or self.spec is None:
            return False
        self.port.send(Update(self.spec.to_dict()))
        return True

    def scale(self, workers: int) -> None:
        """So many are wanted; its template hears of it now, or when it connects."""
        self.wanted = workers
        if self.port is not None:
            self.port.send(Scale(workers))

    def cancel(self, execution: ExecutionId) -> None:
        """Have its template stop the worker that runs it."""
        if self.port is not None:
            self.port.send(Cancel(execution))

    @property
    def name(self) -> EndpointName:
        return self.resource.name

    def opened(self, sockets: EndpointSockets) -> None:
        """It has these. A port that the system chose is its own from now on."""
        self.sockets = sockets
        if self.placed is not None and sockets.tcp is not None:
            self.placed = dataclasses.replace(self.placed, tcp=sockets.tcp)

    @property
    def tcp(self) -> tuple[str, int] | None:
        """The TCP address it is to have."""
        return None if self.placed is None else self.placed.tcp

    @property
    def requirements(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Of the resource and its functions; of the project."""
        return requirements_of(self.resource), self.project.requirements

    @property
    def drain_s(self) -> float:
        """How long its running calls may take to finish when it has to leave."""
        return 30.0 if self.spec is None else self.spec.drain_limit_s
