"""A local target between a real dispatcher and fakes of the keeper, the environments and the templates."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flashmesh.deploy.local.gpus import Gpu
from flashmesh.deploy.local.target import LocalTarget
from flashmesh.executions.memory import MemoryStore
from flashmesh.functions.config import ResourceConfig
from flashmesh.functions.errors import EndpointUnavailable, FlashmeshError
from flashmesh.kit.ids import BuildId, EndpointName, FunctionId
from flashmesh.project.model import FunctionSpec, MethodSpec, Project, ResourceSpec
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import LoopClock, WorkerPort, WorkerSource
from flashmesh.wire.frames import PROTOCOL_VERSION, AnyFrame, Error, Hello, Invoke, Result
from flashmesh.worker.keeper.client import EndpointSockets, KeeperEvent, KeeperLost, KeptEndpoint, TemplateExited
from flashmesh.worker.spec import WorkerSpec, reentrant_path


class FakeKeeper:
    """Starts nothing; remembers what it was asked."""

    def __init__(self, on_event: Callable[[KeeperEvent], None], kept: Sequence[KeptEndpoint] = ()) -> None:
        """`kept`: what it had when it was taken over."""
        self.on_event = on_event
        self.kept = list(kept)
        self.closing: asyncio.Event | None = None
        """Set when an endpoint that is closed has finished; None: at once."""
        self.opened: list[str] = []
        self.started: list[WorkerSpec] = []
        self.remembered: list[WorkerSpec] = []
        self.stopped: list[str] = []
        self.removed: list[str] = []
        self.closed_with: float | None = None
        self.refusal: FlashmeshError | None = None

    async def open(
        self, endpoint: str, socket_dir: Path, *, queue_size: int = 1000, tcp: tuple[str, int] | None = None
    ) -> EndpointSockets:
        self.opened.append(endpoint)
        path = str(socket_dir / f"{endpoint}.sock")
        return EndpointSockets(Path(path), Path(reentrant_path(path)))

    async def remember(self, spec: WorkerSpec) -> None:
        self.remembered.append(spec)

    async def start_template(self, spec: WorkerSpec, *, trial: bool = False) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.started.append(spec)
        return 4000 + len(self.started)

    async def stop_template(self, endpoint: str, *, drain_s: float = 30) -> None:
        self.stopped.append(endpoint)
        self.on_event(TemplateExited(endpoint, 1, 0))

    async def close_endpoint(self, endpoint: str, *, drain_s: float = 30) -> None:
        self.removed.append(endpoint)
        if self.closing is not None:
            await self.closing.wait()

    async def close(self, *, drain_s: float = 30, keep: bool = False) -> None:
        self.closed_with = drain_s

    def die(self) -> None:
        self.on_event(KeeperLost())


class FakeEnvironments:
    """What is missing is what a test says; `gate` holds an installation back."""

    def __init__(self) -> None:
        self.lacking: set[str] = set()
        self.prepared: list[tuple[str, ...]] = []
        self.error: FlashmeshError | None = None
        self.gate: asyncio.Event | None = None

    def missing(self, requirements: Sequence[str]) -> list[str]:
        return [line for line in requirements if line in self.lacking]

    async def prepare(
        self, requirements: Sequence[str], project_requirements: Sequence[str] = (), *, endpoint: str = ""
    ) -> list[Path]:
        self.prepared.append((*requirements, *project_requirements))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [Path("/env")] if self.missing(requirements) else []


class FakeVolumes:
    def arrange(self, config: ResourceConfig) -> dict[str, str]:
        return {"FLASH_VOLUME_PATH": "/volumes/v"} if config.volumes else {}


class FakePort:
    """A template's link."""

    def __init__(self) -> None:
        self.sent: list[AnyFrame] = []

    def send(self, frame: AnyFrame) -> None:
        self.sent.append(frame)

    def close(self) -> None: ...


class FakeClient:
    def __init__(self) -> None:
        self.answers: dict[str, Result | Error] = {}

    def send(self, frame: AnyFrame) -> None:
        if isinstance(frame, Result | Error):
            self.answers[frame.execution] = frame


