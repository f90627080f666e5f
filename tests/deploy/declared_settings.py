"""Every setting of every public class, with values to try, as source code."""

import inspect
from typing import Any

from hypothesis import strategies as st

from flashmesh import Endpoint, remote
from flashmesh.functions.resources import Resource

SECRET = "hush-hush-"
_NAMES = st.text("abcXYZ_", min_size=1, max_size=6)
_SECRETS = st.dictionaries(_NAMES, _NAMES.map(SECRET.__add__), max_size=2)


def code(value: Any) -> str:
    """The value as Python source; text that is marked so is source already."""
    return value.text if isinstance(value, Source) else repr(value)


class Source:
    """A piece of source code."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _source(*texts: str) -> st.SearchStrategy[Source]:
    return st.sampled_from(texts).map(Source)


_GPUS = _source("GpuGroup.ADA_24", "[GpuGroup.AMPERE_80, GpuGroup.HOPPER_141]", "GpuGroup.ANY", '["ADA_48_PRO"]')
_CPUS = _source('["cpu5c-1-2"]', "CpuInstanceType.CPU5C_2_4", '["cpu5c-4-8", CpuInstanceType.CPU5C_1_2]')
_VOLUME = _source('NetworkVolume(name="data", size=50)', 'NetworkVolume(id="v-1")')
_VOLUMES = st.lists(_VOLUME, min_size=1, max_size=2)
_TEMPLATES = st.builds(
    lambda env, disk, ports: Source(
        f"PodTemplate(name='t', imageName='img', env={env!r}, containerDiskInGb={disk}, ports={ports!r}, "
        "dockerArgs='x', startScript='y', advancedStart=True, volumeInGb=3, volumeMountPath='/v', "
        "containerRegistryAuthId='r')"
    ),
    _SECRETS,
    st.integers(1, 10),
    st.sampled_from(["", "80/http"]),
)
_EXCEPTIONS = _source("(ValueError, TimeoutError)", "ConnectionError", '"my.Error"')
_PACKAGES = st.lists(st.sampled_from(["rich", "numpy>=1"]), max_size=2)
_EXTRA = st.sampled_from(["a", "b-1"])

SETTINGS: dict[str, st.SearchStrategy[Any]] = {
    "gpus": _GPUS,
    "gpuCount": st.integers(1, 8),
    "instanceIds": _CPUS,
    "workersMin": st.integers(0, 2),
    "workersMax": st.integers(2, 9),
    "idleTimeout": st.integers(1, 900) | st.sampled_from([0.5, 2.25]),
    "executionTimeoutMs": st.integers(0, 10**6),
    "scalerType": _source("ServerlessScalerType.QUEUE_DELAY", '"REQUEST_COUNT"'),
    "scalerValue": st.integers(1, 99),
    "flashboot": st.booleans(),
    "env": _SECRETS,
    "networkVolume": _VOLUME,
    "networkVolumes": _VOLUMES,
    "datacenter": _source("DataCenter.EU_RO_1", '["EU-RO-1"]'),
    "imageName": st.sampled_from(["org/image:1", "x@sha256:ab"]),
    "template": _TEMPLATES,
    "templateId": _EXTRA,
    "minCudaVersion": _source("CudaVersion.V12_4", '"12.6"'),
    "python_version": st.sampled_from(["3.11", "3.12"]),
    "max_concurrency": st.integers(1, 50),
    "queue_size": st.integers(0, 5000),
    "mode": st.sampled_from(["WARM", "JOB", "POOL"]),
    "retries": st.integers(0, 5),
    "retry_on": _EXCEPTIONS,
    "preload": st.booleans(),
    "gpu_share": st.booleans(),
    "public": st.booleans(),
    "target": st.sampled_from(["local", "kubernetes"]),
    "locations": st.just("EU-RO-1"),
    "gpuIds": st.sampled_from(["ADA_24,AMPERE_48", "custom"]),
    "cudaVersions": _source('["12.4", CudaVersion.V12_6]'),
    "allowedCudaVersions": st.just("12.4,12.6"),
    "workersPFBTarget": st.integers(0, 9),
    "networkVolumeId": _EXTRA,
    "flashEnvironmentId": _EXTRA,
    "activeBuildid": _EXTRA,
    "computeType": _EXTRA,
    "createdAt": _EXTRA,
    "flashBootType": _EXTRA,
    "hubRelease": st.sampled_from(["h", {"a": [1, {"b": None}]}]) | _source("{1: GpuGroup.ADA_24, 'b': (1, {2})}"),
    "repo": st.sampled_from(["r", {"url": "u", "depth": 1}]),
    "userId": _EXTRA,
    "aiKey": _NAMES.map(SECRET.__add__),
}
"""Of resource classes, by Flash's names."""

