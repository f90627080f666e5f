"""How a call finds its way between real workers: by a State Manager's manifest, over sockets, ports and TLS."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from doors import Door, door
from loader_fixtures import write
from state_manager_server import StateManager, state_manager
from worker_fixtures import Session, Worker, call, eventually, invoke, outcome, post, session

from flashmesh.functions.errors import (
    CallCycle,
    Cancelled,
    EndpointUnreachable,
    EndpointUnresolved,
    WaitTimedOut,
)
from flashmesh.gateway.access.certificates import AUTHORITY_FILE
from flashmesh.wire.frames import Cancel

GPU = """
    import asyncio, collections.abc, dataclasses, os, pathlib, time
    from flashmesh import GpuGroup, LiveServerless, remote
    resource = LiveServerless(name="gpu", gpus=[GpuGroup.ANY], max_concurrency=8)
    folder = pathlib.Path(__file__).parent
    waiting = asyncio.Barrier(3)

    class OutOfMemory(Exception):
        def __init__(self, wanted, free):
            super().__init__(wanted, free)
            self.free = free

    @dataclasses.dataclass
    class Image:
        name: str
        size: int

    @remote(resource)
    async def train(n: int) -> int:
        return n * 2

    @remote(resource)
    async def render(image: Image, by: int = 1) -> Image:
        return Image(image.name, image.size + by)

    @remote(resource)
    async def fails(n):
        raise OutOfMemory(n, 0)

    @remote(resource)
    async def steps(n: int) -> collections.abc.AsyncIterator[Image]:
        for i in range(n):
            yield Image("step", i)

    @remote(resource)
    async def steps_badly(n: int):
        for i in range(n):
            yield i
        raise OutOfMemory("steps", n)

    @remote(resource)
    async def together():
        await asyncio.wait_for(waiting.wait(), 20)
        return os.getpid()

    @remote(resource)
    async def seen():
        from flashmesh.worker.invocation import CURRENT
        current = CURRENT.get()
        return [list(current.chain), current.trace, current.deadline_ms, current.parent]

    @remote(resource)
    async def holds():
        (folder / "begun").touch()
        try:
            await asyncio.sleep(60)
        finally:
            (folder / "ended").touch()
    """

CPU = """
    import asyncio
    from gpu import Image, OutOfMemory, fails, holds, render, seen, steps, steps_badly, together, train
    from flashmesh import LiveServerless, remote
    resource = LiveServerless(name="cpu", max_concurrency=4)

    @remote(resource)
    async def own(n):
        return n + 1

    @remote(resource)
    async def stays(n):
        return await own(n)

    @remote(resource)
    async def goes(n):
        return await train(n)

    @remote(resource)
    def goes_blocking(n):
        return train.call(n)

    @remote(resource)
    async def goes_typed():
        made = await render(Image("cat", 3), by=2)
        return [type(made).__name__, made.name, made.size]

    @remote(resource)
    async def goes_three_times():
        return len(set(await asyncio.gather(together(), together(), together())))

    @remote(resource)
    async def catches():
        try:
            await fails("9 GB")
        except Exception as error:
            return [type(error).__name__, str(error), getattr(error, "free", None), error.remote_traceback]

    @remote(resource)
    async def streams(n):
        return [[type(item).__name__, item.size] async for item in steps(n)]

    @remote(resource)
    def streams_blocking(n):
        return [item.size for item in steps.call(n)]

    @remote(resource)
    async def streams_badly():
        found = []
        try:
            async for item in steps_badly(2):
                found.append(item)
        except Exception as error:
            found.append(type(error).__name__)
        return found

    @remote(resource)
    async def chain():
        return await seen()

    @remote(resource)
    async def waits():
        return await holds()
    """

NAMES = ("train", "render", "fails", "steps", "steps_badly", "together", "seen", "holds")
TOKEN = "flash-very-secret"


def described(names: tuple[str, ...] = NAMES, module: str = "gpu") -> list[dict[str, Any]]:
    return [{"name": name, "module": module, "is_async": True, "is_generator": "steps" in name} for name in names]


def manifest(gpu: Mapping[str, Any] | None, **more: Any) -> dict[str, Any]:
    """The view of a deployment with a CPU endpoint and, if there is one, a GPU endpoint."""
    cpu = {"functions": described(("own", "goes"), "cpu"), "endpoint_id": "cpu", "config": {}}
    resources = {
        "cpu": cpu,
        **({} if gpu is None else {"gpu": {"functions": described(), "config": {}, **gpu}}),
        **more,
    }
    return {"app": "shop", "environment": "production", "function_registry": {}, "resources": resources}


def ours(opened: Door) -> dict[str, Any]:
    """An entry as our server writes it, of an endpoint on another machine."""
    return {"endpoint_id": "gpu-1", "endpoint_url": opened.url, "peer_urls": []}


class World:
    """A State Manager, a GPU endpoint and what a CPU endpoint needs to know of them."""

    def __init__(self, here: Session, state: StateManager) -> None:
        self.here = here
        self.state = state
        self.env = {
            "FLASH_STATE_MANAGER_URL": state.url,
            "FLASH_ENVIRONMENT_ID": "env-1",
            "FLASH_TOKEN": TOKEN,
            "LOG_LEVEL": "DEBUG",
        }

    def gpu(self) -> Worker:
        return self.here.worker(GPU, endpoint="gpu", config={"max_concurrency": 8})

    def cpu(self, source: str = CPU, **more: Any) -> Worker:
        if not (self.here.folder / "gpu.py").exists():
            write(self.here.folder, {"gpu.py": GPU})
        more["config"] = {"max_concurrency": 4, **more.get("config", {})}
        more = {"environment": "shop/production", **more}
        return self.here.worker(source, endpoint="cpu", env=self.env, **more)

    def trust(self, folder: Path) -> None:
        self.env["FLASH_CA_FILE"] = str(folder / AUTHORITY_FILE)


@contextlib.contextmanager
def world() -> Iterator[World]:
    with session() as here, state_manager() as state:
        yield World(here, state)


# --- the stories ---


def test_a_function_of_the_own_endpoint_runs_here_and_nobody_is_asked() -> None:
    """Also while the State Manager is down."""
    with world() as at:
        at.state.mood = "500"
        cpu = at.cpu()
        assert call(cpu, "cpu.stays", 4) == 5
        assert "Executing 'own' locally" in cpu.said()
        assert "Routing" not in cpu.said()
        assert not at.state.requests


@pytest.mark.parametrize("function", ["goes", "goes_blocking"])
def test_a_cpu_endpoint_calls_a_gpu_function_over_https(function: str, tmp_path: Path) -> None:
    """The manifest says where; the log says so; the key is shown to the endpoint and to nobody else."""
    with world() as at, door(at.gpu().spec.socket_path, tmp_path) as opened:
        at.state.manifest = manifest(ours(opened))
        at.trust(tmp_path)
        cpu = at.cpu()
        assert call(cpu, f"cpu.{function}", 21) == 42
        assert opened.url.startswith("https://")
        assert f"Routing 'train' to {opened.url}/gpu.train/run_sync" in cpu.said()
        assert f"Authorization: Bearer {TOKEN}" in opened.heads[0]
        assert TOKEN not in cpu.said()
        assert at.state.requests[0]["x-flash-endpoint"] == "cpu"


def test_an_endpoint_whose_certificate_nobody_vouches_for_is_not_called(tmp_path: Path) -> None:
    with world() as at, door(at.gpu().spec.socket_path, tmp_path) as opened:
        at.state.manifest = manifest(ours(opened))
        raised = call(at.cpu(), "cpu.goes", 1)
        assert isinstance(raised, EndpointUnreachable)
        assert "FLASH_CA_FILE" in str(raised)
        assert not opened.heads


def test_with_the_state_manager_out_of_order_code_that_is_here_runs_here() -> None:
    """500 three times: a warning, and the function's own code, if this endpoint has what it wants."""
    with world() as at:
        at.state.mood = "500"
        cpu = at.cpu(config={"gpus": ["ANY"]})
        assert call(cpu, "cpu.goes", 4) == 8
        assert "WARNING State Manager unavailable" in cpu.said()
        assert "Executing 'train' locally" in cpu.said()
        assert len(at.state.requests) == 3


