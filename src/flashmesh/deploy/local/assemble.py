"""Builds what runs functions on this machine: queues, the local target, environments and volumes."""

import asyncio
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from flashmesh.deploy.local import gpus
from flashmesh.deploy.local.environments import Environments
from flashmesh.deploy.local.place import SessionPlace, kept_directory
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


def keeper_directory(place: Path) -> Path:
    """Where a keeper that outlives its server is found again."""
    return place / "keeper"


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
) -> LocalParts:
    """Queues, target, environments and volumes of one program. Starts no process.

    Args:
        project_root: whose own requirements count; None where no project is served.
        install: whether missing packages may be installed.
        notice: told an endpoint's name and a line for people to read.
        home: default `$FLASH_HOME`.
        keeps_endpoints: whether the keeper outlives this process, and is taken over where one is.
        begun: gives, once, a keeper's process that was started already.
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

    target = LocalTarget(
        runtime_dir=place.directory,
        start_keeper=start_keeper,
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
    dispatcher.source = target
    return LocalParts(dispatcher, target, environments, volumes)
