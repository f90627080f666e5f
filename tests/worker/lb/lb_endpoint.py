"""A load-balanced endpoint under a real keeper and template, and clients of its socket."""

import dataclasses
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from loader_fixtures import write
from mini_session import MiniSession

from flashmesh.functions.config import ResourceConfig
from flashmesh.worker.spec import ModuleSpec, WorkerSpec

TEMPLATE = [sys.executable, "-P", "-u", "-m", "flashmesh.worker.template.supervisor"]

SOURCE = """
    import asyncio, logging, os, pathlib, sys, time
    from fastapi import HTTPException, Request, UploadFile, WebSocket
    from fastapi.responses import StreamingResponse
    from pydantic import BaseModel
    from flashmesh import CpuLiveLoadBalancer, Endpoint, remote, worker_start
    lb = CpuLiveLoadBalancer(name="e")
    api = Endpoint(name="e")
    folder = pathlib.Path(__file__).parent
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    starts = []

    class Item(BaseModel):
        name: str
        price: float = 1.0

    @worker_start(api)
    async def begin():
        starts.append(os.getpid())

    @remote(lb, method="POST", path="/compute")
    async def compute(numbers: list[int]) -> dict:
        print("computing", len(numbers))
        return {"sum": sum(numbers), "pid": os.getpid()}

    @api.get("/items/{n}")
    def item(n: int, q: str = "none"):
        print("item", n)
        return {"n": n, "q": q}

    @api.post("/items")
    async def add(item: Item):
        return {"name": item.name, "price": item.price}

    @api.post("/upload")
    async def upload(file: UploadFile):
        return {"size": len(await file.read()), "name": file.filename}

    @api.post("/raw")
    async def raw(request: Request):
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return {"size": size}

    @api.get("/who")
    async def who():
        return {"pid": os.getpid(), "starts": starts}

    @api.get("/count/{n}")
    async def count(n: int):
        for number in range(n):
            yield {"number": number}

    @api.get("/fails")
    async def fails():
        raise ValueError("no good")

    @api.get("/teapot")
    async def teapot():
        raise HTTPException(418, "short and stout")

    @api.get("/waits")
    async def waits():
        (folder / "begun").touch()
        while not (folder / "go").exists():
            await asyncio.sleep(0.01)
        return "went on"

    @api.get("/sleeps")
    def sleeps():
        time.sleep(1.5)
        return "slept"

    @api.get("/spins")
    async def spins():
        while True:
            pass

    @api.get("/both/{name}")
    async def both(name: str):
        print("first of", name)
        logging.getLogger("mine").info("logged by %s", name)
        await asyncio.sleep(0.2)
        print("second of", name, end="")
        return name

    @api.get("/other/{name}")
    async def other(name: str):
        print("first of", name)
        await asyncio.sleep(0.2)
        print("second of", name)
        return name

    @api.get("/chat/{room}")
    async def chat(websocket: WebSocket, room: str):
        await websocket.accept()
        print("in", room)
        async for text in websocket.iter_text():
            await websocket.send_text(f"{room}: {text}")
    """
NAMES = (
    "compute", "item", "add", "upload", "raw", "who", "count", "fails", "teapot", "waits", "sleeps", "spins", "both",
    "other", "chat",
)  # fmt: skip


def spec_for(session: MiniSession, source: str = SOURCE, names: tuple[str, ...] = NAMES, **config: Any) -> WorkerSpec:
    """The endpoint `e` of the session, serving m.py's routes."""
    write(session.folder, {"m.py": source})
    fields = {name: config.pop(name) for name in ("build", "generation", "drain_limit_s") if name in config}
    settings = {"max_concurrency": 100, "idle_timeout_s": 60, **config}
    made = ResourceConfig(resource_type="Endpoint", name="e", is_load_balanced=True, **settings)
    return dataclasses.replace(
        session.spec(**fields),
        modules=[ModuleSpec(module="m", file=str(session.folder / "m.py"))],
        functions=[f"m.{name}" for name in names],
        manifest=str(session.folder / "manifest.json"),
        config=made.to_dict(),
    )


@asynccontextmanager
async def client(session: MiniSession) -> AsyncIterator[httpx.AsyncClient]:
    """Of the endpoint's socket."""
    transport = httpx.AsyncHTTPTransport(uds=str(session.sockets.socket_path))
    async with httpx.AsyncClient(transport=transport, base_url="http://endpoint", timeout=20) as made:
        yield made