def test_a_sessions_workers_ask_nobody_whatever_their_developers_environment_names() -> None:
    """`flash run` knows all of its endpoints; a variable in .env is about others."""
    with world() as at:
        cpu = at.cpu(config={"gpus": ["ANY"]}, environment="dev")
        assert call(cpu, "cpu.goes", 4) == 8
        assert "Function lookup failed" in cpu.said()
        assert not at.state.requests


def test_without_what_the_function_wants_the_error_says_why_it_went_nowhere() -> None:
    with world() as at:
        at.state.mood = "500"
        raised = call(at.cpu(), "cpu.goes", 4)
        assert isinstance(raised, EndpointUnresolved)
        assert "State Manager" in str(raised) and "wants a GPU" in str(raised)


@pytest.mark.parametrize("how", ["garbage", "error", "half", "gone"])
def test_whatever_ails_the_state_manager_local_functions_go_on(how: Any) -> None:
    with world() as at:
        if how == "gone":
            at.state.vanish()
        else:
            at.state.mood = how
        cpu = at.cpu(config={"gpus": ["ANY"]})
        assert call(cpu, "cpu.stays", 1) == 2
        assert call(cpu, "cpu.goes", 4) == 8
        assert "State Manager unavailable" in cpu.said()


def test_a_function_that_the_manifest_does_not_name_runs_here_with_a_warning() -> None:
    with world() as at:
        at.state.manifest = manifest(None)
        cpu = at.cpu(config={"gpus": ["ANY"]})
        assert call(cpu, "cpu.goes", 4) == 8
        assert "WARNING Function lookup failed: the manifest does not name function 'gpu.train'" in cpu.said()


