"""A server's inside that has deployments, with real processes: dispatcher, link, keeper, templates, workers."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from flashmesh.deploy.local.assemble import LocalParts, local_parts
from flashmesh.deploy.local.deployed import Standing
from flashmesh.deploy.local.place import SessionPlace, keeper_directory, kept_directory
from flashmesh.deploy.target import Deployable
from flashmesh.executions.memory import MemoryStore
from flashmesh.gateway.access.keys import TokenKeys
from flashmesh.kit.ids import BuildId, EndpointName, new_execution_id
from flashmesh.project.closure import Closures
from flashmesh.project.manifest import EndpointAddress
from flashmesh.project.scan import scan
from flashmesh.queueing.link import LinkServer
from flashmesh.wire.client import SessionClient
from flashmesh.wire.failures import unpack
from flashmesh.wire.frames import Error, Invoke, Log, Result
from flashmesh.worker.keeper.detached import KeeperPlace

ENDPOINT = EndpointName("m-0a1b2c3d")
SOURCE = """
import os
import time
from pathlib import Path

from flashmesh import CpuLiveServerless, remote

config = CpuLiveServerless(name="m", {settings})


@remote(config)
def hello(name: str = "you"):
    return {{"hello": name, "pid": os.getpid(), "version": {version}}}


@remote(config)
def wait_for(path: str):
    Path(path + ".begun").touch()
    while not Path(path).exists():
        time.sleep(0.005)
    return {version}
"""
PATIENCE_S = 60.0


class House:
    """One server after the other, in one place. `crash` leaves what `kill -9` would; `stop` ends as SIGTERM does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder
        self.builds = 0
        self.manifest = folder / "manifest.json"
        self.manifest.write_text("{}")
        self.keys = TokenKeys.open(folder)
        self.pointer = folder / "deployments"
        self.lines: list[Log] = []
        self.events: list[tuple[str, Any]] = []
        self.notices: list[str] = []
        self.parts: LocalParts
        self.link: LinkServer
        self.client: SessionClient
        self.place: SessionPlace

    async def start(self) -> None:
        self.place = SessionPlace.create(self.folder)
        self.parts = local_parts(
            store=MemoryStore(),
            place=self.place,
            project_root=None,
            install=False,
            notice=lambda endpoint, line: self.notices.append(line),
            log=lambda event, fields: self.events.append((event, dict(fields))),
            home=self.folder / "home",
            standing=Standing(
                pointer=self.pointer,
                link=self.place.link,
                public_key=self.keys.public,
                token_for=lambda app, environment: self.token("peer", app=app, environment=environment),
            ),
        )
        self.link = LinkServer(
            self.place.link,
            self.parts.dispatcher,
            on_template=self.deployments.template_said,
            on_log=self.lines.append,
        )
        await self.link.start()
        self.client = await SessionClient.connect(self.place.link)

    @property
    def deployments(self) -> Any:
        assert self.parts.deployments is not None
        return self.parts.deployments

    async def _end(self, *, keep: bool) -> None:
        await self.client.close()
        await self.deployments.close(5, keep=keep)
        await self.parts.target.close(0)
        await self.link.close()
        self.parts.volumes.close()
        self.place.close()

    async def crash(self) -> None:
        await self._end(keep=True)

    async def stop(self) -> None:
        await self._end(keep=False)

    def token(self, scope: Any, **place: str) -> str:
        return self.keys.issue("test", scope, **place)[0]

    def write(self, version: int | str, *, settings: str = "workersMax=2", more: str = "") -> None:
        """Another build, in a folder of its own."""
        self.builds += 1
        self.root = self.folder / f"build-{self.builds}"
        self.root.mkdir()
        (self.root / "m.py").write_text(SOURCE.format(version=version, settings=settings) + more)

    def wanted(self, *, address: str | None = None, endpoint: EndpointName = ENDPOINT) -> Deployable:
        """What is on disk, as a deploy of it."""
        project = scan(self.root)
        (resource,) = project.resources
        build = BuildId(Closures(project).builds()[resource.name])
        return Deployable(
            endpoint=endpoint,
            app="shop",
            environment="production",
            resource=resource,
            project=project,
            build=build,
            manifest=self.manifest,
            address=address,
        )

    async def deploy(self, version: int | str = 1, **source: Any) -> EndpointAddress:
        self.write(version, **source)
        address: EndpointAddress = await self.deployments.deploy(self.wanted())
        return address

    async def call(self, function: str = "hello", **arguments: Any) -> Result | Error:
        invocation = self.client.invoke(
            Invoke(
                new_execution_id(),
                f"m.{function}",
                meta={"endpoint": ENDPOINT},
                payload=json.dumps({"input": arguments}).encode(),
            )
        )
        return await invocation.result()

    async def value(self, function: str = "hello", **arguments: Any) -> Any:
        answer = await self.call(function, **arguments)
        assert isinstance(answer, Result), unpack(answer.payload)
        return json.loads(answer.payload)

    async def until(self, condition: Callable[[], Any]) -> Any:
        async with asyncio.timeout(PATIENCE_S):
            while not (found := condition()):  # noqa: ASYNC110 - conditions of other processes
                await asyncio.sleep(0.005)
            return found

    @property
    def keeper(self) -> int:
        """The process that outlives servers."""
        pid = self.keeper_if_any()
        assert pid is not None
        return pid

    def keeper_if_any(self) -> int | None:
        directory = kept_directory(self.pointer)
        return None if directory is None else KeeperPlace(keeper_directory(directory)).running()


def post(
    address: EndpointAddress | str, path: str = "/hello/run_sync", arguments: Any = None, **headers: str
) -> tuple[int, Any]:
    """One call over TCP, as any HTTP client makes it. Header names with `_` for `-`."""
    url = address if isinstance(address, str) else address.endpoint_url
    assert url is not None
    return _send(http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S), path, arguments, headers)


def _send(
    connection: http.client.HTTPConnection, path: str, arguments: Any, headers: dict[str, str]
) -> tuple[int, Any]:
    with contextlib.closing(connection):
        body = json.dumps({"input": arguments or {}})
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("POST", path, body, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        import socket

        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)


def post_unix(address: EndpointAddress, path: str = "/hello/run_sync", arguments: Any = None) -> tuple[int, Any]:
    """One call at the socket, as a peer of this machine makes it."""
    return _send(UnixConnection(address.peer_urls[0].removeprefix("unix:")), path, arguments, {})


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """Unix sockets need short paths."""
    folder = Path(tempfile.mkdtemp(prefix="fd-", dir="/tmp"))
    try:
        yield folder
    finally:
        directory = kept_directory(folder / "deployments")
        if directory is not None:
            pid = KeeperPlace(keeper_directory(directory)).running()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def play(story: Callable[[Any], Awaitable[None]], *, house: type[House] = House) -> None:
    async def scene(folder: Path) -> None:
        made = house(folder)
        await made.start()
        try:
            async with asyncio.timeout(2 * PATIENCE_S):
                await story(made)
        finally:
            await made.stop()

    with short_folder() as folder:
        asyncio.run(scene(folder))
