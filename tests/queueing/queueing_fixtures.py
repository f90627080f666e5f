"""Fakes at the dispatcher's ports: time that passes when told, workers that obey a test, clients that remember."""

import heapq
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.record import Execution
from flashmesh.executions.store import StoreUnavailable
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId, FunctionId
from flashmesh.queueing.calls import Call, new_call
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.plan import EndpointPlan
from flashmesh.queueing.ports import WorkerPort
from flashmesh.queueing.slots import Worker
from flashmesh.wire.failures import describe, pack, unpack
from flashmesh.wire.frames import (
    JSON,
    PROTOCOL_VERSION,
    Ack,
    AnyFrame,
    Chunk,
    Credit,
    Error,
    Hello,
    Invoke,
    Result,
    Started,
    attempt_ref,
)


class VirtualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class VirtualClock:
    """Seconds pass only in `advance`, which runs what falls due, in order."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self._timers: list[tuple[float, int, VirtualTimer]] = []
        self._count = 0

    def now(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return 1_700_000_000.0 + self.seconds

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> VirtualTimer:
        timer = VirtualTimer(callback)
        self._count += 1
        heapq.heappush(self._timers, (self.seconds + delay_s, self._count, timer))
        return timer

    def advance(self, seconds: float) -> None:
        end = self.seconds + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self.seconds = max(self.seconds, due)
            if timer.callback is not None:
                callback, timer.callback = timer.callback, None
                callback()
        self.seconds = end

    @property
    def pending(self) -> int:
        return sum(timer.callback is not None for _, _, timer in self._timers)


class SlowStore(MemoryStore):
    """A store whose disk a test lets write, or fail, in groups: what MemoryStore does, durable after `commit`."""

    def __init__(self, *, now: Callable[[], float]) -> None:
        super().__init__(now=now)
        self._waiting: list[Callable[[StoreUnavailable | None], None]] = []
        self._created: list[Execution] = []

    def create(self, execution: Execution) -> Execution:
        known = super().create(execution)
        if known is execution and execution.kind == "async":
            self._created.append(execution)
        return known

    def when_durable(
        self, then: Callable[[StoreUnavailable | None], None], *, about: ExecutionId | None = None
    ) -> None:
        self._waiting.append(then)

    def commit(self, error: StoreUnavailable | None = None) -> None:
        waiting, self._waiting = self._waiting, []
        created, self._created = self._created, []
        for execution in created if error is not None else ():
            del self._executions[execution.id]
            self._keys.pop((execution.function, execution.idempotency_key or ""), None)
        for then in waiting:
            then(error)


class FakeSource:
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.ensured: list[str] = []
        self.scaled: list[tuple[str, int]] = []
        self.cancelled: list[str] = []
        self.templates: dict[str, WorkerPort] = {}

    def ensure(self, endpoint: EndpointName) -> None:
        self.ensured.append(endpoint)

    def scale(self, endpoint: EndpointName, workers: int) -> None:
        self.scaled.append((endpoint, workers))

    def template_linked(self, endpoint: EndpointName, hello: Hello, port: WorkerPort) -> None:
        self.templates[endpoint] = port

    def template_unlinked(self, endpoint: EndpointName, port: WorkerPort) -> None:
        self.templates.pop(endpoint, None)

    def cancel(self, endpoint: EndpointName, execution: ExecutionId) -> None:
        self.cancelled.append(execution)


class FakeClient:
    """Takes the answers of its calls."""

    def __init__(self) -> None:
        self.frames: list[AnyFrame] = []

    def send(self, frame: AnyFrame) -> None:
        self.frames.append(frame)

    def final(self, execution: str) -> Result | Error | None:
        found = [frame for frame in self.frames if isinstance(frame, Result | Error) and frame.execution == execution]
        assert len(found) <= 1, f"{execution} was answered {len(found)} times"
        return found[0] if found else None

    def result(self, execution: str) -> bytes:
        frame = self.final(execution)
        assert isinstance(frame, Result), frame
        return frame.payload

    def error(self, execution: str) -> tuple[str, str]:
        """Code and message."""
        frame = self.final(execution)
        assert isinstance(frame, Error), frame
        return frame.code, unpack(frame.payload).message

    def items(self, execution: str) -> list[bytes]:
        return [frame.data for frame in self.frames if isinstance(frame, Chunk) and frame.execution == execution]


class FakeWorker:
    """The far end of a worker's link: keeps what it is sent and answers when told, with honest `free` counts."""

    def __init__(
        self,
        bench: "Bench",
        name: str,
        *,
        slots: int = 1,
        build: str = "b1",
        endpoint: str = "m",
        running: Iterable[Invoke] = (),
        held: Iterable[Invoke] = (),
        begun: Iterable[Invoke] = (),
        remote: bool = False,
    ) -> None:
        """`running`, `held`: what an earlier connection gave it, and of which it has the outcome; `begun`: the last."""
        running, held = list(running), list(held)
        self.bench = bench
        self.slots = slots
        self.inbox: list[Invoke] = []
        self.running: dict[str, Invoke] = {frame.execution: frame for frame in running}
        self.sent: list[AnyFrame] = []
        self.closed = False
        self.ahead = 0
        """Calls it lets wait behind those that run."""
        hello = Hello(
            PROTOCOL_VERSION,
            "worker",
            endpoint,
            build,
            f"{endpoint}/{name}",
            4000,
            free=self.free,
            running=[attempt_ref(frame.execution, frame.attempt) for frame in running],
            held=[attempt_ref(frame.execution, frame.attempt) for frame in held],
            begun=[frame.execution for frame in begun],
        )
        worker = bench.dispatcher.worker_ready(hello, self.free, self, remote=remote)
        assert worker is not None
        self.worker: Worker = worker

    @property
    def id(self) -> str:
        return self.worker.id

    @property
    def free(self) -> int:
        return self.slots - len(self.running)

    @property
    def said(self) -> int:
        """What it reports as free."""
        return self.free + self.ahead

    def send(self, frame: AnyFrame) -> None:
        self.sent.append(frame)
        if isinstance(frame, Invoke):
            self.inbox.append(frame)

    def close(self) -> None:
        self.closed = True

    def say(self, frame: AnyFrame) -> None:
        self.bench.dispatcher.worker_frame(self.worker, frame)

    def begin(self, cold: bool = False) -> Invoke:
        """Begin the oldest call it was sent."""
        frame = self.inbox.pop(0)
        assert self.free > 0
        self.running[frame.execution] = frame
        self.say(Started(frame.execution, frame.attempt, self.id, cold))
        return frame

    def begin_quietly(self) -> Invoke:
        """Begin the oldest call it was sent, without a word."""
        frame = self.inbox.pop(0)
        assert self.free > 0
        self.running[frame.execution] = frame
        return frame

    def succeed(self, frame: Invoke, payload: bytes = b"1", *, run_ms: float = 1.0, items: int = -1) -> None:
        del self.running[frame.execution]
        self.answer(frame, payload, run_ms=run_ms, items=items)

    def answer(self, frame: Invoke, payload: bytes = b"1", *, run_ms: float = 1.0, items: int = -1) -> None:
        """The RESULT, whether it runs here or was held."""
        self.say(
            Result(frame.execution, frame.attempt, self.said, JSON, int(run_ms * 1000), items=items, payload=payload)
        )

    @property
    def acked(self) -> list[str]:
        return [execution for frame in self.told(Ack) for execution in frame.executions]

    def fail(self, frame: Invoke, error: BaseException, code: str = "USER_ERROR", *, run_ms: float = 1.0) -> None:
        del self.running[frame.execution]
        payload = pack(describe(error, code=code))
        self.say(Error(frame.execution, code, frame.attempt, self.free, run_us=int(run_ms * 1000), payload=payload))

    def busy(self, frame: Invoke, free: int = 0) -> None:
        self.inbox.remove(frame)
        self.say(Error(frame.execution, "BUSY", frame.attempt, free, ran=False))

    def refuse(self, frame: Invoke, code: str) -> None:
        self.inbox.remove(frame)
        self.say(Error(frame.execution, code, frame.attempt, self.free, ran=False))

    def item(self, frame: Invoke, data: bytes) -> None:
        self.say(Chunk(frame.execution, frame.attempt, True, True, data))

    def run_all(self) -> int:
        """Run everything it is sent until nothing comes any more. How many that was."""
        count = 0
        while self.inbox:
            self.succeed(self.begin())
            count += 1
        return count

    def die(self, status: int | None = -9, reason: str = "", *, begun: Iterable[Invoke] = ()) -> None:
        """`begun`: what it had begun last, as its template says, beside what it announced itself."""
        self.bench.dispatcher.worker_lost(self.worker)
        if status is not None:
            last = [frame.execution for frame in begun]
            self.bench.dispatcher.worker_gone(EndpointName("m"), self.worker.id, status, reason, last)

    def credits(self, execution: str) -> int:
        return sum(frame.items for frame in self.sent if isinstance(frame, Credit) and frame.execution == execution)

    def told(self, kind: type) -> list[Any]:
        return [frame for frame in self.sent if isinstance(frame, kind)]