def test_a_manifest_that_lacks_some_endpoints_serves_for_the_others() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        more = {"endpoint_id": "x", "functions": described(("later",), "other")}
        at.state.manifest = manifest(ours(opened), other=more, empty={}, none=None)
        at.state.manifest["function_registry"]["lost.f"] = "lost"  # type: ignore[index]
        assert call(at.cpu(), "cpu.goes", 4) == 8


def test_the_state_manager_is_asked_once_per_ttl_by_all_workers_of_an_endpoint() -> None:
    """Counted on the face of each; a worker that starts later asks nobody."""
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        cpu = at.cpu()
        for n in range(3):
            assert call(cpu, "cpu.goes", n, execution=f"e{n}") == 2 * n
        assert at.state.queries == 1
        cpu.process.kill()
        for socket_path in at.here.folder.glob("cpu*.sock"):
            socket_path.unlink()
        at.state.vanish()
        again = at.cpu()
        assert call(again, "cpu.goes", 5) == 10
        assert 'flash_manifest_queries_total{endpoint="cpu"} 1' in metrics(again)


def test_what_changed_is_known_after_the_ttl() -> None:
    """The old address is used until then, and while the next manifest is fetched."""
    with world() as at, door(at.gpu().spec.socket_path) as one, door(str(at.here.folder / "gpu.sock")) as two:
        at.env["FLASH_MANIFEST_TTL"] = "0.2"
        at.state.manifest = manifest(ours(one))
        cpu = at.cpu()
        assert call(cpu, "cpu.goes", 1) == 2
        at.state.manifest = manifest(ours(two))
        numbers = iter(range(100_000))
        eventually(
            lambda: call(cpu, "cpu.goes", 1, execution=f"n{next(numbers)}") == 2 and two.heads, "the new address"
        )


