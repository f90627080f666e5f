"""Endpoint as a decorator: queue-based functions and classes, HTTP routes, and its settings."""

import asyncio
import inspect
from typing import Any

import pytest
from functions_fixtures import FakeCaller, installed

from flashmesh.functions.config import VolumeConfig
from flashmesh.functions.declarations import declarations_in
from flashmesh.functions.endpoint import Endpoint
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.gpu_types import GpuType
from flashmesh.functions.hardware import CpuInstanceType, CudaVersion, DataCenter, GpuGroup, ServerlessScalerType
from flashmesh.functions.resources import CpuLiveLoadBalancer
from flashmesh.functions.templates import PodTemplate
from flashmesh.functions.volumes import NetworkVolume


def handler(x: int) -> int:
    return x


def another(x: int) -> int:
    return x


def test_a_bare_endpoint_has_flash_s_defaults() -> None:
    endpoint = Endpoint(name="e")
    config = endpoint.to_config()
    assert config.resource_type == "Endpoint"
    assert (config.name, config.gpus, config.gpu_count) == ("e", ("ANY",), 1)
    assert (config.workers_min, config.workers_max) == (0, 1)
    assert (config.idle_timeout_s, config.execution_timeout_ms) == (60, 0)
    assert (config.scaler_type, config.scaler_value, config.flashboot) == ("QUEUE_DELAY", 4, True)
    assert (config.max_concurrency, config.queue_size, config.mode) == (1, 1000, "WARM")
    assert (config.min_cuda_version, config.datacenters, config.is_load_balanced) == ("12.8", (), False)
    assert endpoint.datacenter == DataCenter.all()
    assert not endpoint.is_client


@pytest.mark.parametrize(
    ("workers", "expected"), [(None, (0, 1)), (5, (0, 5)), ((2, 4), (2, 4)), ([1, 3], (1, 3)), (0, (0, 0))]
)
def test_workers_is_a_most_or_a_pair(workers: Any, expected: tuple[int, int]) -> None:
    endpoint = Endpoint(name="e", workers=workers)
    assert (endpoint.workers_min, endpoint.workers_max) == expected


@pytest.mark.parametrize("workers", [-1, (3, 1), (-1, 2), "5", (1, 2, 3), True])
def test_impossible_workers_are_refused(workers: Any) -> None:
    with pytest.raises(DeclarationError, match="workers"):
        Endpoint(name="e", workers=workers)


