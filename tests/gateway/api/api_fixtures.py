"""The faces over a real dispatcher: a directory of a few functions, workers in this process, and ways to ask."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import uvicorn
from queueing_fixtures import FakeSource, FakeWorker, VirtualClock

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.record import Execution
from flashmesh.functions.errors import AmbiguousFunction, FunctionNotFound, ValidationError
from flashmesh.gateway import api
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.directory import ANYWHERE, Callee, Where
from flashmesh.gateway.functions.completion import outcome_of
from flashmesh.gateway.functions.spec import FunctionSpec, Patch, parse, parse_body
from flashmesh.gateway.http import Answer, Request
from flashmesh.kit.ids import BuildId, EndpointName, FunctionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.logbook import LogBook
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import Clock, LoopClock
from flashmesh.wire.frames import JSON, Invoke

JSON_HEADERS = {b"content-type": b"application/json"}


class AlreadyExists(ValidationError):
    code = "FUNCTION_EXISTS"
    status = 409


class Shelf:
    """A Registry over a dictionary: endpoints with their callables, and what was POSTed."""

    def __init__(self, endpoints: Mapping[str, tuple[str, ...]]) -> None:
        self.version = 1
        self.scoped = False
        self.endpoints = {
            name: tuple(
                Callee(function=FunctionId(function), endpoint=EndpointName(name), max_wait_ms=300_000)
                for function in sorted(functions)
            )
            for name, functions in endpoints.items()
        }
        self.specs: dict[str, FunctionSpec] = {}
        self.wanted: dict[str, int] = {}

    def functions(self) -> tuple[Callee, ...]:
        return tuple(sorted((c for group in self.endpoints.values() for c in group), key=lambda c: c.function))

    def where(self, request: Request) -> Where:
        return ANYWHERE

    def visible(self, endpoint: EndpointName, where: Where) -> bool:
        return True

    def within(self, endpoint: EndpointName, where: Where) -> bool:
        return True

    def function(self, name: str, where: Where = ANYWHERE) -> Callee:
        found = [c for c in self.functions() if c.function == name or c.function.endswith("." + name)]
        if not found:
            raise FunctionNotFound(f"no function {name} is served here. `flash status` lists what is.")
        if len(found) > 1:
            raise AmbiguousFunction(f"{name} is {', '.join(c.function for c in found)}. Use one of these.")
        return found[0]

    def endpoint(self, name: str, where: Where = ANYWHERE) -> tuple[Callee, ...]:
        return self.endpoints.get(name) or (self.function(name),)

    def describe(self, callee: Callee) -> Mapping[str, Any]:
        return {"name": callee.function, "executionMode": "EXTERNAL" if callee.external else "WARM"}

    async def create(self, spec: FunctionSpec | bytes) -> Mapping[str, Any]:
        if isinstance(spec, bytes):
            spec = parse(spec)
        if spec.name in self.specs:
            raise AlreadyExists(f"{spec.name} is served already. PATCH it, or DELETE it first", field="name")
        if spec.endpoint_url is None:
            raise ValidationError("endpointUrl: give `endpointUrl`", field="endpointUrl")
        self.specs[spec.name] = spec
        name = EndpointName(spec.name)
        self.endpoints[name] = (Callee(function=FunctionId(spec.name), endpoint=name, external=True),)
        self.version += 1
        return {**msgspec.to_builtins(spec), "name": spec.name}

    async def patch(self, name: str, body: bytes, where: Where = ANYWHERE) -> Mapping[str, Any]:
        callee = self.function(name)
        patch = parse_body(body, Patch)
        return {**self.describe(callee), **msgspec.to_builtins(patch)}

    async def delete(self, name: str) -> None:
        callee = self.function(name)
        self.specs.pop(callee.function, None)
        self.endpoints.pop(callee.endpoint, None)
        self.version += 1

    async def replicas(self, name: str, where: Where = ANYWHERE) -> Mapping[str, Any]:
        callee = self.function(name)
        wanted = self.wanted.get(callee.function, 0)
        return {"name": callee.function, "desiredReplicas": wanted, "readyReplicas": 0}

    async def set_replicas(self, name: str, replicas: int, where: Where = ANYWHERE) -> Mapping[str, Any]:
        callee = self.function(name)
        self.wanted[callee.function] = replicas
        return {"function": callee.function, "replicas": replicas}


class Faces:
    """Everything behind the HTTP port. `clock`: virtual unless given."""

    def __init__(self, *, clock: Clock | None = None, store: Any = None, **plan: Any) -> None:
        self.clock = clock or VirtualClock()
        self.source = FakeSource()
        self.store = store or MemoryStore(now=self.clock.wall)
        self.dispatcher = Dispatcher(
            store=self.store, clock=self.clock, source=self.source, log=lambda name, fields: None
        )
        self.shelf = Shelf({"m": ("m.f",), "jobs": ("jobs.echo", "jobs.Counter.inc"), "other": ("other.echo",)})
        for name, callees in self.shelf.endpoints.items():
            functions = frozenset(callee.function for callee in callees)
            values: dict[str, Any] = {"name": EndpointName(name), "build": BuildId("b1"), "functions": functions}
            self.dispatcher.declare(EndpointPlan(**{**values, "workers_max": 2, **plan}))
        self.calls = Calls(dispatcher=self.dispatcher, clock=self.clock)
        self.hot = api.hot_routes(self.calls, self.shelf)
        self.logbook = LogBook()
        self.completions: list[tuple[str, int | None, bytes]] = []

    def worker(self, endpoint: str = "m", **options: Any) -> FakeWorker:
        return FakeWorker(self, "w1", endpoint=endpoint, **options)  # type: ignore[arg-type]

    def application(self, **options: Any) -> Any:
        def complete(execution: str, attempt: int | None, body: bytes) -> None:
            outcome_of(body)
            self.completions.append((execution, attempt, body))

        return api.application(
            calls=self.calls, registry=self.shelf, logbook=self.logbook, complete=complete, **options
        )

    def ask(
        self, method: str, path: str, body: bytes | Any = b"", headers: Mapping[str, str] | None = None, query: str = ""
    ) -> "Asked":
        """One request on the short way."""
        handler = self.hot.find(method.encode(), path.encode())
        assert handler is not None, f"{method} {path} is not hot"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lower = {name.lower().encode(): value.encode() for name, value in (headers or {}).items()}
        asked = Asked()
        handler(Request(method.encode(), path.encode(), query.encode(), {**JSON_HEADERS, **lower}, data), asked)
        return asked

    def invoke(self, name: str, input: Any = None, **options: Any) -> "Asked":
        return self.ask("POST", f"/v1/functions/{quote(name)}:invoke", {"input": input}, **options)

    def enqueue(self, name: str, input: Any = None, **options: Any) -> "Asked":
        return self.ask("POST", f"/v1/functions/{quote(name)}:enqueue", {"input": input}, **options)

    def execution(self, execution: str) -> Execution:
        return self.dispatcher.execution(execution)  # type: ignore[arg-type]


class Asked:
    """Takes the one answer of a request."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def __call__(self, answer: Answer) -> None:
        self.answers.append(answer)

    @property
    def answer(self) -> Answer:
        assert len(self.answers) == 1, f"answered {len(self.answers)} times"
        return self.answers[0]

    @property
    def waiting(self) -> bool:
        return not self.answers

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def json(self) -> Any:
        return json.loads(self.answer.body)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.answer.all_headers()}


