"""Builds what runs functions on this machine: queues, the local target, environments and volumes."""

import asyncio
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from flashmesh.deploy.local import gpus
from flashmesh.deploy.local.deployed import LocalDeployments, Standing
from flashmesh.deploy.local.environments import Environments
from flashmesh.deploy.local.place import SessionPlace, keeper_directory, kept_directory
from flashmesh.deploy.local.ports import StartKeeper
from flashmesh.deploy.local.target import LocalTarget
from flashmesh.deploy.local.volumes import Volumes
from flashmesh.executions.store import Store
from flashmesh.kit.home import flash_home
from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import EventLog, LoopClock, WorkerPort
from flashmesh.wire.frames import Hello
from flashmesh.worker.keeper.child import KeeperChild
from flashmesh.worker.keeper.client import Keeper, KeeperEvent
from flashmesh.worker.keeper.detached import KeeperPlace


def end_kept(pointer: Path) -> bool:
    """End, at once, the endpoints that outlived a server which kept its place at `pointer`. Whether there were any.

    Their processes may take a moment more to see that the keeper is gone.
    """
    directory = kept_directory(pointer)
    if directory is None:
        return False
    ended = KeeperPlace(keeper_directory(directory)).kill()
    shutil.rmtree(directory, ignore_errors=True)
    pointer.unlink(missing_ok=True)
    return ended


def keeps_endpoints(pointer: Path) -> bool:
    """Whether the server that has its place at `pointer` lets its endpoints outlive it."""
    return kept_directory(pointer) is not None


def end_deployed(pointer: Path) -> bool:
    """End, at once, endpoints of deployments whose server is gone. They return, at their addresses, with the next one.

    Whether there were any. `pointer` is the file that names their place.
    """
    directory = kept_directory(pointer)
    return directory is not None and KeeperPlace(keeper_directory(directory)).kill()


def has_kept(place: Path) -> bool:
    """Whether endpoints that outlived their server may serve in `place`."""
    return KeeperPlace(keeper_directory(place)).running() is not None


class NoWorkers:
    """The dispatcher's source of workers until the target is made, which needs the dispatcher."""

    def ensure(self, endpoint: EndpointName) -> None: ...

    def scale(self, endpoint: EndpointName, workers: int) -> None: ...

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None: ...

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None: ...

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None: ...


@dataclasses.dataclass(frozen=True, slots=True)
class LocalParts:
    """What a program runs functions with."""

    dispatcher: Dispatcher
    target: LocalTarget
    environments: Environments
    volumes: Volumes
    deployments: LocalDeployments | None
    """Endpoints of deployments, where the program has any."""


class Sources:
    """The dispatcher's one source of workers, where sessions and deployments have a target each."""

    def __init__(self, session: LocalTarget, deployments: LocalDeployments) -> None:
        self._session = session
        self._deployments = deployments

    def _of(self, endpoint: EndpointName) -> LocalTarget:
        return self._deployments.target_of(endpoint) or self._session

    def ensure(self, endpoint: EndpointName) -> None:
        self._of(endpoint).ensure(endpoint)

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        self._of(endpoint).scale(endpoint, workers)

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        self._of(endpoint).template_linked(endpoint, hello, port)

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        self._of(endpoint).template_unlinked(endpoint, port)

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        self._of(endpoint).cancel(endpoint, execution)


def _none() -> None:
    return None


def local_parts(
    *,
    store: Store,
    place: SessionPlace,
    project_root: Path | None,
    install: bool,
    notice: Callable[[str, str], None],
    log: EventLog,
    home: Path | None = None,
    keeps_endpoints: bool = False,
    begun: Callable[[], KeeperChild | None] = _none,
    standing: Standing | None = None,
) -> LocalParts:
    """Queues, target, environments and volumes of one program. Starts no process.

    Args:
        project_root: whose own requirements count; None where no project is served.
        install: whether missing packages may be installed.
        notice: told an endpoint's name and a line for people to read.
        home: default `$FLASH_HOME`.
        keeps_endpoints: whether the keeper outlives this process, and is taken over where one is.
        begun: gives, once, a keeper's process that was started already.
        standing: what deployments stand on; None: the program has none.
    """
    home = home or flash_home()
    dispatcher = Dispatcher(store=store, clock=LoopClock(asyncio.get_running_loop()), source=NoWorkers(), log=log)
    environments = Environments(home, on_progress=notice, allow_install=install, project_root=project_root)
    volumes = Volumes(home, on_note=lambda line: notice("", line))

    async def start_keeper(on_event: Callable[[KeeperEvent], None]) -> Keeper:
        if keeps_endpoints:
            return await Keeper.adopt_or_start(keeper_directory(place.directory), on_event)
        child = begun()
        if child is not None:
            return await Keeper.take(child, on_event)
        return await Keeper.start(place.pipe_fd, place.directory, on_event)

    def make_target(place: SessionPlace, start: StartKeeper) -> LocalTarget:
        return LocalTarget(
            runtime_dir=place.directory,
            start_keeper=start,
            dispatcher=dispatcher,
            link_path=place.link,
            manifest_path=place.manifest,
            environments=environments,
            volumes=volumes,
            gpus=gpus.detect,
            notice=notice,
            log=log,
            key_file=place.key_file,
            install=install,
        )

    def make_deployed(place: SessionPlace) -> LocalTarget:
        return make_target(place, lambda on_event: Keeper.adopt_or_start(keeper_directory(place.directory), on_event))

    target = make_target(place, start_keeper)
    deployments = None if standing is None else LocalDeployments(standing, make_deployed)
    dispatcher.source = target if deployments is None else Sources(target, deployments)
    return LocalParts(dispatcher, target, environments, volumes, deployments)