def test_gpu_and_cpu_take_one_or_several_by_member_or_name() -> None:
    assert Endpoint(name="e", gpu=GpuType.NVIDIA_L4).to_config().gpus == ("NVIDIA_L4",)
    assert Endpoint(name="e", gpu=[GpuGroup.ADA_24, "NVIDIA H200"]).to_config().gpus == ("ADA_24", "NVIDIA_H200")
    assert Endpoint(name="e", cpu="cpu3c-1-2").to_config().cpus == ("cpu3c-1-2",)
    both = Endpoint(name="e", cpu=["cpu5c-1-2", CpuInstanceType.CPU3G_8_32])
    assert both.to_config().cpus == ("cpu5c-1-2", "cpu3g-8-32")
    assert both.is_cpu
    assert both.datacenter is None
    assert both.to_config().gpus == ()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"gpu": GpuGroup.ANY, "cpu": "cpu3c-1-2"}, "exclude each other"),
        ({"id": "a", "image": "b"}, "exclude each other"),
        ({"name": None, "image": "b"}, "needs a name"),
        ({"cpu": "cpu3c-1-3"}, "did you mean"),
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"volume": []}, "empty"),
        ({"volume": "v"}, "NetworkVolume"),
        ({"dependencies": "numpy"}, "list of strings"),
        ({"name": ""}, "name"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Endpoint(**{"name": "e", **settings})


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'workers'"):
        Endpoint(name="e", worker=3)


def test_everything_declared_is_in_the_configuration() -> None:
    config = Endpoint(
        name="e",
        gpu=GpuGroup.ADA_24,
        workers=(1, 3),
        idle_timeout=9,
        dependencies=["numpy"],
        system_dependencies=["ffmpeg"],
        accelerate_downloads=False,
        volume=NetworkVolume(name="v", size=20),
        datacenter=["EU-RO-1", DataCenter.US_GA_2],
        env={"A": "1"},
        gpu_count=2,
        execution_timeout_ms=1000,
        flashboot=False,
        image="mine:1",
        scaler_type=ServerlessScalerType.REQUEST_COUNT,
        scaler_value=7,
        template=PodTemplate(containerDiskInGb=99),
        min_cuda_version=CudaVersion.V12_4,
        max_concurrency=5,
        retries=2,
        retry_on=(TimeoutError,),
        mode="JOB",
        queue_size=10,
        preload=False,
        gpu_share=True,
        public=True,
        python_version="3.12",
        target="kubernetes",
    ).to_config()
    assert config.gpus == ("ADA_24",)
    assert (config.gpu_count, config.workers_min, config.workers_max, config.idle_timeout_s) == (2, 1, 3, 9)
    assert (config.dependencies, config.system_dependencies) == (("numpy",), ("ffmpeg",))
    assert not config.accelerate_downloads
    assert config.volumes == (VolumeConfig(name="v", size_gb=20, datacenter="EU-RO-1"),)
    assert config.datacenters == ("EU-RO-1", "US-GA-2")
    assert (config.env, config.execution_timeout_ms, config.flashboot) == ({"A": "1"}, 1000, False)
    assert (config.image, config.scaler_type, config.scaler_value) == ("mine:1", "REQUEST_COUNT", 7)
    assert config.template is not None
    assert config.template["containerDiskInGb"] == 99
    assert (config.min_cuda_version, config.max_concurrency) == ("12.4", 5)
    assert (config.retries, config.retry_on, config.mode) == (2, ("builtins.TimeoutError",), "JOB")
    assert (config.queue_size, config.preload, config.gpu_share) == (10, False, True)
    assert (config.public, config.python_version, config.target) == (True, "3.12", "kubernetes")


def test_every_keyword_changes_the_configuration() -> None:
    """A keyword that is accepted and dropped fails here."""
    other: dict[str, Any] = {
        "name": "f",
        "id": "i",
        "gpu": GpuGroup.ADA_24,
        "cpu": "cpu3c-1-2",
        "workers": 4,
        "idle_timeout": 5,
        "dependencies": ["a"],
        "system_dependencies": ["a"],
        "accelerate_downloads": False,
        "volume": NetworkVolume(name="v"),
        "datacenter": "US-KS-2",
        "env": {"A": "1"},
        "gpu_count": 3,
        "execution_timeout_ms": 5,
        "flashboot": False,
        "image": "i",
        "scaler_type": "REQUEST_COUNT",
        "scaler_value": 9,
        "template": PodTemplate(),
        "min_cuda_version": None,
        "max_concurrency": 2,
        "retries": 1,
        "retry_on": ValueError,
        "mode": "JOB",
        "queue_size": 1,
        "preload": False,
        "gpu_share": True,
        "public": True,
        "python_version": "3.13",
        "target": "mesh",
    }
    keywords = set(inspect.signature(Endpoint.__init__).parameters) - {"self", "unknown"}
    assert keywords == set(other)
    default = Endpoint(name="e").to_config()
    for keyword, value in other.items():
        assert Endpoint(**{"name": "e", keyword: value}).to_config() != default, keyword


def test_a_decorated_function_is_queue_based_and_names_its_endpoint() -> None:
    endpoint = Endpoint(cpu="cpu3c-1-2", dependencies=["numpy"], max_concurrency=3)
    decorated = endpoint(handler)
    declaration = decorated.__flash__
    assert endpoint.name == "handler"
    assert (declaration.decorated_by, declaration.resource) == ("endpoint", endpoint)
    assert (declaration.config.name, declaration.config.dependencies) == ("handler", ("numpy",))
    assert decorated.__remote_config__["max_concurrency"] == 3
    with installed(FakeCaller()):
        assert asyncio.run(decorated(1)) == "answered"
        assert decorated.call(1) == "answered"


def test_a_decorated_class_is_a_class_worker() -> None:
    @Endpoint(name="classy")
    class Model:
        def __init__(self, size: int = 1) -> None:
            self.size = size

        def predict(self, x: int) -> int:
            return x * self.size

    with installed(FakeCaller(local=True)):
        assert asyncio.run(Model(3).predict(2)) == 6
    assert Model.__flash__.kind == "class"


@pytest.mark.parametrize("verb", ["get", "post", "put", "delete", "patch", "head", "options"])
def test_a_route_s_function_stays_the_plain_function(verb: str) -> None:
    api = Endpoint(name="api")
    decorated = getattr(api, verb)("/x")(lambda: "called")
    assert decorated() == "called"
    declaration = decorated.__flash__
    assert (declaration.method, declaration.path, declaration.decorated_by) == (verb.upper(), "/x", "route")
    assert decorated.__remote_config__["is_lb_route_handler"]
    assert api.is_load_balanced
    assert declaration.config.is_load_balanced
    assert declaration.config.scaler_type == "REQUEST_COUNT"


def test_an_explicit_scaler_stays_with_routes() -> None:
    api = Endpoint(name="api", scaler_type="QUEUE_DELAY")
    api.get("/x")(another)
    assert api.scaler_type is ServerlessScalerType.QUEUE_DELAY


def test_routes_are_found_through_their_endpoint() -> None:
    api = Endpoint(name="api")

    def one() -> None: ...

    def other() -> None: ...

    api.get("/a")(one)
    api.post("/a")(other)
    assert [d.name for d in api.route_declarations] == ["one", "other"]
    assert len(declarations_in({"__name__": __name__, "api": api})) == 2


def test_one_function_may_serve_several_routes() -> None:
    api = Endpoint(name="api")

    @api.get("/both")
    @api.post("/both")
    def both() -> None: ...

    assert [(d.method, d.name) for d in api.route_declarations] == [("POST", "both"), ("GET", "both")]
    with pytest.raises(DeclarationError, match="declared already"):
        Endpoint(name="queue")(both)


def test_a_route_is_registered_once() -> None:
    api = Endpoint(name="api")
    api.get("/x")(lambda: None)
    with pytest.raises(DeclarationError, match="already"):
        api.get("/x")(lambda: None)


@pytest.mark.parametrize(("path", "says"), [("x", "start with '/'"), ("/ping", "reserved"), ("/execute", "reserved")])
def test_a_route_s_path_is_checked(path: str, says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        Endpoint(name="api").get(path)


def test_routes_need_a_named_endpoint() -> None:
    with pytest.raises(DeclarationError, match="named endpoint"):
        Endpoint().get("/x")


def test_one_endpoint_is_a_queue_or_has_routes() -> None:
    routes = Endpoint(name="a")
    routes.get("/x")(lambda: None)
    with pytest.raises(DeclarationError, match="has HTTP routes"):
        routes(handler)
    queue = Endpoint(name="b")
    queue(handler)
    with pytest.raises(DeclarationError, match="decorates a function directly"):
        queue.get("/x")


def test_data_is_for_clients_only() -> None:
    with pytest.raises(TypeError, match="takes the path alone"):
        Endpoint(name="api").post("/x", {"a": 1})


def test_a_client_cannot_decorate() -> None:
    with pytest.raises(DeclarationError, match="client"):
        Endpoint(id="abc")(handler)
    assert Endpoint(id="abc").is_client
    assert repr(Endpoint(id="abc")) == "Endpoint(id='abc')"
    assert Endpoint(id="abc").datacenter is None


def test_a_decorator_has_no_client_verbs() -> None:
    with pytest.raises(TypeError, match="spawn"):
        asyncio.run(Endpoint(name="e").run({}))


def test_settings_read_back_under_flash_s_names() -> None:
    volume = NetworkVolume(name="v")
    endpoint = Endpoint(name="e", volume=volume, env={"A": "1"}, template=PodTemplate(), scaler_value=6)
    assert endpoint.volume == [volume]
    assert (endpoint.env, endpoint.scaler_value, endpoint.flashboot) == ({"A": "1"}, 6, True)
    assert (endpoint.gpu_count, endpoint.idle_timeout, endpoint.execution_timeout_ms) == (1, 60, 0)
    assert endpoint.min_cuda_version is CudaVersion.V12_8
    assert isinstance(endpoint.template, PodTemplate)
    assert Endpoint(name="e").template is None


def test_routes_are_served_a_hundred_at_a_time_unless_a_number_is_declared() -> None:
    api, one, queue = Endpoint(name="api"), Endpoint(name="one", max_concurrency=1), Endpoint(name="queue")
    for endpoint in (api, one):
        endpoint.get("/x")(inspect.getdoc)
    assert [made.to_config().max_concurrency for made in (api, one, queue)] == [100, 1, 1]
    assert CpuLiveLoadBalancer(name="a").to_config().max_concurrency == 100
    assert CpuLiveLoadBalancer(name="a", max_concurrency=3).to_config().max_concurrency == 3