def metrics(worker: Worker) -> str:
    import socket

    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(20)
        peer.connect(worker.spec.socket_path)
        peer.sendall(b"GET /metrics HTTP/1.1\r\nHost: flash\r\n\r\n")
        parts = []
        while part := peer.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


# --- what travels ---


def test_arguments_and_results_keep_their_types_over_tcp() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        assert call(at.cpu(), "cpu.goes_typed") == ["Image", "cat", 5]


def test_an_error_arrives_as_itself_with_the_remote_traceback() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        name, text, free, traceback = call(at.cpu(), "cpu.catches")
        assert (name, text, free) == ("OutOfMemory", "('9 GB', 0)", 0)
        assert "in fails" in traceback and "raise OutOfMemory" in traceback


def test_calls_that_are_gathered_run_at_the_same_time() -> None:
    """Each waits until all three are there."""
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        assert call(at.cpu(), "cpu.goes_three_times") == 1


def test_generators_stream_across() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        cpu = at.cpu()
        assert call(cpu, "cpu.streams", 300) == [["Image", n] for n in range(300)]
        assert call(cpu, "cpu.streams_blocking", 300, execution="e2") == list(range(300))
        assert call(cpu, "cpu.streams_badly", execution="e3") == [0, 1, "OutOfMemory"]


def test_chain_trace_deadline_and_parent_travel_over_tcp() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
        meta = {"trace": trace, "chain": ["gate"]}
        chain, seen, deadline, parent = call(at.cpu(), "cpu.chain", meta=meta, deadline_ms=50_000)
        assert chain == ["gate", "cpu"]
        assert seen.split("-")[1] == "a" * 32 and seen != trace
        assert 0 < deadline <= 50_000
        assert parent == "e1"


def test_cancelling_a_call_cancels_what_it_waits_for_over_tcp() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        cpu = at.cpu()
        invoke(cpu, "cpu.waits")
        eventually((at.here.folder / "begun").exists)
        assert cpu.link is not None
        cpu.link.send(Cancel("e1", "cancel"))
        assert isinstance(outcome(cpu), Cancelled)
        eventually((at.here.folder / "ended").exists)


def test_a_deadline_bounds_a_call_over_tcp() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = manifest(ours(opened))
        raised = call(at.cpu(), "cpu.waits", deadline_ms=400)
        assert isinstance(raised, WaitTimedOut) or type(raised).__name__ == "TimedOut"


# --- roads ---


def test_an_endpoint_on_this_machine_is_called_by_its_socket() -> None:
    """Though the manifest names its URL as well."""
    with world() as at:
        gpu = at.gpu()
        with door(gpu.spec.socket_path) as opened:
            at.state.manifest = manifest({**ours(opened), "peer_urls": [f"unix:{gpu.spec.socket_path}"]})
            assert call(at.cpu(), "cpu.goes", 4) == 8
            assert not opened.connections


def test_sockets_of_another_machine_are_no_road() -> None:
    """Neither one that is not there nor one outside the endpoints' own folder."""
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        urls = ["unix:/var/run/docker.sock", f"unix:{at.here.folder}/elsewhere.sock"]
        at.state.manifest = manifest({**ours(opened), "peer_urls": urls})
        assert call(at.cpu(), "cpu.goes", 4) == 8
        assert opened.connections == 1


def test_an_address_that_is_neither_https_nor_near_is_not_called() -> None:
    with world() as at:
        at.state.manifest = manifest({"endpoint_id": "g", "endpoint_url": "http://example.com:80", "peer_urls": []})
        raised = call(at.cpu(), "cpu.goes", 4)
        assert isinstance(raised, EndpointUnresolved)
        assert "neither https nor on this machine" in str(raised)


