"""Deployments on a real State Manager and database, with a target that keeps the port's rules and serves nothing."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import uvloop

from flashmesh.deploy.target import Deployable, DeployFailed
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.functions.config import ResourceConfig
from flashmesh.gateway.deployments.deployables import Deployables
from flashmesh.gateway.deployments.manifest_files import ManifestFiles
from flashmesh.gateway.deployments.service import Deployments
from flashmesh.gateway.deployments.values import ValuesKey
from flashmesh.gateway.functions.registry import FunctionRegistry
from flashmesh.gateway.state.manager import StateManager
from flashmesh.gateway.state.records import Deployment
from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.project.manifest import EndpointAddress, build_manifest
from flashmesh.project.model import FunctionSpec, Project, ResourceSpec
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import LoopClock

PATIENCE_S = 20.0


class FakeTarget:
    """A Target. Refuses what `Target` does not allow: two actions on one endpoint at once, a resize of what it does not
    serve. `broken`: endpoints' resource names that fail, and why. `hold`: while it is clear, deploys wait."""

    def __init__(self) -> None:
        self.serving: dict[EndpointName, Deployable] = {}
        self.log: list[tuple[str, str]] = []
        self.broken: dict[str, str] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.busy: set[EndpointName] = set()
        self.news = asyncio.Event()
        self.most_at_once = 0
        self.ports = iter(range(41000, 50000))

    async def deploy(self, wanted: Deployable) -> EndpointAddress:
        return await self._act("deploy", wanted)

    async def resize(self, wanted: Deployable) -> EndpointAddress:
        before = self.serving[wanted.endpoint]
        assert before.build == wanted.build and before.project.root == wanted.project.root
        return await self._act("resize", wanted)

    async def adopt(self, wanted: Deployable) -> EndpointAddress:
        assert wanted.address is not None
        return await self._act("adopt", wanted)

    async def remove(self, endpoint: EndpointName) -> None:
        with self._alone(endpoint):
            await asyncio.sleep(0)
            self.log.append(("remove", endpoint))
            self.serving.pop(endpoint, None)

    async def _act(self, action: str, wanted: Deployable) -> EndpointAddress:
        with self._alone(wanted.endpoint):
            self.most_at_once = max(self.most_at_once, len(self.busy))
            await self.hold.wait()
            await asyncio.sleep(0)
            self.log.append((action, wanted.resource.name))
            if wanted.resource.name in self.broken:
                raise DeployFailed(self.broken[wanted.resource.name])
            assert wanted.project.root.is_dir()
            before = self.serving.get(wanted.endpoint)
            url = wanted.address or (f"http://127.0.0.1:{next(self.ports)}" if before is None else before.address)
            self.serving[wanted.endpoint] = dataclasses.replace(wanted, address=url)
            return EndpointAddress(
                endpoint_url=url,
                peer_urls=(f"unix:/run/{wanted.endpoint}.sock",),
                reentrant_url=f"unix:/run/{wanted.endpoint}.again.sock",
            )

    @contextlib.contextmanager
    def _alone(self, endpoint: EndpointName) -> Any:
        assert endpoint not in self.busy, f"two actions on {endpoint} at once"
        self.busy.add(endpoint)
        self.news.set()
        try:
            yield
        finally:
            self.busy.discard(endpoint)

    async def until_busy(self, endpoints: int) -> None:
        """Until so many actions are under way."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.busy) < endpoints:
                self.news.clear()
                await self.news.wait()

    def acted(self, *actions: str) -> list[str]:
        """Names in the order of those actions; all when none is given."""
        return [name for action, name in self.log if not actions or action in actions]


class Folders:
    """Where builds are unpacked: an artifact store's part that deployments use."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.refuse: Exception | None = None

    async def unpacked(self, id: str) -> Path:
        if self.refuse is not None:
            raise self.refuse
        path = self._folder / id
        path.mkdir(parents=True, exist_ok=True)
        return path


class Settings:
    allow_commands = False
    plain_networks = ()
    max_body_bytes = 1024 * 1024


