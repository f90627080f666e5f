"""Workers calling each other: routes, chains, cycles, what is retried, and what comes back."""

import http.server
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from loader_fixtures import write
from worker_fixtures import (
    Session,
    Worker,
    call,
    eventually,
    invoke,
    link_of,
    listen,
    outcome,
    session,
)

from flashmesh.functions.errors import (
    CallCycle,
    Cancelled,
    EndpointUnreachable,
    EndpointUnresolved,
    QueueFull,
    RemoteError,
    TimedOut,
    WaitTimedOut,
    WorkerLost,
)
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import Answer, Cancel, Invoke, Query

BACK = """
    import asyncio, dataclasses, pathlib, time
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="back")
    folder = pathlib.Path(__file__).parent

    class OutOfStock(Exception):
        def __init__(self, item, left):
            super().__init__(item, left)
            self.left = left

    @dataclasses.dataclass
    class Point:
        x: int
        y: int

    @remote(resource)
    def double(n: int) -> int:
        return n * 2

    @remote(resource)
    def move(point: Point, by: int = 1) -> Point:
        assert isinstance(point, Point)
        return Point(point.x + by, point.y)

    @remote(resource)
    def sold_out(item):
        raise OutOfStock(item, 0)

    @remote(resource)
    def count(n: int):
        yield from range(n)

    @remote(resource)
    def count_badly(n: int):
        yield from range(n)
        raise OutOfStock("items", n)

    @remote(resource)
    def holds():
        (folder / "begun").touch()
        try:
            time.sleep(60)
        finally:
            (folder / "ended").touch()

    @remote(resource)
    def chain_seen():
        from flashmesh.worker.invocation import CURRENT
        current = CURRENT.get()
        return [list(current.chain), current.trace, current.deadline_ms]

    @remote(resource)
    def dies():
        import os
        os._exit(7)

    @remote(resource, retries=2)
    def unlucky(mark, times):
        with (folder / mark).open("a") as file:
            file.write("x")
        if len((folder / mark).read_text()) <= times:
            raise OutOfStock(mark, times)
        return "at last"

    @remote(resource)
    class Counter:
        def __init__(self, start=0):
            self.n = start
        def inc(self):
            self.n += 1
            return self.n
    """

FRONT = """
    import asyncio
    from back import Counter, OutOfStock, Point, chain_seen, count, count_badly, dies, double, holds, move, sold_out
    from back import unlucky
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="front")

    @remote(resource)
    async def by_await(n):
        return await double(n)

    @remote(resource)
    def by_call(n):
        return double.call(n)

    @remote(resource)
    def by_own_loop(n):
        return asyncio.run(double(n))

    @remote(resource)
    async def many(n):
        return await asyncio.gather(*(double(i) for i in range(n)))

    @remote(resource)
    def point():
        moved = move.call(Point(1, 2), by=4)
        return [type(moved).__name__, moved.x]

    @remote(resource)
    def catches():
        try:
            sold_out.call("shoe")
        except OutOfStock as error:
            return [error.left, error.args[0], "sold_out" in error.remote_traceback]

    @remote(resource)
    async def streams(n):
        return [item async for item in count(n)]

    @remote(resource)
    def streams_blocking(n):
        return list(count.call(n))

    @remote(resource)
    async def streams_some():
        async for item in count(100_000):
            if item == 3:
                return item

    @remote(resource)
    async def stream_fails():
        found = []
        try:
            async for item in count_badly(2):
                found.append(item)
        except OutOfStock as error:
            found.append(error.left)
        return found

    @remote(resource)
    def counts():
        counter = Counter(5)
        return [counter.inc.call(), counter.inc.call(), Counter(0).inc.call()]

    @remote(resource)
    def waits_blocking():
        return holds.call()

    @remote(resource)
    async def waits():
        return await holds()

    @remote(resource)
    def chain():
        return chain_seen.call()

    @remote(resource)
    def spawns(n):
        job = double.spawn(n)
        return [job.id, job.call.result(timeout=20)]

    @remote(resource)
    def loses():
        return dies.call()

    @remote(resource)
    def persists(mark, times):
        return unlucky.call(mark, times)

    @remote(resource)
    async def persists_async(mark, times):
        return await unlucky(mark, times)
    """