def test_no_key_goes_to_endpoints_of_another_state_manager() -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.env["FLASH_SERVER"] = "https://box.lan:7470"
        at.state.manifest = manifest(ours(opened))
        assert call(at.cpu(), "cpu.goes", 4) == 8
        assert "Authorization" not in opened.heads[0]
        assert "authorization" not in at.state.requests[0]


@pytest.mark.parametrize("how", ["refused", "404"])
def test_an_endpoint_that_moved_is_found_by_one_look_and_called_once_more(how: str) -> None:
    with world() as at, door(at.gpu().spec.socket_path) as opened, door(str(at.here.folder / "gpu.sock")) as old:
        at.env["FLASH_MANIFEST_TTL"] = "6"
        at.state.manifest = manifest(ours(old))
        cpu = at.cpu()
        assert call(cpu, "cpu.goes", 1) == 2
        kept = at.here.folder / "cpu.manifest.lock"
        kept.write_text("1 0\n")  # as if that had been long ago
        at.state.manifest = manifest(ours(opened))
        if how == "refused":
            old.close()
        else:
            old.moved = 10
        assert call(cpu, "cpu.goes", 4, execution="e2") == 8
        assert at.state.queries == 2
        assert len(opened.heads) == 1


def test_an_endpoint_that_nobody_answers_for_is_unreachable_after_one_look() -> None:
    with world() as at:
        with door("/nowhere") as closed:
            url = closed.url
        at.state.manifest = manifest({"endpoint_id": "g", "endpoint_url": url, "peer_urls": []})
        raised = call(at.cpu(), "cpu.goes", 4)
        assert isinstance(raised, EndpointUnreachable)
        assert url in str(raised)


# --- as RunPod's queue API ---


def flash_manifest(opened: Door) -> dict[str, Any]:
    """As Flash writes it: bare names, and addresses apart."""
    return {
        "version": "1.0",
        "function_registry": dict.fromkeys(NAMES, "gpu") | {"own": "cpu"},
        "resources": {
            "gpu": {"resource_type": "LiveServerless", "functions": list(NAMES), "is_load_balanced": False},
            "cpu": {"resource_type": "CpuLiveServerless", "functions": ["own", "goes"], "is_load_balanced": False},
        },
        "resources_endpoints": {"gpu": opened.url},
    }


def test_endpoints_of_a_manifest_in_flashs_form_are_called_in_runpods_form() -> None:
    """`{"input": …}` in JSON, `output` unwrapped, types by annotation, streams as events, errors with a traceback."""
    with world() as at, door(at.gpu().spec.socket_path) as opened:
        at.state.manifest = flash_manifest(opened)
        cpu = at.cpu()
        assert call(cpu, "cpu.goes", 4) == 8
        assert call(cpu, "cpu.goes_blocking", 4, execution="e2") == 8
        assert call(cpu, "cpu.goes_typed", execution="e3") == ["Image", "cat", 5]
        assert "Content-Type: application/json" in opened.heads[0]
        assert call(cpu, "cpu.streams", 3, execution="e4") == [["Image", 0], ["Image", 1], ["Image", 2]]
        assert call(cpu, "cpu.streams_badly", execution="e5") == [0, 1, "OutOfMemory"]
        name, text, _, traceback = call(cpu, "cpu.catches", execution="e6")
        assert name == "OutOfMemory" and "9 GB" in text and "in fails" in traceback


def test_flashs_name_of_a_resource_tells_an_endpoint_that_it_is_meant() -> None:
    """FLASH_RESOURCE_NAME is the declared name with what Flash puts around it."""
    with world() as at, door("/nowhere") as opened:
        found = flash_manifest(opened)
        found["resources"]["live-painter-fb"] = found["resources"].pop("gpu")
        found["function_registry"] = dict.fromkeys(NAMES, "live-painter-fb")
        found["resources_endpoints"] = {"live-painter-fb": opened.url}
        at.state.manifest = found
        at.env["FLASH_RESOURCE_NAME"] = "painter"
        cpu = at.cpu(config={"gpus": ["ANY"]})
        assert call(cpu, "cpu.goes", 4) == 8
        assert not opened.connections
        assert "belongs to this endpoint" in cpu.said()