class Bench:
    """One server's deployments, over and over again on the same data: `restarted`."""

    def __init__(self, folder: Path, target: FakeTarget | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.folder = folder
        self.target = target or FakeTarget()
        self.store = SqliteStore(folder / "server.db", loop=loop)
        self.state = StateManager(self.store.database)
        self.notices: list[str] = []
        clock = LoopClock(loop)
        self.dispatcher = Dispatcher(store=self.store, clock=clock, source=_NoWorkers(), log=lambda event, fields: None)
        self.registry = FunctionRegistry(dispatcher=self.dispatcher, clock=clock, settings=Settings())
        self.manifests = ManifestFiles(folder / "manifests")
        self.folders = Folders(folder / "builds")
        self.deployments = Deployments(
            state=self.state,
            deployables=Deployables(
                state=self.state,
                artifacts=self.folders,
                manifests=self.manifests,
                server_url="http://127.0.0.1:7470",
            ),
            target=self.target,
            registry=self.registry,
            manifests=self.manifests,
            key=ValuesKey.open(folder),
            server_url="http://127.0.0.1:7470",
            notice=lambda text, level: self.notices.append(text),
        )

    async def build(self, id: str, *resources: ResourceSpec, app: str = "shop") -> str:
        """Keep a build of those resources, as an upload does."""
        await self.state.ensure_app(app)
        await self.state.add_build(app, id, manifest_of(*resources), bytes=100)
        return id

    async def deploy(
        self, build: str, *, app: str = "shop", environment: str = "production", **options: Any
    ) -> Deployment:
        """Until it has ended."""
        begun, _ = await self.deployments.deploy(app, environment, build, **{"given": {}, **options})
        return await self.ended(begun)

    async def ended(self, deployment: Deployment) -> Deployment:
        async with asyncio.timeout(PATIENCE_S):
            async for _ in self.deployments.feed(deployment.id).follow():
                pass
        return self.state.deployment(deployment.id)

    def entries(self, app: str = "shop", environment: str = "production") -> dict[str, Any]:
        found: dict[str, Any] = self.state.manifest(app, environment)["resources"]
        return found

    def statuses(self, **place: str) -> dict[str, str]:
        return {name: entry["status"] for name, entry in self.entries(**place).items()}

    async def close(self) -> None:
        await self.deployments.close()
        await self.registry.close()
        self.store.close()

    async def killed(self) -> "Bench":
        """The server died; endpoints serve on, and another server begins on its data."""
        await self.deployments.close()  # its tasks die with it
        await self.registry.close()
        self.store.close()
        self.target.busy.clear()
        after = Bench(self.folder, self.target)
        await after.deployments.restore()
        after.deployments.resume()
        return after


class _NoWorkers:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: None


@contextlib.asynccontextmanager
async def server(folder: Path) -> AsyncIterator[Bench]:
    bench = Bench(folder)
    try:
        yield bench
    finally:
        await bench.close()


def play(folder: Path, scenario: Callable[[Bench], Awaitable[Bench | None]]) -> None:
    """Run a scenario on the product's own event loop; it returns the bench it ends with, if not the first."""

    async def run() -> None:
        bench = Bench(folder)
        try:
            bench = await scenario(bench) or bench
        finally:
            await bench.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def resource(name: str, *functions: str, source: str = "1", line: int = 1, **config: Any) -> ResourceSpec:
    """A resource of a file of its own; another `source` is another version of its code."""
    settings = {"resource_type": "LiveServerless", "name": name, "template": None, **config}
    return ResourceSpec(
        name=EndpointName(name),
        file=f"{name}.py",
        variable="config",
        config=ResourceConfig(**settings),
        functions=tuple(
            FunctionSpec(
                id=FunctionId(f"{name}.{function}"),
                name=function,
                module=name,
                file=f"{name}.py",
                line=line,
                qualname=function,
                doc=source,
            )
            for function in functions or ("run",)
        ),
        line=1,
    )


def manifest_of(*resources: ResourceSpec) -> Mapping[str, Any]:
    """A build's manifest. `config_hash` follows what the fixture calls their source."""
    project = Project(root=Path("/nowhere"), name="shop", resources=resources)
    manifest: dict[str, Any] = build_manifest(project)
    for one in resources:
        entry = manifest["resources"][one.name]
        settings = {k: v for k, v in entry["config"].items() if not k.startswith(("workers_", "scaler_"))}
        entry["config_hash"] = f"{abs(hash(repr((one.functions, sorted(settings.items(), key=str))))):012x}"[:12]
    return manifest