class Bench:
    """A dispatcher with fakes around it."""

    def __init__(self, store: type[MemoryStore] = MemoryStore, **plan: Any) -> None:
        self.clock = VirtualClock()
        self.source = FakeSource()
        self.store = store(now=self.clock.wall)
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.dispatcher = Dispatcher(
            store=self.store, clock=self.clock, source=self.source, log=lambda name, fields: self.record(name, fields)
        )
        self.client = FakeClient()
        self.dispatcher.declare(plan_of(**plan))

    def record(self, name: str, fields: Mapping[str, Any]) -> None:
        self.events.append((name, fields))

    def worker(self, name: str = "w1", **options: Any) -> FakeWorker:
        return FakeWorker(self, name, **options)

    def call(self, execution: str, *, kind: str = "sync", payload: bytes = b"{}", **meta: Any) -> Execution:
        return self.call_function("m.f", execution, kind=kind, payload=payload, **meta)

    def call_function(
        self, function: str, execution: str, *, kind: str = "sync", payload: bytes = b"{}", **meta: Any
    ) -> Execution:
        deadline_ms, accepted = meta.pop("deadline_ms", 0), meta.pop("accepted", None)
        frame = Invoke(execution, function, deadline_ms=deadline_ms, meta=meta, payload=payload)
        word: Any = kind
        return self.dispatcher.submit(frame, self.client, kind=word, accepted=accepted)

    def restart(self, **plan: Any) -> "Bench":
        """The server is gone with all it knew but its store; another one begins."""
        after = Bench(**plan)
        after.clock.seconds = self.clock.seconds
        for execution in self.store.unfinished():
            after.store.create(msgspec.structs.replace(execution))
        return after

    def restore(self) -> None:
        self.dispatcher.restore(self.store.unfinished())

    def status(self, execution: str) -> str:
        return str(self.store.get(ExecutionId(execution)).status)

    def waiting(self) -> int:
        return int(self.dispatcher.status()["endpoints"][0]["queued"])


def plan_of(**changes: Any) -> EndpointPlan:
    values: dict[str, Any] = {
        "name": EndpointName("m"),
        "build": BuildId("b1"),
        "functions": frozenset({FunctionId("m.f"), FunctionId("m.g")}),
        "workers_max": 2,
    }
    return EndpointPlan(**{**values, **changes})


def make_call(
    name: str, *, function: str = "m.f", kind: str = "sync", payload: bytes = b"", build: str = "", now: float = 0.0
) -> Call:
    """A call that stands in a queue, for tests of the decisions alone."""
    word: Any = kind
    execution = Execution(ExecutionId(name), FunctionId(function), EndpointName("m"), word, now)
    call = new_call(execution, Invoke(name, function, payload=payload), None, word, now)
    call.build = BuildId(build)
    return call