# --- cycles ---

PING = """
    import pong
    from flashmesh import LiveServerless, remote

    @remote(LiveServerless(name="ping", max_concurrency=1))
    async def ping(n):
        return [n, *(await pong.pong(n - 1) if n else [])]
    """


def test_a_call_that_comes_back_over_tcp_fails_at_once_and_names_its_way() -> None:
    """It could wait for itself there; on one machine it goes by the second socket instead."""
    with world() as at:
        write(at.here.folder, {"pong.py": PING.replace("ping", "PING").replace("pong", "ping").replace("PING", "pong")})
        sockets = {name: str(at.here.folder / f"{name}.sock") for name in ("ping", "pong")}
        with door(sockets["ping"]) as one, door(sockets["pong"]) as two:
            entries = {
                name: {
                    "endpoint_id": name,
                    "endpoint_url": opened.url,
                    "peer_urls": [],
                    "functions": described((name,), name),
                }
                for name, opened in (("ping", one), ("pong", two))
            }
            at.state.manifest = {"environment": "e", "resources": entries}
            source = (at.here.folder / "pong.py").read_text()
            ping = at.here.worker(PING, endpoint="ping", env=at.env, environment="shop/production")
            at.here.worker(source, endpoint="pong", env=at.env, environment="shop/production")
            assert call(ping, "ping.ping", 1) == [1, 0]
            raised = call(ping, "ping.ping", 2, execution="e2")
            assert isinstance(raised, CallCycle)
            assert "ping → pong → ping" in str(raised)


# --- requests that name a function ---


def request_of(name: str, **more: Any) -> dict[str, Any]:
    return {"input": {"function_name": name, "serialization_format": "json", **more}}


def test_a_request_for_another_endpoints_function_is_passed_on_and_its_answer_back() -> None:
    """Flash's clients send it to any endpoint of their app: by socket and by URL."""
    with world() as at:
        gpu = at.gpu()
        with door(gpu.spec.socket_path) as opened:
            at.state.manifest = manifest(ours(opened))
            cpu = at.cpu()
            path = cpu.spec.socket_path
            status, _, body = post(path, "/run_sync", request_of("train", args=[21]))
            assert (status, json.loads(body)["output"]) == (200, 42)
            assert f"Routing 'train' to {opened.url}/train/run_sync" in cpu.said()
            own = post(path, "/run_sync", request_of("own", kwargs={"n": 1}))
            assert json.loads(own[2])["output"] == 2
            status, _, body = post(path, "/run_sync", request_of("fails", args=["9 GB"]))
            error = json.loads(body)["error"]
            assert (status, error["type"]) == (500, "gpu.OutOfMemory")
            assert "9 GB" in error["message"] and "in fails" in error["traceback"]


def test_a_request_for_a_function_that_nobody_has_is_an_error_after_a_warning() -> None:
    with world() as at:
        at.state.manifest = manifest(None)
        cpu = at.cpu()
        status, _, body = post(cpu.spec.socket_path, "/run_sync", request_of("nobodys"))
        assert (status, json.loads(body)["error"]["type"]) == (500, "FunctionNotFound")
        assert "WARNING Function lookup failed" in cpu.said()


def test_code_that_is_sent_is_not_run() -> None:
    with world() as at:
        cpu = at.cpu()
        code = "def evil():\n    open('/tmp/evil', 'w')\n"
        status, _, body = post(cpu.spec.socket_path, "/run_sync", request_of("evil", function_code=code))
        assert status == 500
        assert "no code" in json.loads(body)["error"]["message"]