class NoSource:
    """Until the target is there."""

    def ensure(self, endpoint: EndpointName) -> None: ...
    def scale(self, endpoint: EndpointName, workers: int) -> None: ...
    def cancel(self, endpoint: EndpointName, execution: Any) -> None: ...
    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None: ...
    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None: ...


class House:
    """Everything together, inside a running loop."""

    def __init__(
        self,
        folder: Path,
        *,
        gpus: tuple[Gpu, ...] = (),
        keeper_error: OSError | None = None,
        kept: Sequence[KeptEndpoint] = (),
    ) -> None:
        source: WorkerSource = NoSource()
        self.folder = folder
        self.client = FakeClient()
        self.keepers: list[FakeKeeper] = []
        self.keeper_error = keeper_error
        self.kept = kept
        self.environments = FakeEnvironments()
        self.notices: list[tuple[str, str]] = []
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.dispatcher = Dispatcher(
            store=MemoryStore(),
            clock=LoopClock(asyncio.get_running_loop()),
            source=source,
            log=lambda event, fields: self.events.append((event, fields)),
        )
        self.target = LocalTarget(
            runtime_dir=folder,
            start_keeper=self._start_keeper,
            dispatcher=self.dispatcher,
            link_path=folder / "link.sock",
            manifest_path=folder / "manifest.json",
            key_file=folder / "key",
            environments=self.environments,
            volumes=FakeVolumes(),
            gpus=lambda: gpus,
            notice=lambda endpoint, line: self.notices.append((endpoint, line)),
            log=lambda event, fields: self.events.append((event, fields)),
        )
        self.dispatcher.source = self.target

    async def _start_keeper(self, on_event: Callable[[KeeperEvent], None]) -> FakeKeeper:
        if self.keeper_error is not None:
            raise self.keeper_error
        kept, self.kept = self.kept, ()
        self.keepers.append(FakeKeeper(on_event, kept))
        return self.keepers[-1]

    @property
    def keeper(self) -> FakeKeeper:
        return self.keepers[-1]

    def call(self, execution: str, function: str = "m.f", *, kind: str = "sync") -> None:
        self.dispatcher.submit(Invoke(execution, function), self.client, kind="async" if kind == "async" else "sync")

    def link(self, build: str = "b1", endpoint: str = "m", *, generation: int = 1) -> FakePort:
        port = FakePort()
        hello = Hello(PROTOCOL_VERSION, "template", endpoint, build, incarnation=generation)
        self.target.template_linked(EndpointName(endpoint), hello, port)
        return port

    def state(self, endpoint: str = "m") -> str:
        return next(str(entry["state"]) for entry in self.dispatcher.status()["endpoints"] if entry["name"] == endpoint)

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - conditions of other objects, which have no event to wait for
                await asyncio.sleep(0.001)


def play(folder: Path, story: Callable[[House], Awaitable[None]], **house: Any) -> None:
    async def run() -> None:
        scene = House(folder, **house)
        try:
            async with asyncio.timeout(30):
                await story(scene)
        finally:
            await scene.target.close(0)

    asyncio.run(run())


def resource(name: str = "m", *, functions: Sequence[FunctionSpec] = (), **config: Any) -> ResourceSpec:
    return ResourceSpec(
        name=EndpointName(name),
        file=f"{name}.py",
        variable=None,
        config=ResourceConfig(resource_type="LiveServerless", **config),
        functions=tuple(functions) or (function(name, "f"),),
    )


def function(module: str, name: str, **fields: Any) -> FunctionSpec:
    return FunctionSpec(
        id=FunctionId(f"{module}.{name}"),
        name=name,
        module=module,
        file=f"{module.replace('.', '/')}.py",
        line=1,
        qualname=name,
        **fields,
    )


def method(name: str) -> MethodSpec:
    return MethodSpec(name=name, line=1)


def project(*resources: ResourceSpec, requirements: tuple[str, ...] = ()) -> Project:
    return Project(root=Path("/project"), name="p", resources=resources, requirements=requirements)


B1, B2 = BuildId("b1"), BuildId("b2")

__all__ = ["B1", "B2", "EndpointUnavailable", "House", "function", "method", "play", "project", "resource"]
