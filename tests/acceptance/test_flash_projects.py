"""Projects in Flash's idiom, files and calls as its users write them, under a real `flash run`."""

import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from session_fixtures import Served, serving, write_project

GPU_WORKER = """\
from runpod_flash import Endpoint, GpuType


@Endpoint(
    name="matrix",
    gpu=GpuType.NVIDIA_GEFORCE_RTX_4090,
    workers=(0, 3),
    idle_timeout=300,
    dependencies=["numpy"],
)
async def trace(input_data: dict) -> dict:
    import numpy as np

    return {"trace": float(np.trace(np.eye(input_data.get("size", 2))))}


if __name__ == "__main__":
    import asyncio

    print(asyncio.run(trace({"size": 5})))
"""

CPU_WORKER = """\
from runpod_flash import CpuInstanceType, Endpoint


@Endpoint(name="text_clean", cpu=CpuInstanceType.CPU3C_1_2, idle_timeout=3)
async def clean(input_data: dict) -> dict:
    import re

    return {"text": re.sub(r"\\s+", " ", input_data.get("text", "")).strip()}


@Endpoint(name="text_count", cpu="cpu3g-2-8")
def count(text: str, unit: str = "words") -> dict:
    return {unit: len(text.split() if unit == "words" else text)}
"""

PIPELINE = """\
from runpod_flash import Endpoint

pipeline = Endpoint(name="classify", cpu="cpu3c-1-2", workers=(1, 3))


@pipeline.post("/classify")
async def classify(text: str) -> dict:
    from cpu_worker import clean, count
    from gpu_worker import trace

    cleaned = await clean({"text": text})
    return {**cleaned, **await count(cleaned["text"]), **await trace({"size": 3})}


if __name__ == "__main__":
    import asyncio

    print(asyncio.run(classify("a  b")))
"""

MODEL = """\
from pathlib import Path

from runpod_flash import DataCenter, Endpoint, GpuGroup, NetworkVolume, PodTemplate

volume = NetworkVolume(name="models", size=50, datacenter=DataCenter.EU_RO_1)


@Endpoint(
    name="llm",
    gpu=[GpuGroup.AMPERE_80, GpuGroup.ADA_80_PRO],
    workers=(0, 1),
    datacenter=DataCenter.EU_RO_1,
    volume=volume,
    template=PodTemplate(containerDiskInGb=100, env=[{"key": "STYLE", "value": "loud"}]),
    execution_timeout_ms=60_000,
)
class Model:
    def __init__(self):
        import os

        with (Path(__file__).parent / "loads.txt").open("a") as loads:
            loads.write("loaded\\n")
        self.style = os.environ["STYLE"]

    async def generate(self, prompt: str, times: int = 1) -> dict:
        return {"text": (prompt.upper() if self.style == "loud" else prompt) * times}

    def describe(self) -> dict:
        return {"style": self.style}

    def _private(self) -> None: ...
"""

API = """\
from pydantic import BaseModel

from runpod_flash import Endpoint

api = Endpoint(name="shop", cpu="cpu3c-1-2", workers=(1, 3), env={"SHOP": "open"})


class Item(BaseModel):
    name: str
    price: float = 1.0
    tags: list[str] = []


@api.get("/health")
async def health() -> dict:
    import os

    return {"status": "healthy", "shop": os.environ["SHOP"]}


@api.get("/items/{item_id}")
async def read(item_id: int, verbose: bool = False):
    return {"id": item_id, "verbose": verbose}


@api.post("/items")
async def create(item: Item) -> Item:
    return item


@api.put("/items/{item_id}")
async def replace(item_id: int, item: Item):
    return {"id": item_id, "name": item.name}


@api.patch("/items/{item_id}")
async def change(item_id: int, price: float):
    return {"id": item_id, "price": price}


@api.delete("/items/{item_id}")
async def remove(item_id: int):
    return {"removed": item_id}


@api.post("/compute")
def compute(numbers: list[float], operation: str = "sum") -> dict:
    if operation != "sum":
        raise ValueError("operation must be sum")
    return {"result": sum(numbers)}
"""

