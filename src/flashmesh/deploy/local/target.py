"""Endpoints on this machine: declared at once, started when a call needs them, replaced when their files change.

The target turns resources into plans for the dispatcher and specs for templates, and is the dispatcher's source of
workers. Declaring opens an endpoint's sockets and starts nothing. The first call builds the environment its functions
declare, which nothing else does, and starts the template; progress is told on the way. An update goes to the running
template, which rolls over by itself; only when packages must be installed first does the old template leave, so that
the next call can build its environment. Endpoints that an earlier server left serving are taken over as they are
declared; what is not declared again is ended.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flashmesh.deploy.local.gpu_desk import GpuDesk
from flashmesh.deploy.local.gpus import Gpu
from flashmesh.deploy.local.hosted import Hosted, Stage
from flashmesh.deploy.local.inherited import Inherited, devices_of, gpus_of
from flashmesh.deploy.local.keeper_desk import KeeperDesk
from flashmesh.deploy.local.offering import offer
from flashmesh.deploy.local.placed import Placed
from flashmesh.deploy.local.plans import Surroundings, endpoint_plan, gives_up
from flashmesh.deploy.local.ports import EnvironmentsPort, StartKeeper, VolumesPort
from flashmesh.deploy.local.provisions import Provisions, lacking_system_packages
from flashmesh.deploy.local.system import install_command
from flashmesh.functions.errors import EndpointUnavailable, FlashmeshError
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId
from flashmesh.kit.tasks import Tasks
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import EventLog, WorkerPort
from flashmesh.wire.frames import Hello
from flashmesh.worker.keeper.client import (
    EndpointSockets,
    KeeperEvent,
    KeeperLost,
    KeptEndpoint,
    TemplateExited,
    TemplateWanted,
)
from flashmesh.worker.spec import WorkerSpec


class LocalTarget:
    """A WorkerSource. Everything happens on the session's event loop."""

    def __init__(
        self,
        *,
        runtime_dir: Path,
        start_keeper: StartKeeper,
        dispatcher: Dispatcher,
        link_path: Path,
        manifest_path: Path,
        environments: EnvironmentsPort,
        volumes: VolumesPort,
        gpus: Callable[[], tuple[Gpu, ...]],
        notice: Callable[[str, str], None],
        log: EventLog,
        key_file: Path | None = None,
        install: bool = True,
    ) -> None:
        """Args:
        runtime_dir: the session's private folder; sockets stand in `endpoints/` below it.
        start_keeper: starts a keeper that reports to the function it is given; called again when one is lost.
        gpus: finds this machine's GPUs; asked once, when the first GPU resource starts.
        notice: told an endpoint's name and a line for people to read.
        install: whether `environments` may install anything.
        """
        self._dispatcher = dispatcher
        self._provisions = Provisions(
            environments=environments,
            volumes=volumes,
            surroundings=Surroundings(link=link_path, manifest=manifest_path, key_file=key_file),
            install=install,
        )
        self._log = log
        self._endpoints: dict[EndpointName, Hosted] = {}
        self._inherited = Inherited()
        self._desk = GpuDesk(
            detect=gpus,
            endpoints=self._endpoints,
            inherited=self._inherited,
            free_one=self._free_an_idle_gpu,
            notice=notice,
        )
        self._keeper = KeeperDesk(
            socket_dir=runtime_dir / "endpoints",
            start=lambda: start_keeper(self.keeper_event),
            inherited=self._inherited,
            log=log,
        )
        self._tasks = Tasks()
        self._leaving: dict[EndpointName, asyncio.Task[None]] = {}
        self._closed = False

    # What the session says

    async def declare(
        self, resource: ResourceSpec, project: Project, build: BuildId, *, placed: Placed | None = None
    ) -> None:
        """Serve a resource: tell the dispatcher and open its sockets. Starts no template."""
        await self.left(resource.name)
        endpoint = self._endpoints[resource.name] = Hosted(resource, project, build, placed=placed)
        self._declare_plan(endpoint)
        try:
            await self._keeper.open(endpoint)
            await self._take_over(endpoint)
        except EndpointUnavailable as error:
            self._dispatcher.fail_endpoint(resource.name, error)  # the first call tries again

    async def update(self, resource: ResourceSpec, project: Project, build: BuildId) -> None:
        """Serve another build of a declared resource. Returns when the template knows, not when it has rolled over."""
        endpoint = self._endpoints.get(resource.name)
        if endpoint is None:
            await self.declare(resource, project, build)
            return
        endpoint.resource, endpoint.project, endpoint.build = resource, project, build
        endpoint.generation = endpoint.next_generation()
        self._declare_plan(endpoint)
        if endpoint.spec is not None:
            await self._roll(endpoint)

    async def roll_out(self, resource: ResourceSpec, project: Project, build: BuildId, placed: Placed) -> None:
        """Serve another build of a declared resource once it has proved itself; until then what serves goes on.

        Returns when it takes the calls.

        Raises:
            DeployFailed: why it does not; what served serves on. Other FlashmeshErrors: it could not even be tried.
        """
        endpoint = self._endpoints[resource.name]
        while endpoint.starting is not None:
            await asyncio.wait((endpoint.starting,))
        candidate = endpoint.successor(resource, project, build, placed)
        await self._provisions.prepare(candidate)
        await self._desk.reserve(candidate)
        spec = self._provisions.spec(candidate)
        try:
            await offer(endpoint, spec, start=self._start_trial)
        except BaseException:
            if not endpoint.running:
                self._dispatcher.template_lost(endpoint.name)  # who waits may have what served before started
            raise
        endpoint.become(candidate, spec)
        self._declare_plan(endpoint)
        self._stage(endpoint, "warm")
        await self._keeper.remember(endpoint)

    async def _start_trial(self, endpoint: Hosted, spec: WorkerSpec) -> None:
        await self._keeper.open(endpoint)
        endpoint.running = True
        await self._keeper.start_template(spec, trial=True)

    async def resize(self, resource: ResourceSpec) -> None:
        """Take over other worker counts of a declared resource. No worker is replaced by another."""
        endpoint = self._endpoints[resource.name]
        endpoint.resource = resource
        self._declare_plan(endpoint)
        if endpoint.spec is None:
            return
        endpoint.spec = dataclasses.replace(endpoint.spec, config=resource.config.to_dict())
        endpoint.untold = not endpoint.tell()
        await self._keeper.remember(endpoint)
        if resource.config.workers_min > 0:
            self.ensure(resource.name)

    async def open(self, name: EndpointName) -> None:
        """See to it that a declared endpoint has its sockets; one that could not be had is tried for again."""
        await self._keeper.open(self._endpoints[name])

    async def settle(self, name: EndpointName) -> None:
        """After an endpoint was declared that may have served before: see to it that peers can start it.

        A template that runs its build goes on; what the next one is given is as it would be made now.
        """
        endpoint = self._endpoints[name]
        gpus = endpoint.resource.config.gpus and endpoint.devices is None and await self._desk.gpus()
        if self._provisions.to_install(endpoint) or gpus:
            return  # which this process has to see to, at the first call
        await self._provisions.prepare(endpoint)
        before, spec = endpoint.spec, self._provisions.spec(endpoint)
        endpoint.spec = spec
        await self._keeper.remember(endpoint)
        if before is not None and before.config != spec.config:
            await self.resize(endpoint.resource)
        if endpoint.resource.config.workers_min > 0:
            self.ensure(name)

    async def remove(self, name: EndpointName) -> None:
        """Serve it no longer. What runs may finish, which is not waited for."""
        endpoint = self._endpoints.pop(name, None)
        if endpoint is None:
            return
        endpoint.closing = True
        self._dispatcher.withdraw(name)
        if endpoint.starting is not None:
            endpoint.starting.cancel()
        task = self._leaving[name] = self._tasks.begin(self._take_down(endpoint))
        task.add_done_callback(lambda _: self._leaving.pop(name, None))

    async def left(self, name: EndpointName) -> None:
        """Wait until an endpoint that was removed is gone."""
        leaving = self._leaving.get(name)
        if leaving is not None:
            await asyncio.wait((leaving,))

    def hosted(self, name: EndpointName) -> Hosted | None:
        """What is declared under that name."""
        return self._endpoints.get(name)

    async def end_undeclared(self) -> None:
        """Let endpoints that an earlier server kept, and that nobody has declared again, finish what they run and go.

        Their end is not waited for. Starts a keeper where none runs.
        """
        await self._keeper.started()
        for kept in self._inherited:
            self._log("endpoint_ended", {"endpoint": kept.endpoint, "reason": "it is not declared any more"})
            self._tasks.begin(self._end_inherited(kept))

    async def gpus(self) -> tuple[Gpu, ...]:
        """This machine's GPUs."""
        return await self._desk.gpus()

    def prestart(self, name: EndpointName) -> bool:
        """Start its template ahead of the first call. False: it is unknown, or its packages must be installed first,
        which only a call may ask for."""
        endpoint = self._endpoints.get(name)
        if endpoint is None:
            return False
        if self._provisions.to_install(endpoint):
            return False
        self.ensure(name)
        return True

    async def prepare(self, name: EndpointName) -> None:
        """Build its environment now, because somebody asked for that. Raises EnvironmentFailed."""
        endpoint = self._endpoints.get(name)
        if endpoint is not None:
            await self._provisions.prepare(endpoint)

    def sockets(self) -> Mapping[str, EndpointSockets]:
        """Where peers reach each declared endpoint."""
        return {name: endpoint.sockets for name, endpoint in self._endpoints.items() if endpoint.sockets is not None}

    async def close(self, drain_s: float, *, keep: bool = False) -> None:
        """End every template, giving running calls at most `drain_s` seconds, then the keeper.

        keep: let everything serve on instead, where the keeper outlives this process.
        """
        self._closed = True
        await self._tasks.close()
        await self._keeper.close(drain_s=drain_s, keep=keep)

    # What the dispatcher says

    def ensure(self, endpoint: EndpointName) -> None:
        found = self._endpoints.get(endpoint)
        if found is None or self._closed or found.running or found.starting is not None or found.rollout is not None:
            return
        found.starting = self._tasks.begin(self._start(found))

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        found = self._endpoints.get(endpoint)
        if found is not None:
            found.scale(workers)

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        found = self._endpoints.get(endpoint)
        if found is not None:
            found.cancel(execution)

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        found = self._endpoints.get(endpoint)
        if found is None or found.closing:
            return
        self._stage(found, "warm")
        found.linked(hello, port)

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        found = self._endpoints.get(endpoint)
        if found is not None and found.port is port:
            found.port = None

    def template_said(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        """What a template said at READY, as in frames.Ready. Whoever has the link passes it on."""
        found = self._endpoints.get(endpoint)
        if found is not None and found.rollout is not None:
            found.rollout.hear(info)

    # What the keeper says

    def keeper_event(self, event: KeeperEvent) -> None:
        """Templates that ended or are wanted, and the keeper's own end."""
        if self._closed:
            return
        if isinstance(event, KeeperLost):
            self._keeper_lost()
            return
        endpoint = self._endpoints.get(EndpointName(event.endpoint))
        if endpoint is None:
            return
        if isinstance(event, TemplateWanted):
            if event.started:
                endpoint.running = True
            else:
                self.ensure(endpoint.name)
        else:
            self._template_exited(endpoint, event)

    def _template_exited(self, endpoint: Hosted, event: TemplateExited) -> None:
        self._forget_template(endpoint)
        if event.reason:
            self._log("template_exited", {"endpoint": endpoint.name, "status": event.status, "reason": event.reason})
        if endpoint.rollout is not None:
            endpoint.rollout.template_exited(event)
        if gives_up(event.status, event.failures):
            message = f"{endpoint.name} cannot be started: {event.reason or 'its template keeps ending'}"
            self._dispatcher.fail_endpoint(endpoint.name, EndpointUnavailable(f"{message}. `flash logs` tells more"))
        else:
            self._dispatcher.template_lost(endpoint.name)

    def _forget_template(self, endpoint: Hosted) -> None:
        endpoint.running = False
        endpoint.port = None
        endpoint.wanted = 0
        if endpoint.starting is not None:
            return  # the next one is on its way already
        if endpoint.devices is not None:
            endpoint.devices = None
            self._desk.freed.set()
        self._stage(endpoint, "")

    def _keeper_lost(self) -> None:
        """Its templates are draining. Sockets are opened anew at once, because peers know only those."""
        self._keeper.lost()
        self._inherited.clear()
        self._log("keeper_lost", {"endpoints": len(self._endpoints)})
        for endpoint in self._endpoints.values():
            self._forget_template(endpoint)
            if endpoint.rollout is not None:
                endpoint.rollout.template_exited(TemplateExited(endpoint.name, 0, 0))
        self._tasks.begin(self._reopen())

    async def _reopen(self) -> None:
        for endpoint in list(self._endpoints.values()):
            try:
                await self._keeper.open(endpoint)
                if endpoint.spec is not None:
                    await self._keeper.tell(endpoint.spec)
            except FlashmeshError as error:
                self._dispatcher.fail_endpoint(endpoint.name, error)
            else:
                self._dispatcher.template_lost(endpoint.name)

    # Acting

    async def _take_over(self, endpoint: Hosted) -> None:
        """Go on with what an earlier server left: a template and its GPUs, if one runs. It gets the build of now."""
        kept = self._inherited.take(endpoint.name)
        if kept is None or kept.spec is None:
            return
        unheard = endpoint.sockets is not None and endpoint.sockets.tcp_unknown
        endpoint.running = kept.template_pid != 0 and not unheard
        if gpus_of(kept):
            endpoint.devices = devices_of(kept, await self._desk.gpus())
        endpoint.generation = endpoint.last_generation = kept.spec.generation
        endpoint.spec = kept.spec
        if kept.spec.build != endpoint.build:
            endpoint.generation = endpoint.next_generation()
            await self._roll(endpoint)

    async def _end_inherited(self, kept: KeptEndpoint) -> None:
        await self._keeper.close_kept(kept)
        self._inherited.take(EndpointName(kept.endpoint))
        self._desk.freed.set()

    async def _start(self, endpoint: Hosted) -> None:
        """Environment, spec, template. Whatever fails becomes the endpoint's failure."""
        try:
            await self._start_template(endpoint)
        except FlashmeshError as error:
            self._fail(endpoint, error)
        except Exception as error:
            self._log("start_failed", {"endpoint": endpoint.name, "reason": repr(error)})
            self._fail(endpoint, EndpointUnavailable(f"{endpoint.name} could not be started: {error}"))
        finally:
            endpoint.starting = None

    async def _start_template(self, endpoint: Hosted) -> None:
        lacking = await asyncio.to_thread(lacking_system_packages, endpoint.resource)
        if lacking:
            line = f"needs system packages that are missing here. Install them with: {install_command(lacking)}"
            self._desk.say_once(endpoint, line)
        while True:
            generation = endpoint.generation
            self._stage(endpoint, "building" if self._provisions.to_install(endpoint) else "starting")
            await self._provisions.prepare(endpoint)
            self._stage(endpoint, "starting")
            await self._desk.reserve(endpoint)
            if generation == endpoint.generation:
                break  # else it was saved again meanwhile: begin with what is there now
        await self._keeper.open(endpoint)
        spec = endpoint.spec = self._provisions.spec(endpoint)
        endpoint.running = True
        await self._keeper.start_template(spec)

    def _fail(self, endpoint: Hosted, error: FlashmeshError) -> None:
        endpoint.starting = None
        self._forget_template(endpoint)
        if not endpoint.closing:
            self._dispatcher.fail_endpoint(endpoint.name, error)

    async def _roll(self, endpoint: Hosted) -> None:
        """Give the running template the new build; or end it, when the new build's packages are not there yet."""
        if self._provisions.to_install(endpoint):
            if endpoint.running:
                self._tasks.begin(self._keeper.stop_template(endpoint))
            return
        await self._provisions.prepare(endpoint)
        endpoint.spec = self._provisions.spec(endpoint)
        await self._keeper.remember(endpoint)
        endpoint.tell()

    async def _take_down(self, endpoint: Hosted) -> None:
        if endpoint.starting is not None:
            await asyncio.wait((endpoint.starting,))
        await self._keeper.close_endpoint(endpoint)
        self._forget_template(endpoint)

    def _free_an_idle_gpu(self) -> None:
        """Ask an endpoint that holds GPUs and has nothing to do to leave."""
        load = {entry["name"]: entry["running"] + entry["queued"] for entry in self._dispatcher.status()["endpoints"]}
        for endpoint in self._endpoints.values():
            if endpoint.devices is not None and endpoint.running and not load.get(endpoint.name):
                self._tasks.begin(self._keeper.stop_template(endpoint))
                return

    # Bookkeeping

    def _declare_plan(self, endpoint: Hosted) -> None:
        self._dispatcher.declare(
            endpoint_plan(endpoint.resource, endpoint.build, by_name_only=endpoint.placed is not None)
        )

    def _stage(self, endpoint: Hosted, stage: Stage) -> None:
        self._dispatcher.stage(endpoint.name, stage)