class LoopWorker(FakeWorker):
    """Works on the event loop: `body` gets each call, and says what comes of it."""

    def __init__(
        self, faces: Faces, body: "Callable[[LoopWorker, Invoke], None]", *, endpoint: str, slots: int
    ) -> None:
        self.body = body
        super().__init__(faces, "w1", endpoint=endpoint, slots=slots)  # type: ignore[arg-type]

    def send(self, frame: Any) -> None:
        super().send(frame)
        if isinstance(frame, Invoke):
            asyncio.get_running_loop().call_soon(self._work)

    def _work(self) -> None:
        if self.inbox:
            self.body(self, self.begin())


def echo(worker: LoopWorker, frame: Invoke) -> None:
    """Answers with the body's input; null when it was not JSON."""
    value = json.loads(frame.payload or b"null") if frame.content_type == JSON else None
    if isinstance(value, dict) and "input" in value:
        value = value["input"]
    worker.succeed(frame, json.dumps(value).encode())


def live_faces(body: Callable[[LoopWorker, Invoke], None] = echo, *, slots: int = 4, **options: Any) -> Faces:
    """Faces on the running loop, with a worker for each endpoint."""
    faces = Faces(clock=LoopClock(asyncio.get_running_loop()), **options)
    for endpoint in list(faces.shelf.endpoints):
        LoopWorker(faces, body, endpoint=endpoint, slots=slots)
    return faces


@contextlib.asynccontextmanager
async def served(application: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The application behind uvicorn on a socket of its own, and a client for it."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(application, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(server._serve([listening]))
        while not server.started:  # noqa: ASYNC110 - uvicorn tells no other way
            await asyncio.sleep(0)
        host, port = listening.getsockname()
        try:
            async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=20, trust_env=False) as client:
                yield client
        finally:
            server.should_exit = True
            await task
            listening.close()