def endpoint(worker: Worker | None, module: str, functions: list[str], **entry: Any) -> dict[str, Any]:
    """A resource of a manifest."""
    urls = [f"unix:{worker.spec.socket_path}"] if worker is not None else []
    described = [
        {
            "name": name,
            "module": module,
            "is_class": name[0].isupper(),
            "class_methods": ["inc"],
            "is_generator": name.startswith("count"),
        }
        for name in functions
    ]
    return {"functions": described, "config": {"resource_type": "LiveServerless"}, "peer_urls": urls, **entry}


def publish(here: Session, resources: Mapping[str, Any]) -> None:
    """Write the manifest as a session does: at once."""
    path = here.folder / "manifest.json"
    path.with_suffix(".new").write_text(json.dumps({"function_registry": {}, "resources": resources}))
    path.with_suffix(".new").rename(path)


BACK_NAMES = [
    "double",
    "move",
    "sold_out",
    "count",
    "count_badly",
    "holds",
    "chain_seen",
    "dies",
    "unlucky",
    "Counter",
]


@contextmanager
def front_and_back(**spec: Any) -> Iterator[tuple[Session, Worker, Worker]]:
    """Two endpoints that know each other."""
    with session() as here:
        back = here.worker(BACK, endpoint="back")
        publish(here, {"back": endpoint(back, "back", BACK_NAMES)})
        yield here, here.worker(FRONT, endpoint="front", **spec), back


@pytest.mark.parametrize("function", ["by_await", "by_call", "by_own_loop"])
def test_a_function_of_another_resource_runs_at_its_endpoint(function: str) -> None:
    """Awaited, blocking, and from a loop the body runs itself."""
    with front_and_back() as (_, front, back):
        assert call(front, f"front.{function}", 21) == 42
        assert eventually(lambda: back.record.head().calls) == 1


def test_many_calls_at_once_all_answer() -> None:
    """The peer's backlog is the queue."""
    with front_and_back() as (_, front, _back):
        assert call(front, "front.many", 50) == [2 * n for n in range(50)]


def test_arguments_and_results_keep_their_types() -> None:
    """A dataclass goes and comes as one."""
    with front_and_back() as (_, front, _back):
        assert call(front, "front.point") == ["Point", 5]


def test_an_exception_of_the_peer_arrives_as_itself() -> None:
    """The class, its attributes, and the remote traceback."""
    with front_and_back() as (_, front, _back):
        assert call(front, "front.catches") == [0, "shoe", True]


@pytest.mark.parametrize("function", ["streams", "streams_blocking"])
def test_a_generator_of_the_peer_streams(function: str) -> None:
    """All items in order, more than a window holds."""
    with front_and_back() as (_, front, _back):
        assert call(front, f"front.{function}", 500) == list(range(500))


def test_leaving_a_stream_early_ends_the_generator() -> None:
    """The connection is closed, so the peer's slot is free again."""
    with front_and_back() as (_, front, back):
        assert call(front, "front.streams_some") == 3
        eventually(lambda: back.record.head().free == 1)
        assert call(front, "front.stream_fails") == [0, 1, 2]


def test_methods_of_a_class_reach_one_instance_per_arguments() -> None:
    """State stays at the peer."""
    with front_and_back() as (_, front, _back):
        assert call(front, "front.counts") == [6, 7, 1]


def test_chain_trace_and_deadline_are_handed_on() -> None:
    """The callee knows who waits for it, the trace goes on with a new span, the deadline is what is left."""
    with front_and_back() as (_, front, _back):
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        chain, seen, deadline = call(front, "front.chain", meta={"trace": trace, "chain": ["gate"]}, deadline_ms=50_000)
        assert chain == ["gate", "front"]
        assert seen.split("-")[1] == "a" * 32
        assert seen != trace
        assert 0 < deadline <= 50_000


@pytest.mark.parametrize("how", ["cancel", "timeout"])
@pytest.mark.parametrize("function", ["waits", "waits_blocking"])
def test_cancelling_a_call_cancels_what_it_waits_for(function: str, how: Any) -> None:
    """The connection closes, and the peer's synchronous body ends as well."""
    with front_and_back() as (here, front, _back):
        invoke(front, f"front.{function}")
        eventually((here.folder / "begun").exists)
        if function == "waits":
            link_of(front).send(Cancel("e1", how))
        else:
            front.record.demand(front.record.running()[0], how)
            os.kill(front.process.pid, 10)
        assert isinstance(outcome(front), Cancelled if how == "cancel" else TimedOut)
        eventually((here.folder / "ended").exists)