NOT_TRIED = {"name", "id", "type"}
"""Who a resource is; `type` makes another class of it."""

ENDPOINT: dict[str, st.SearchStrategy[Any]] = {
    "gpu": _GPUS,
    "cpu": _CPUS,
    "workers": st.integers(0, 9) | st.sampled_from([(1, 3), (0, 0)]),
    "idle_timeout": SETTINGS["idleTimeout"],
    "dependencies": _PACKAGES,
    "system_dependencies": st.lists(st.just("git"), max_size=1),
    "accelerate_downloads": st.booleans(),
    "volume": _VOLUME | _VOLUMES,
    "datacenter": SETTINGS["datacenter"],
    "env": _SECRETS,
    "gpu_count": st.integers(1, 8),
    "execution_timeout_ms": st.integers(0, 10**6),
    "flashboot": st.booleans(),
    "scaler_type": SETTINGS["scalerType"],
    "scaler_value": st.integers(1, 99),
    "template": _TEMPLATES,
    "min_cuda_version": SETTINGS["minCudaVersion"],
    "max_concurrency": st.integers(1, 50),
    "retries": st.integers(0, 5),
    "retry_on": _EXCEPTIONS,
    "mode": SETTINGS["mode"],
    "queue_size": st.integers(0, 5000),
    "preload": st.booleans(),
    "gpu_share": st.booleans(),
    "public": st.booleans(),
    "python_version": SETTINGS["python_version"],
    "target": SETTINGS["target"],
}
"""Of Endpoint."""

REMOTE: dict[str, st.SearchStrategy[Any]] = {
    "dependencies": _PACKAGES,
    "system_dependencies": st.lists(st.just("git"), max_size=1),
    "accelerate_downloads": st.booleans(),
    "retries": st.integers(0, 5),
    "retry_on": _EXCEPTIONS,
    "mode": SETTINGS["mode"],
    "queue_size": st.integers(0, 5000),
    "max_concurrency": st.integers(1, 50),
    "execution_timeout_ms": st.integers(0, 10**6),
    "preload": st.booleans(),
    "gpu_share": st.booleans(),
}
"""Of `@remote`, besides what makes the function what it is."""

CLASSES = (
    "ServerlessEndpoint",
    "CpuServerlessEndpoint",
    "LoadBalancerSlsResource",
    "CpuLoadBalancerSlsResource",
    "LiveServerless",
    "CpuLiveServerless",
    "LiveLoadBalancer",
    "CpuLiveLoadBalancer",
)
IMPORTS = (
    f"from flashmesh import {', '.join(CLASSES)}, Endpoint, remote, GpuGroup, CpuInstanceType, DataCenter, "
    "NetworkVolume, PodTemplate, ServerlessScalerType, CudaVersion\n"
)


def untried_settings() -> set[str]:
    """What the classes take and the tables above lack."""
    of_resources = {setting.name for setting in Resource.settings.values()} - SETTINGS.keys() - NOT_TRIED
    of_endpoints = set(inspect.signature(Endpoint).parameters) - ENDPOINT.keys() - {"name", "id", "image"}
    of_remote = (
        set(inspect.signature(remote).parameters) - REMOTE.keys() - {"resource_config", "local", "method", "path"}
    )
    return (of_resources | of_endpoints | of_remote) - {"unknown"}


def given_settings(table: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the settings, mostly a few, sometimes all."""
    return st.fixed_dictionaries({}, optional=table)


def arguments(given: dict[str, Any]) -> str:
    return "".join(f", {name}={code(value)}" for name, value in given.items())