LEGACY = """\
from runpod_flash import CpuLiveLoadBalancer, GpuGroup, LiveServerless, remote

gpu_config = LiveServerless(
    name="legacy_gpu",
    gpus=[GpuGroup.ADA_24],
    workersMin=0,
    workersMax=2,
    idleTimeout=5,
)
lb_config = CpuLiveLoadBalancer(name="legacy_lb")


@remote(resource_config=gpu_config, dependencies=["numpy"])
def double(x):
    return {"result": x * 2}


@remote(gpu_config)
class Counter:
    def __init__(self, start: int = 10):
        self.value = start

    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value


@remote(lb_config, method="POST", path="/api/double")
async def route(x: int) -> dict:
    return await double(x)


async def main():
    results = await asyncio.gather(*(double(n) for n in range(3)))
    counter = Counter(start=1)
    print(results, await counter.add(), await counter.add(n=5))
    print(await route(21))


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
"""

OLDER_NAME = """\
from tetra_rp import CpuLiveServerless, remote

config = CpuLiveServerless(name="older")


@remote(config)
def todo_list():
    return ["first", "second"]
"""

TYPED = """\
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from pydantic import BaseModel, Field

from runpod_flash import Endpoint


class Unit(str, Enum):
    CM = "cm"
    INCH = "inch"


@dataclass
class Box:
    width: int
    height: int
    unit: Unit = Unit.CM


class Order(BaseModel):
    boxes: list[Box]
    at: datetime
    note: str | None = Field(None, max_length=5)


@Endpoint(name="orders", cpu="cpu3c-1-2")
async def area(order: Order) -> dict:
    return {"area": sum(box.width * box.height for box in order.boxes), "year": order.at.year, "note": order.note}


@Endpoint(name="boxes", cpu="cpu3c-1-2")
def turned(box: Box) -> Box:
    return Box(box.height, box.width, box.unit)
"""

CLIENT = """\
from runpod_flash import Endpoint

llm = Endpoint(id="ep-abc123")


@Endpoint(name="asks_runpod", cpu="cpu3c-1-2")
async def ask(prompt: str) -> dict:
    job = await llm.run({"prompt": prompt})
    first = job.done
    await job.wait(timeout=20)
    return {"id": job.id, "first": first, "output": job.output, "done": job.done, "error": job.error}


async def main():
    job = await llm.runsync({"prompt": "now"})
    print(job.output)
    print(await llm.get("/v1/models"))


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
"""

SHARED_PACKAGE = """\
from runpod_flash.core.resources import NetworkVolume
from runpod_flash.core.resources.datacenter import DataCenter

volume = NetworkVolume(name="shared", datacenter=DataCenter.EU_RO_1)
"""

WORKER_IN_PACKAGE = """\
from runpod_flash import Endpoint

from .. import volume


@Endpoint(name="in_package", cpu="cpu3c-1-2", volume=volume)
async def where() -> str:
    return volume.name
"""

NUMBERED = {
    "01_first/worker": "from runpod_flash import Endpoint\n\n\n@Endpoint(name='first_worker', cpu='cpu3c-1-2')\n"
    "async def f(x: int) -> dict:\n    return {'first': x}\n",
    "01_first/api": "from runpod_flash import Endpoint\n\nfrom worker import f\n\napi = Endpoint(name='first')\n\n\n"
    "@api.post('/go')\nasync def go(x: int) -> dict:\n    return await f(x)\n",
    "02_second/worker": "from runpod_flash import Endpoint\n\n\n@Endpoint(name='second_worker', cpu='cpu3c-1-2')\n"
    "async def f(x: int) -> dict:\n    return {'second': x}\n",
    "02_second/api": "from runpod_flash import Endpoint\n\napi = Endpoint(name='second')\n\n\n"
    "@api.post('/go')\nasync def go(x: int) -> dict:\n    from worker import f\n\n    return await f(x)\n",
}
"""Folders with numbers and the same file names, as Flash's own examples have."""