def test_a_worker_that_dies_under_a_peers_call_is_said_and_not_retried() -> None:
    """The call may have run, so nobody repeats it."""
    with front_and_back() as (_, front, back):
        assert isinstance(call(front, "front.loses"), WorkerLost)
        assert back.exit_status() == 7


@pytest.mark.parametrize("function", ["persists", "persists_async"])
def test_a_peers_function_is_repeated_as_often_as_it_declares(function: str) -> None:
    """`retries=2`: two exceptions are survived, three are not."""
    with front_and_back() as (here, front, _):
        assert call(front, f"front.{function}", "two", 2) == "at last"
        raised = call(front, f"front.{function}", "three", 3)
        assert isinstance(raised, RemoteError) and "OutOfStock" in raised.type_name
        assert len((here.folder / "three").read_text()) == 3


def test_a_deadline_bounds_the_wait_for_a_peer() -> None:
    """A peer that never answers costs the run time that is left, not 300 s."""
    with session() as here:
        with listen(str(here.folder / "mute.sock")):
            entry = endpoint(None, "back", BACK_NAMES, peer_urls=[f"unix:{here.folder}/mute.sock"])
            publish(here, {"back": entry})
            (here.folder / "back.py").write_text("import not_installed_here\n")
            front = here.worker(FRONT.replace("OutOfStock, Point, ", ""), endpoint="front")
            raised = call(front, "front.by_call", 1, deadline_ms=300)
        assert isinstance(raised, WaitTimedOut)


# --- addresses ---


def stub_front(here: Session, **more: Any) -> Worker:
    """A caller of `back`, whose code is not importable here."""
    (here.folder / "back.py").write_text("import not_installed_here\n")
    return here.worker(FRONT.replace("OutOfStock, Point, ", ""), endpoint="front", **more)


def test_a_moved_endpoint_is_found_with_one_look_at_the_manifest() -> None:
    """The known address refuses; the manifest that was written meanwhile gives the new one."""
    with session() as here:
        back = here.worker(BACK, endpoint="back")
        stale = endpoint(None, "back", BACK_NAMES, peer_urls=[f"unix:{here.folder}/gone.sock"])
        publish(here, {"back": stale})
        front = here.worker(FRONT, endpoint="front")
        raised = call(front, "front.by_call", 4)
        assert isinstance(raised, EndpointUnreachable)
        publish(here, {"back": endpoint(back, "back", BACK_NAMES)})
        assert call(front, "front.by_call", 4) == 8


def test_a_full_backlog_raises_queue_full() -> None:
    """The endpoint's queue is bounded, and the caller is told to come again."""
    with session() as here:
        path = str(here.folder / "full.sock")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(0)
            waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
            for client in waiting:
                client.setblocking(False)
                client.connect_ex(path)
            publish(here, {"back": endpoint(None, "back", BACK_NAMES, peer_urls=[f"unix:{path}"])})
            raised = call(stub_front(here), "front.by_call", 1)
            for client in waiting:
                client.close()
        assert isinstance(raised, QueueFull)
        assert raised.retry_after > 0


def test_without_an_address_code_that_is_here_runs_here_with_a_warning() -> None:
    """The warning says why."""
    with session() as here:
        publish(here, {})
        write(here.folder, {"back.py": BACK})
        front = here.worker(FRONT, endpoint="front", config={"gpus": ["ANY"]})
        assert call(front, "front.by_call", 4) == 8
        assert call(front, "front.by_await", 4) == 8
        assert call(front, "front.streams_blocking", 3) == [0, 1, 2]
        assert call(front, "front.streams", 3) == [0, 1, 2]
        assert "Function lookup failed: the manifest does not name function 'back.double'" in front.said()


