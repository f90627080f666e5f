"""Resource classes: Flash's defaults, names and validation, and nothing lost on the way to a ResourceConfig."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import flashmesh
from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.gpu_types import GpuType
from flashmesh.functions.hardware import (
    CpuInstanceType,
    CudaVersion,
    DataCenter,
    GpuGroup,
    ServerlessScalerType,
    ServerlessType,
)
from flashmesh.functions.resources import (
    CpuLiveLoadBalancer,
    CpuLiveServerless,
    CpuServerlessEndpoint,
    LiveLoadBalancer,
    LiveServerless,
    LoadBalancerSlsResource,
    Resource,
    ServerlessEndpoint,
)
from flashmesh.functions.templates import KeyValuePair, PodTemplate
from flashmesh.functions.volumes import NetworkVolume


def test_a_gpu_resource_has_flash_s_defaults() -> None:
    resource = LiveServerless(name="x")
    assert resource.gpus == [GpuGroup.ANY]
    assert (resource.gpuCount, resource.workersMin, resource.workersMax) == (1, 0, 1)
    assert (resource.idleTimeout, resource.executionTimeoutMs, resource.flashboot) == (60, 0, True)
    assert resource.minCudaVersion is CudaVersion.V12_8
    assert (resource.scalerType, resource.scalerValue) == (ServerlessScalerType.QUEUE_DELAY, 4)
    assert resource.imageName == "runpod/flash:py3.12-latest"
    assert resource.template.containerDiskInGb == 64
    assert resource.type is ServerlessType.QB


def test_a_cpu_resource_has_a_small_cpu_and_a_disk_that_fits_it() -> None:
    resource = CpuLiveServerless(name="x")
    assert resource.instanceIds == [CpuInstanceType.CPU3G_2_8]
    assert (resource.gpus, resource.gpuCount, resource.minCudaVersion) == (None, 0, None)
    assert resource.template.containerDiskInGb == 20
    assert resource.imageName.startswith("runpod/flash-cpu:")
    config = resource.to_config()
    assert (config.gpus, config.gpu_count, config.cpus) == ((), 0, ("cpu3g-2-8",))


@pytest.mark.parametrize(("kind", "image"), [(LiveLoadBalancer, "flash-lb:"), (CpuLiveLoadBalancer, "flash-lb-cpu:")])
def test_a_load_balancer_counts_requests(kind: type[Resource], image: str) -> None:
    resource = kind(name="x")
    assert resource.scalerType is ServerlessScalerType.REQUEST_COUNT
    assert resource.is_load_balanced
    assert image in resource.imageName
    assert resource.to_config().is_load_balanced


def test_the_default_image_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_IMAGE_TAG", "beta")
    assert LiveServerless(name="x", python_version="3.11").imageName == "runpod/flash:py3.11-beta"
    monkeypatch.setenv("FLASH_GPU_IMAGE", "mine:1")
    assert LiveServerless(name="x").imageName == "mine:1"


def test_an_image_of_one_s_own_is_kept_and_a_default_is_not_configuration() -> None:
    assert LiveServerless(name="x").to_config().image is None
    assert ServerlessEndpoint(name="x", imageName="mine:1").to_config().image == "mine:1"


@pytest.mark.parametrize("kind", [ServerlessEndpoint, CpuServerlessEndpoint, LoadBalancerSlsResource])
def test_classes_without_an_image_need_one(kind: type[Resource]) -> None:
    with pytest.raises(DeclarationError, match="imageName, template or templateId"):
        kind(name="x")
    assert kind(name="x", templateId="t1").to_config().template_id == "t1"
    assert kind(name="x", template=PodTemplate(imageName="a:1")).to_config().template is not None


def test_our_names_and_flash_s_are_the_same_setting() -> None:
    flash = LiveServerless(name="x", workersMin=1, workersMax=5, idleTimeout=9, executionTimeoutMs=7, gpuCount=2)
    ours = LiveServerless(name="x", workers_min=1, workers_max=5, idle_timeout=9, execution_timeout_ms=7, gpu_count=2)
    assert flash.to_config() == ours.to_config()
    assert (ours.workersMax, flash.workers_max) == (5, 5)
    assert flash.execution_timeout_ms == ours.executionTimeoutMs == 7


def test_one_setting_under_two_names_is_refused() -> None:
    with pytest.raises(TypeError, match="twice"):
        LiveServerless(name="x", workersMax=2, workers_max=3)


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="did you mean 'workersMax'"):
        LiveServerless(name="x", workerMax=2)
    with pytest.raises(TypeError, match=r"unknown keyword argument 'zzz'$"):
        LiveServerless(name="x", zzz=2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"workersMin": 3, "workersMax": 2}, "workersMin"),
        ({"workersMax": -1}, "workersMax"),
        ({"workersMax": "many"}, "whole number"),
        ({"workersMax": True}, "whole number"),
        ({"idleTimeout": 0}, "above 0"),
        ({"idleTimeout": "soon"}, "seconds"),
        ({"gpus": ["ADA_25"]}, "did you mean 'ADA_24'"),
        ({"gpus": [7]}, "GpuGroup"),
        ({"minCudaVersion": "12.99"}, "CudaVersion"),
        ({"datacenter": "MOON"}, "MOON"),
        ({"datacenter": 7}, "DataCenter"),
        ({"env": {"A": 1}}, r"env\['A'\]"),
        ({"env": "A=1"}, "dictionary"),
        ({"python_version": "2.7"}, "3.12"),
        ({"mode": "SOMETIMES"}, "WARM"),
        ({"retry_on": [7]}, "exception classes"),
        ({"flashboot": "yes"}, "True or False"),
        ({"networkVolume": "v"}, "NetworkVolume"),
        ({"networkVolumes": []}, "empty list"),
        ({"template": "t"}, "PodTemplate"),
        ({"name": " "}, "not empty"),
        ({"target": ""}, "not empty"),
        ({"scalerType": "LUCK"}, "ServerlessScalerType"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError, match=says):
        LiveServerless(**{"name": "x", **settings})


def test_an_environment_s_values_are_never_shown() -> None:
    with pytest.raises(DeclarationError) as refused:
        LiveServerless(name="x", env={"KEY": b"hunter2"})
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in repr(LiveServerless(name="x", env={"KEY": "hunter2"}))


def test_numbers_may_come_as_text_as_from_an_environment_variable() -> None:
    assert LiveServerless(name="x", workersMax="3", idleTimeout="2.5").to_config().workers_max == 3


def test_none_means_the_default() -> None:
    assert (
        LiveServerless(name="x", workersMax=None, env=None, gpus=None).to_config()
        == LiveServerless(name="x").to_config()
    )


def test_no_lowest_cuda_version_can_be_asked_for() -> None:
    assert LiveServerless(name="x", minCudaVersion=None).to_config().min_cuda_version is None


def test_a_resource_needs_a_name() -> None:
    with pytest.raises(DeclarationError, match="needs a name"):
        LiveServerless()


def test_a_cpu_class_refuses_gpus() -> None:
    with pytest.raises(DeclarationError, match="no GPUs"):
        CpuLiveServerless(name="x", gpus=[GpuGroup.ANY])


def test_cpu_sizes_on_a_gpu_class_make_it_a_cpu_resource() -> None:
    """Early Flash code says so."""
    config = LiveServerless(name="x", instanceIds=["cpu3c-1-2"]).to_config()
    assert (config.gpus, config.cpus) == ((), ("cpu3c-1-2",))


def test_cpu_workers_are_not_offered_everywhere() -> None:
    with pytest.raises(DeclarationError, match="EU-RO-1"):
        CpuLiveServerless(name="x", datacenter=DataCenter.US_KS_2)


def test_a_disk_too_large_for_a_cpu_size_is_refused() -> None:
    with pytest.raises(DeclarationError, match="at most 20 GB"):
        CpuLiveServerless(name="x", template=PodTemplate(containerDiskInGb=100))


def test_a_setting_can_be_changed_and_is_checked_again() -> None:
    resource = LiveServerless(name="x")
    resource.workers_max = 4
    resource.imageName = "mine:2"
    assert (resource.workersMax, resource.to_config().image) == (4, "mine:2")
    with pytest.raises(DeclarationError):
        resource.workersMin = 9
    assert resource.workersMin == 0
    with pytest.raises(AttributeError):
        resource.workers = 3
    with pytest.raises(AttributeError):
        _ = resource.workers


def test_a_copy_differs_where_it_was_told_to() -> None:
    resource = LiveServerless(name="x", workersMax=4, gpus=[GpuGroup.ADA_24])
    copy = resource.model_copy(update={"name": "y"})
    assert (copy.name, copy.workersMax, copy.gpus) == ("y", 4, [GpuGroup.ADA_24])
    assert resource.name == "x"
    assert copy.model_dump()["workersMax"] == 4
    assert "env" not in copy.model_dump(exclude_none=True)


def test_a_volume_is_named_or_has_an_id() -> None:
    volume = NetworkVolume(name="models", size=50, datacenter="US-KS-2")
    assert volume.to_config() == VolumeConfig(name="models", size_gb=50, datacenter="US-KS-2")
    assert (volume.dataCenterId, volume.datacenter, volume.is_created) == (
        DataCenter.US_KS_2,
        DataCenter.US_KS_2,
        False,
    )
    assert NetworkVolume(id="v1").is_created
    with pytest.raises(DeclarationError, match="name"):
        NetworkVolume()
    with pytest.raises(TypeError, match="did you mean 'size'"):
        NetworkVolume(name="x", sise=3)


@pytest.mark.parametrize("size", [9, 4097, "big"])
def test_a_volume_s_size_has_bounds(size: Any) -> None:
    with pytest.raises(DeclarationError, match="size"):
        NetworkVolume(name="x", size=size)


def test_a_resource_has_one_volume_per_data_centre() -> None:
    one = NetworkVolume(name="a")
    with pytest.raises(DeclarationError, match="one volume per data centre"):
        LiveServerless(name="x", networkVolumes=[one, NetworkVolume(name="b")])
    with pytest.raises(DeclarationError, match="runs in US-KS-2"):
        LiveServerless(name="x", networkVolume=one, datacenter="US-KS-2")


def test_the_first_of_several_volumes_reads_as_the_single_one() -> None:
    a, b = NetworkVolume(name="a"), NetworkVolume(name="b", datacenter="US-KS-2")
    resource = LiveServerless(name="x", networkVolumes=[a, b])
    assert resource.networkVolume is a
    assert [volume.name for volume in LiveServerless(name="x", networkVolume=a).networkVolumes or ()] == ["a"]
    assert [volume.name for volume in resource.to_config().volumes] == ["a", "b"]


def test_a_volume_may_be_given_as_a_dictionary() -> None:
    assert LiveServerless(name="x", networkVolume={"name": "v"}).to_config().volumes[0].name == "v"
    assert LiveServerless(name="x", networkVolumeId="v9").to_config().volumes == (VolumeConfig(id="v9"),)


def test_workers_get_the_environment_of_the_resource_or_else_of_its_template() -> None:
    """As on RunPod, where a resource's own variables replace its template's."""
    template = PodTemplate(env=[{"key": "A", "value": "template"}])
    assert LiveServerless(name="x", template=template).to_config().worker_env == {"A": "template"}
    assert LiveServerless(name="x", template=template, env={"B": "1"}).to_config().worker_env == {"B": "1"}
    assert LiveServerless(name="x").to_config().worker_env == {}


def test_a_template_s_environment_comes_as_pairs_or_as_a_dictionary() -> None:
    assert PodTemplate(env={"A": "1"}).to_dict()["env"] == {"A": "1"}
    assert PodTemplate(env=[KeyValuePair(key="A", value="1"), {"key": "B", "value": "2"}]).to_dict()["env"] == {
        "A": "1",
        "B": "2",
    }
    with pytest.raises(DeclarationError):
        PodTemplate(env=["A=1"])
    with pytest.raises(DeclarationError, match="value"):
        KeyValuePair(key="A")


def test_a_resource_completes_a_copy_of_a_shared_template() -> None:
    shared = PodTemplate(imageName="a:1")
    assert CpuLiveServerless(name="x", template=shared).template.containerDiskInGb == 20
    assert shared.containerDiskInGb == 64


def test_settings_that_only_runpod_understands_are_kept_as_written() -> None:
    config = LiveServerless(
        name="x", cudaVersions=["12.4"], gpuIds="AMPERE_48,-NVIDIA A40", workersPFBTarget=2, aiKey="secret"
    ).to_config()
    assert config.extra == {"cudaVersions": ["12.4"], "gpuIds": "AMPERE_48,-NVIDIA A40", "workersPFBTarget": 2}
    assert config.gpus == ("AMPERE_48",)
    assert "secret" not in json.dumps(config.to_dict())


def test_locations_are_data_centres() -> None:
    assert LiveServerless(name="x", locations="US-KS-2, EU-RO-1").to_config().datacenters == ("US-KS-2", "EU-RO-1")


def test_data_centres_are_empty_when_none_was_declared() -> None:
    assert LiveServerless(name="x").to_config().datacenters == ()


def test_every_resource_class_is_public() -> None:
    for kind in (LiveServerless, CpuLiveLoadBalancer, ServerlessEndpoint):
        assert getattr(flashmesh, kind.__name__) is kind


VALUES: dict[str, tuple[str, st.SearchStrategy[Any]]] = {
    "name": ("name", st.text("abc-", min_size=1)),
    "id": ("endpoint_id", st.text("abc", min_size=1)),
    "gpus": ("gpus", st.lists(st.sampled_from([*GpuGroup.all(), *GpuType.all()]), min_size=1, unique=True)),
    "gpuCount": ("gpu_count", st.integers(1, 8)),
    "workersMin": ("workers_min", st.integers(0, 3)),
    "workersMax": ("workers_max", st.integers(3, 9)),
    "idleTimeout": ("idle_timeout_s", st.integers(1, 3600)),
    "executionTimeoutMs": ("execution_timeout_ms", st.integers(0, 10**7)),
    "scalerType": ("scaler_type", st.sampled_from(ServerlessScalerType)),
    "scalerValue": ("scaler_value", st.integers(1, 99)),
    "flashboot": ("flashboot", st.booleans()),
    "env": ("env", st.dictionaries(st.text("ABC", min_size=1), st.text())),
    "networkVolume": ("volumes", st.builds(NetworkVolume, name=st.text("ab", min_size=1), size=st.integers(10, 4096))),
    "imageName": ("image", st.text("ab:", min_size=1)),
    "template": ("template", st.builds(PodTemplate, containerDiskInGb=st.integers(1, 99), ports=st.text("0123"))),
    "templateId": ("template_id", st.text("ab", min_size=1)),
    "minCudaVersion": ("min_cuda_version", st.sampled_from(CudaVersion)),
    "python_version": ("python_version", st.sampled_from(["3.11", "3.12", "3.13"])),
    "max_concurrency": ("max_concurrency", st.integers(1, 99)),
    "queue_size": ("queue_size", st.integers(0, 10**6)),
    "mode": ("mode", st.sampled_from(["WARM", "JOB", "EXTERNAL"])),
    "retries": ("retries", st.integers(0, 9)),
    "retry_on": ("retry_on", st.lists(st.sampled_from([ValueError, TimeoutError]), unique=True)),
    "preload": ("preload", st.booleans()),
    "gpu_share": ("gpu_share", st.booleans()),
    "public": ("public", st.booleans()),
    "target": ("target", st.sampled_from(["local", "kubernetes"])),
    "flashEnvironmentId": ("extra", st.text("ab")),
    "allowedCudaVersions": ("extra", st.text("12.")),
}


def _as_config(name: str, value: Any) -> Any:
    """What a ResourceConfig holds for a declared value."""
    if isinstance(value, NetworkVolume):
        return (value.to_config(),)
    if isinstance(value, PodTemplate):
        return value.to_dict()
    if name == "gpus":
        return tuple(item.name for item in value)
    if name == "retry_on":
        return tuple(f"builtins.{kind.__name__}" for kind in value)
    return getattr(value, "value", value)


@given(
    st.fixed_dictionaries({"name": VALUES["name"][1]}, optional={k: v for k, (_, v) in VALUES.items() if k != "name"})
)
def test_no_declared_setting_is_lost(settings: dict[str, Any]) -> None:
    """Whatever is declared is in the ResourceConfig, and survives its JSON form."""
    settings.setdefault("workersMax", 3)
    config = LiveServerless(**settings).to_config()
    for name, value in settings.items():
        field = VALUES[name][0]
        held = config.extra[name] if field == "extra" else getattr(config, field)
        assert held == _as_config(name, value), name
    assert ResourceConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_property_covers_every_setting_there_is() -> None:
    """A new setting without a row above fails here."""
    elsewhere = {
        "instanceIds",
        "networkVolumes",
        "datacenter",
        "type",
        "networkVolumeId",
        "locations",
        "gpuIds",
        "aiKey",
    }
    only_runpod = {
        "cudaVersions",
        "workersPFBTarget",
        "activeBuildid",
        "computeType",
        "createdAt",
        "flashBootType",
        "hubRelease",
        "repo",
        "userId",
    }
    assert {setting.name for setting in Resource.settings.values()} == set(VALUES) | elsewhere | only_runpod