class FakeRunPod(BaseHTTPRequestHandler):
    """The queue API of one endpoint: a job needs two looks at its status."""

    looks = 0

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = asked["input"]["prompt"]
        done = self.path == "/v2/ep-abc123/runsync"
        self.answer(
            {"id": f"job-{prompt}", "status": "COMPLETED", "output": {"echo": prompt}}
            if done
            else {"id": f"job-{prompt}", "status": "IN_QUEUE"}
        )

    def do_GET(self) -> None:
        if self.path.startswith("/v2/ep-abc123/status/job-"):
            FakeRunPod.looks += 1
            over = FakeRunPod.looks >= 2
            self.answer(
                {"id": self.path.rpartition("/")[2], "status": "COMPLETED", "output": {"text": "hi"}}
                if over
                else {"id": self.path.rpartition("/")[2], "status": "IN_PROGRESS"}
            )
        else:
            self.answer({"path": self.path})

    def answer(self, body: Any) -> None:
        assert self.headers["Authorization"] == "Bearer test-key"
        payload = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Flash user's environment, whose RunPod is on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), FakeRunPod) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}/v2"
        home = tmp_path_factory.mktemp("home")
        yield {"RUNPOD_ENDPOINT_BASE_URL": base, "RUNPOD_API_KEY": "test-key", "FLASH_HOME": str(home)}
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("flash") / "project"
    write_project(
        root,
        gpu_worker=GPU_WORKER,
        cpu_worker=CPU_WORKER,
        pipeline=PIPELINE,
        model=MODEL,
        api=API,
        legacy=LEGACY,
        older=OLDER_NAME,
        typed=TYPED,
        client=CLIENT,
        workers__gpu__endpoint=WORKER_IN_PACKAGE,
    )
    for file, text in {**NUMBERED, "workers/__init__": SHARED_PACKAGE}.items():
        (root / f"{file}.py").parent.mkdir(exist_ok=True)
        (root / f"{file}.py").write_text(text)
    (root / "requirements.txt").write_text("runpod-flash>=1.0\npydantic\n")
    return root


@pytest.fixture(scope="module")
def flash(project: Path, environment: dict[str, str]) -> Iterator[Served]:
    with serving(project, "--no-install", env=environment) as served:
        yield served
        assert served.stop() == 0, served.output()


@pytest.mark.parametrize(
    ("path", "body", "output"),
    [
        ("/gpu_worker/runsync", {"input": {"input_data": {"size": 4}}}, {"trace": 4.0}),
        ("/gpu_worker/runsync", {"input": {"size": 4}}, {"trace": 4.0}),
        ("/gpu_worker/run_sync", {"size": 4}, {"trace": 4.0}),
        ("/cpu_worker/clean/runsync", {"input": {"input_data": {"text": " a   b "}}}, {"text": "a b"}),
        ("/cpu_worker/count/runsync", {"input": {"text": "a b", "unit": "letters"}}, {"letters": 3}),
        ("/legacy/double/runsync", {"input": {"x": 4}}, {"result": 8}),
        ("/legacy/add/runsync", {"input": {"n": 3}}, 13),
        ("/older/runsync", {"input": {}}, ["first", "second"]),
        ("/older/runsync", {"input": None}, ["first", "second"]),
        ("/older/runsync", {"input": {"__empty": True}}, ["first", "second"]),
        (
            "/typed/turned/runsync",
            {"input": {"box": {"width": 1, "height": 2}}},
            {"width": 2, "height": 1, "unit": "cm"},
        ),
        (
            "/typed/area/runsync",
            {"input": {"order": {"boxes": [{"width": 2, "height": 3}], "at": "2026-05-01T10:00:00"}}},
            {"area": 6, "year": 2026, "note": None},
        ),
        ("/workers/gpu/endpoint/runsync", {"input": {}}, "shared"),
    ],
)
def test_a_queue_function_takes_the_bodies_that_flash_clients_send(
    flash: Served, path: str, body: Any, output: Any
) -> None:
    status, answer = flash.post(path, body)
    assert (status, answer.get("status"), answer.get("output")) == (200, "COMPLETED", output), answer


def test_run_gives_an_id_and_status_the_result(flash: Served) -> None:
    _, job = flash.post("/cpu_worker/count/run", {"input": {"text": "a b c"}})
    for _ in range(1000):
        status, answer = flash.get(f"/cpu_worker/count/status/{job['id']}")
        if answer["status"] == "COMPLETED":
            break
    assert (status, answer["output"]) == (200, {"words": 3})