def test_the_local_fallback_can_be_forbidden() -> None:
    """FLASH_LOCAL_FALLBACK=0 makes it an error that says what to do."""
    with session() as here, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLASH_LOCAL_FALLBACK", "0")
        write(here.folder, {"back.py": BACK})
        raised = call(here.worker(FRONT, endpoint="front"), "front.by_call", 4)
        assert isinstance(raised, EndpointUnresolved)
        assert "FLASH_LOCAL_FALLBACK=0" in str(raised)


def test_there_is_no_fallback_without_the_gpu_it_wants() -> None:
    """A GPU function does not run on a CPU endpoint by accident."""
    with session() as here:
        gpu = BACK.replace('LiveServerless(name="back")', 'LiveServerless(name="back", gpus=[GpuGroup.ANY])')
        write(here.folder, {"back.py": gpu.replace("import LiveServerless", "import GpuGroup, LiveServerless")})
        raised = call(here.worker(FRONT, endpoint="front"), "front.by_call", 4)
        assert isinstance(raised, EndpointUnresolved)
        assert "wants a GPU" in str(raised)


def test_stubs_call_their_endpoint_and_have_no_fallback() -> None:
    """A CPU endpoint without the packages calls the function whose module imports them at the top."""
    with session() as here:
        back = here.worker(BACK, endpoint="back")
        publish(here, {"back": endpoint(back, "back", BACK_NAMES)})
        front = stub_front(here)
        assert call(front, "front.by_call", 4) == 8
        assert call(front, "front.by_await", 4) == 8
        assert call(front, "front.counts") == [6, 7, 1]
        assert call(front, "front.streams", 3) == [0, 1, 2]
        publish(here, {"back": endpoint(None, "back", BACK_NAMES)})
        raised = call(front, "front.by_call", 4)
        assert isinstance(raised, EndpointUnresolved)
        assert "no address yet" in str(raised)


# --- cycles ---

PING = """
    import pong
    from flashmesh import LiveServerless, remote

    @remote(LiveServerless(name="ping", max_concurrency=1))
    async def ping(n):
        return [n, *(await pong.pong(n - 1) if n else [])]
    """
PONG = PING.replace("ping", "PING").replace("pong", "ping").replace("PING", "pong")


def test_a_cycle_completes_through_the_second_sockets() -> None:
    """ping → pong → ping → pong with one slot each: nobody waits for itself."""
    with session() as here:
        write(here.folder, {"pong.py": PONG})
        ping = here.worker(PING, endpoint="ping")
        pong = here.worker(PONG, endpoint="pong")
        publish(here, {"ping": endpoint(ping, "ping", ["ping"]), "pong": endpoint(pong, "pong", ["pong"])})
        assert call(ping, "ping.ping", 4) == [4, 3, 2, 1, 0]


def test_a_chain_of_more_than_eight_endpoints_is_ended() -> None:
    """An endless cycle ends with the names it went through."""
    with session() as here:
        write(here.folder, {"pong.py": PONG})
        ping = here.worker(PING, endpoint="ping")
        pong = here.worker(PONG, endpoint="pong")
        publish(here, {"ping": endpoint(ping, "ping", ["ping"]), "pong": endpoint(pong, "pong", ["pong"])})
        raised = call(ping, "ping.ping", 100)
        assert isinstance(raised, CallCycle)
        assert "ping → pong → ping" in str(raised)


def test_a_cycle_through_a_gpu_endpoint_fails_at_once() -> None:
    """Its workers cannot take one more; the error names the chain."""
    with session() as here:
        write(here.folder, {"pong.py": PONG})
        ping = here.worker(PING, endpoint="ping", context={"reentrant_fd": None})
        pong = here.worker(PONG, endpoint="pong")
        publish(here, {"ping": endpoint(ping, "ping", ["ping"]), "pong": endpoint(pong, "pong", ["pong"])})
        invoke(ping, "ping.ping", 2)
        refuse(ping.again)
        raised = outcome(ping)
        assert isinstance(raised, CallCycle)
        assert "came back: ping,pong" in str(raised)


def refuse(again: socket.socket) -> None:
    """What the template of an endpoint does that takes no re-entrant calls."""
    again.settimeout(20)
    peer, _ = again.accept()
    with peer:
        head = peer.recv(65536).decode("latin-1")
        chain = next(line.partition(": ")[2] for line in head.split("\r\n") if line.startswith("X-Flash-Chain"))
        error = {"code": "CALL_CYCLE", "type": "CallCycle", "message": f"The call came back: {chain}"}
        body = json.dumps({"error": error}).encode()
        answer = f"HTTP/1.1 508 Loop Detected\r\nContent-Length: {len(body)}\r\nX-Flash-Not-Run: 1\r\n\r\n"
        peer.sendall(answer.encode() + body)