def test_a_class_loads_its_model_once_and_serves_each_method(flash: Served, project: Path) -> None:
    """By a path per method, and by the `method` key that Flash's deployed classes want."""
    asked = [
        ("/model/generate/runsync", {"input": {"prompt": "ab", "times": 2}}, {"text": "ABAB"}),
        ("/model/runsync", {"input": {"method": "generate", "prompt": "c"}}, {"text": "C"}),
        ("/model/describe/runsync", {"input": {}}, {"style": "loud"}),
    ]
    for path, body, output in asked:
        status, answer = flash.post(path, body)
        assert (status, answer.get("output")) == (200, output), answer
    assert (project / "loads.txt").read_text() == "loaded\n"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("GET", "/api/health", None, {"status": "healthy", "shop": "open"}),
        ("GET", "/api/items/3?verbose=true", None, {"id": 3, "verbose": True}),
        ("POST", "/api/items", {"name": "cup", "price": 2}, {"name": "cup", "price": 2.0, "tags": []}),
        ("PUT", "/api/items/4", {"item": {"name": "jug"}}, {"id": 4, "name": "jug"}),
        ("PATCH", "/api/items/5", {"price": 2.5}, {"id": 5, "price": 2.5}),
        ("DELETE", "/api/items/6", None, {"removed": 6}),
        ("POST", "/api/compute", {"numbers": [1, 2, 3]}, {"result": 6.0}),
        ("POST", "/pipeline/classify", {"text": " a   b "}, {"text": "a b", "words": 2, "trace": 3.0}),
        ("POST", "/legacy/api/double", {"x": 21}, {"result": 42}),
        ("POST", "/01_first/api/go", {"x": 1}, {"first": 1}),
        ("POST", "/02_second/api/go", {"x": 2}, {"second": 2}),
    ],
)
def test_routes_answer_as_a_deployed_flash_endpoint_does(
    flash: Served, method: str, path: str, body: Any, expected: Any
) -> None:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(flash.url + path, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert (answer.status, json.loads(answer.read())) == (200, expected)


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/api/compute", {"numbers": ["x"]}, 422, "numbers"),
        ("/api/compute", {}, 422, "numbers"),
        ("/api/compute", {"numbers": [], "operation": "mean"}, 500, "operation must be sum"),
        ("/cpu_worker/count/runsync", {"input": {}}, 422, "text"),
        ("/typed/area/runsync", {"input": {"order": {"boxes": [], "at": "x"}}}, 422, "at"),
    ],
)
def test_what_goes_wrong_has_a_status_and_says_what(
    flash: Served, path: str, body: Any, status: int, said: str
) -> None:
    got, answer = flash.post(path, body)
    assert (got, said in str(answer)) == (status, True), answer


def test_a_job_elsewhere_is_waited_for(flash: Served) -> None:
    """EndpointJob in a worker, against RunPod's queue API."""
    FakeRunPod.looks = 0
    status, answer = flash.post("/client/runsync", {"input": {"prompt": "hello"}})
    expected = {"id": "job-hello", "first": False, "output": {"text": "hi"}, "done": True, "error": None}
    assert (status, answer.get("output")) == (200, expected), answer


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        ("gpu_worker.py", ["{'trace': 5.0}"]),
        ("pipeline.py", ["{'text': 'a b', 'words': 2, 'trace': 3.0}"]),
        ("legacy.py", ["[{'result': 0}, {'result': 2}, {'result': 4}] 2 7", "{'result': 42}"]),
        ("client.py", ["{'echo': 'now'}", "{'path': '/lb/ep-abc123/v1/models'}"]),
    ],
)
def test_a_script_runs_as_it_is(project: Path, environment: dict[str, str], script: str, printed: list[str]) -> None:
    """`python file.py`, with nothing deployed and nothing running for it."""
    done = subprocess.run(
        [sys.executable, script],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert [line for line in done.stdout.splitlines() if "no GPU here" not in line] == printed, (
        done.stdout + done.stderr
    )