# --- LB and jobs ---


class _Web(http.server.BaseHTTPRequestHandler):
    """An LB resource's routes, as the dev server would answer them."""

    def do_GET(self) -> None:
        self._tell(200, {"path": self.path})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "bad" in body:
            self._tell(422, {"detail": "bad is not wanted"})
        else:
            self._tell(200, {"got": body, "path": self.path, "trace": bool(self.headers["traceparent"])})

    def _tell(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def web_server() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Web)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/web"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


WEB = """
    from flashmesh import CpuLiveLoadBalancer, remote
    lb = CpuLiveLoadBalancer(name="web")

    @remote(lb, method="POST", path="/items/{n}")
    async def put(n: int, name: str, size: int = 1): ...

    @remote(lb, method="GET", path="/find")
    async def find(word: str, exact: bool = False): ...
    """
WEB_CALLER = """
    from web import find, put
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="front")

    @remote(resource)
    async def puts(**more):
        return await put(7, name="x y", **more)

    @remote(resource)
    def finds():
        return find.call("a b&c", exact=True)
    """


def test_a_load_balanced_function_is_called_over_http() -> None:
    """The signature says what goes into path, query and body."""
    with session() as here, web_server() as url:
        write(here.folder, {"web.py": WEB})
        routes = {"put": ("POST", "/items/{n}"), "find": ("GET", "/find")}
        functions = [
            {"name": name, "module": "web", "http_method": method, "http_path": path}
            for name, (method, path) in routes.items()
        ]
        publish(here, {"web": {"functions": functions, "config": {}, "is_load_balanced": True, "endpoint_url": url}})
        front = here.worker(WEB_CALLER, ["front.puts", "front.finds"], endpoint="front")
        assert call(front, "front.puts") == {"got": {"name": "x y"}, "path": "/web/items/7", "trace": True}
        assert call(front, "front.finds") == {"path": "/web/find?word=a+b%26c&exact=true"}


def test_an_http_error_of_a_load_balanced_function_is_raised() -> None:
    """The status and its detail reach the caller."""
    with session() as here, web_server() as url:
        write(here.folder, {"web.py": WEB.replace("size: int = 1", "bad: int = 0")})
        functions = [{"name": "put", "module": "web", "http_method": "POST", "http_path": "/items/{n}"}]
        functions.append({"name": "find", "module": "web", "http_method": "POST", "http_path": "/nowhere"})
        publish(here, {"web": {"functions": functions, "config": {}, "is_load_balanced": True, "endpoint_url": url}})
        source = WEB_CALLER.replace('name="x y", **more', 'name="x y", bad=1')
        front = here.worker(source, ["front.puts", "front.finds"], endpoint="front")
        raised = call(front, "front.puts")
        assert "bad is not wanted" in str(raised)


def test_a_job_is_accepted_by_the_session() -> None:
    """`spawn` opens a connection of its own, and returns once the session knows the execution."""
    with session() as here:
        back = here.worker(BACK, endpoint="back")
        publish(here, {"back": endpoint(back, "back", BACK_NAMES)})
        front = here.worker(FRONT, endpoint="front")
        invoke(front, "front.spawns", 4)
        here._server.settimeout(20)
        client = BlockingLink(here._server.accept()[0])
        hello = client.receive(20)
        frame = client.receive(20)
        assert isinstance(frame, Invoke)
        assert (hello.role, frame.function, frame.meta["mode"]) == ("client", "back.double", "async")  # type: ignore[union-attr]
        replies: list[dict[str, Any]] = [
            {"status": "QUEUED"},
            {"status": "SUCCESS"},
            {"status": "SUCCESS", "payload": b"\x08", "content_type": "application/x-msgpack"},
        ]
        for reply in replies:
            query = client.receive(20)
            assert isinstance(query, Query)
            assert query.arguments["id"] == frame.execution
            client.send(Answer(query.id, reply))
        assert outcome(front) == [frame.execution, 8]
        client.close()
