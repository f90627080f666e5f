"""Resource classes: what a function runs on, and how many workers it may have.

`LiveServerless` and its siblings are Flash's names; each is a row of defaults over one table of settings. They are
plain classes that only hold what was declared: `to_config()` gives the form in which the rest of the product reads it.
"""

from __future__ import annotations

from flashmesh.functions import checks
from flashmesh.functions.declared import Declared, Setting, table
from flashmesh.functions.errors import DeclarationError
from flashmesh.functions.hardware import (
    CPU_DATACENTERS,
    CpuInstanceType,
    CudaVersion,
    DataCenter,
    GpuGroup,
    ServerlessScalerType,
    ServerlessType,
)
from flashmesh.functions.images import default_image
from flashmesh.functions.templates import DEFAULT_DISK_GB, PodTemplate, template
from flashmesh.functions.volumes import NetworkVolume, check_places, volume, volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, ClassVar

    from flashmesh.functions.config import ResourceConfig
    from flashmesh.functions.gpu_types import GpuType
    from flashmesh.functions.images import ImageKind

DEFAULT_WORKERS_MIN = 0
DEFAULT_WORKERS_MAX = 1

_TARGET_ONLY = (
    Setting("locations", checks.text, None),
    Setting("gpuIds", checks.text, "", "gpu_ids"),
    Setting("cudaVersions", checks.cuda_versions, [], "cuda_versions"),
    Setting("allowedCudaVersions", checks.text, "", "allowed_cuda_versions"),
    Setting("workersPFBTarget", checks.integer(0), 0, "workers_pfb_target"),
    Setting("networkVolumeId", checks.some_text, None, "network_volume_id"),
    Setting("flashEnvironmentId", checks.text, None, "flash_environment_id"),
    Setting("activeBuildid", checks.text, None),
    Setting("aiKey", checks.text, None),
    Setting("computeType", checks.text, None),
    Setting("createdAt", checks.text, None),
    Setting("flashBootType", checks.text, None),
    Setting("hubRelease", checks.anything, None),
    Setting("repo", checks.anything, None),
    Setting("userId", checks.text, None),
)
"""Settings that mean something to RunPod alone. They are kept as written, in `ResourceConfig.extra`."""

_NOT_CONFIGURATION = {"aiKey", "networkVolumeId", "locations"}
"""Of those: a secret, and two that have a place of their own in a ResourceConfig."""

_SETTINGS = table(
    Setting("name", checks.some_text, None),
    Setting("id", checks.text, None),
    Setting("gpus", checks.gpus, [GpuGroup.ANY], "gpu"),
    Setting("gpuCount", checks.integer(0), 1, "gpu_count"),
    Setting("instanceIds", checks.cpu_instances, None, "instance_ids", "cpus", "cpu"),
    Setting("workersMin", checks.integer(0), DEFAULT_WORKERS_MIN, "workers_min"),
    Setting("workersMax", checks.integer(0), DEFAULT_WORKERS_MAX, "workers_max"),
    Setting("idleTimeout", checks.seconds, 60, "idle_timeout", "idle_timeout_s"),
    Setting("executionTimeoutMs", checks.integer(0), 0, "execution_timeout_ms"),
    Setting("scalerType", checks.scaler, ServerlessScalerType.QUEUE_DELAY, "scaler_type"),
    Setting("scalerValue", checks.integer(1), 4, "scaler_value"),
    Setting("type", checks.kind, ServerlessType.QB),
    Setting("flashboot", checks.flag, True),
    Setting("env", checks.environment, None),
    Setting("networkVolume", volume, None, "network_volume", "volume"),
    Setting("networkVolumes", volumes, None, "network_volumes", "volumes"),
    Setting("datacenter", checks.datacenters, None, "datacenters"),
    Setting("imageName", checks.text, None, "image_name", "image"),
    Setting("template", template, None),
    Setting("templateId", checks.some_text, None, "template_id"),
    Setting("minCudaVersion", checks.cuda_version, CudaVersion.V12_8, "min_cuda_version", nullable=True),
    Setting("python_version", checks.python_version, None, "pythonVersion"),
    # Ours: Flash has no name for these.
    Setting("max_concurrency", checks.integer(1), 1, "maxConcurrency"),
    Setting("queue_size", checks.integer(0), 1000, "queueSize"),
    Setting("mode", checks.mode, "WARM", "executionMode"),
    Setting("retries", checks.integer(0), 0),
    Setting("retry_on", checks.exceptions, ()),
    Setting("preload", checks.flag, True),
    Setting("gpu_share", checks.flag, None, "gpuShare"),
    Setting("public", checks.flag, False),
    Setting("target", checks.some_text, None),
    *_TARGET_ONLY,
)


class Resource(Declared):
    """A named declaration of hardware and scaling. Two functions that share one object share an endpoint."""

    settings: ClassVar[dict[str, Setting]] = _SETTINGS
    cpu_only: ClassVar[bool] = False
    load_balanced: ClassVar[bool] = False
    image_kind: ClassVar[ImageKind | None] = None
    """The kind of image it runs in when it names none; None: it must name one."""

    if TYPE_CHECKING:
        name: str
        gpus: list[GpuGroup | GpuType] | None
        gpuCount: int  # noqa: N815 - Flash's names, here and below
        instanceIds: list[CpuInstanceType] | None  # noqa: N815
        workersMin: int  # noqa: N815
        workersMax: int  # noqa: N815
        idleTimeout: float  # noqa: N815
        executionTimeoutMs: int  # noqa: N815
        scalerType: ServerlessScalerType  # noqa: N815
        scalerValue: int  # noqa: N815
        type: ServerlessType
        flashboot: bool
        env: dict[str, str] | None
        networkVolume: NetworkVolume | None  # noqa: N815
        networkVolumes: list[NetworkVolume] | None  # noqa: N815
        datacenter: list[DataCenter] | None
        templateId: str | None  # noqa: N815
        minCudaVersion: CudaVersion | None  # noqa: N815
        python_version: str | None
        max_concurrency: int
        queue_size: int
        mode: str
        retries: int
        retry_on: tuple[str, ...]
        preload: bool
        gpu_share: bool | None
        public: bool
        target: str | None

        def __init__(
            self,
            *,
            name: str,
            gpus: Sequence[GpuGroup | GpuType | str] | GpuGroup | GpuType | str | None = None,
            gpuCount: int = 1,  # noqa: N803
            instanceIds: Sequence[CpuInstanceType | str] | None = None,  # noqa: N803
            workersMin: int = 0,  # noqa: N803
            workersMax: int = 1,  # noqa: N803
            idleTimeout: float = 60,  # noqa: N803
            executionTimeoutMs: int = 0,  # noqa: N803
            env: Mapping[str, str] | None = None,
            networkVolume: NetworkVolume | None = None,  # noqa: N803
            datacenter: DataCenter | str | Sequence[DataCenter | str] | None = None,
            **other: Any,
        ) -> None: ...

    def __init__(self, **given: Any) -> None:  # type: ignore[no-redef]
        if self.load_balanced:
            given.setdefault("type", ServerlessType.LB)
            if not given.keys() & {"scalerType", "scaler_type"}:
                given["scalerType"] = ServerlessScalerType.REQUEST_COUNT
        super().__init__(**given)

    def validate(self) -> None:
        self._check_name()
        if self.workersMin > self.workersMax:
            raise DeclarationError(
                f"workersMin ({self.workersMin}) is above workersMax ({self.workersMax}). Raise workersMax too."
            )
        if self.load_balanced and self.type is not ServerlessType.LB:
            raise DeclarationError(
                f"{type(self).__name__} is load-balanced: type must be ServerlessType.LB or left out."
            )
        if self.image_kind is None and not (self.__dict__["imageName"] or self.__dict__["template"] or self.templateId):
            raise DeclarationError(
                f"{type(self).__name__} needs imageName, template or templateId. Live classes bring their own image."
            )
        self._settle_hardware()
        self._settle_volumes()
        self._check_disk()

    def _check_name(self) -> None:
        if self.name is None:
            raise DeclarationError(f'{type(self).__name__} needs a name: {type(self).__name__}(name="…").')

    def _settle_hardware(self) -> None:
        if self.cpu_only and self.gpus and self.is_declared("gpus"):
            raise DeclarationError(
                f"{type(self).__name__} has no GPUs. Use LiveServerless or Endpoint(gpu=…) for gpus."
            )
        if self.cpu_only and self.instanceIds is None:
            self.__dict__["instanceIds"] = [CpuInstanceType.CPU3G_2_8]
        if self.is_cpu:
            self.__dict__.update(gpus=None, gpuCount=0, minCudaVersion=None)
            unsupported = [center.value for center in self.datacenter or () if center not in CPU_DATACENTERS]
            if unsupported:
                offered = ", ".join(sorted(center.value for center in CPU_DATACENTERS))
                raise DeclarationError(f"No CPU workers are offered in {', '.join(unsupported)}. Use {offered}.")

    def _settle_volumes(self) -> None:
        every = list(self.networkVolumes or ())
        if self.networkVolume is not None and not any(self.networkVolume is item for item in every):
            every.append(self.networkVolume)
        check_places(every, self.datacenter or [])
        if every:
            self.__dict__.update(networkVolume=every[0], networkVolumes=every)

    def _check_disk(self) -> None:
        template = self.__dict__["template"]
        if not self.is_cpu or template is None or self.max_disk_gb is None:
            return
        if template.containerDiskInGb == DEFAULT_DISK_GB:
            template.containerDiskInGb = self.max_disk_gb
        if template.containerDiskInGb > self.max_disk_gb:
            sizes = ", ".join(f"{size.value} has at most {size.max_disk_gb} GB" for size in self.instanceIds or ())
            raise DeclarationError(f"containerDiskInGb={template.containerDiskInGb} is too large: {sizes}.")

    @property
    def is_cpu(self) -> bool:
        return bool(self.instanceIds)

    @property
    def is_load_balanced(self) -> bool:
        return self.type is ServerlessType.LB

    @property
    def max_disk_gb(self) -> int | None:
        """The container disk every one of its CPU sizes can have; None for a GPU resource."""
        return min((size.max_disk_gb for size in self.instanceIds), default=None) if self.instanceIds else None

    @property
    def imageName(self) -> str:  # noqa: N802 - Flash's name
        """The image that was declared, else the default of its kind; empty when a template brings it."""
        declared = self.__dict__["imageName"]
        if declared or self.image_kind is None:
            return declared or ""
        return default_image(self.image_kind, self.python_version)

    @property
    def template(self) -> PodTemplate:
        """The template that was declared, else one of its image and its hardware's disk."""
        declared: PodTemplate | None = self.__dict__["template"]
        disk = self.max_disk_gb or DEFAULT_DISK_GB
        return declared or PodTemplate(imageName=self.imageName, containerDiskInGb=disk, env=self.env)

    def to_config(self) -> ResourceConfig:
        """Every setting, in the form the rest of the product reads."""
        from flashmesh.functions.normal_form import config_of  # dataclasses are slow to import

        return config_of(self)

    def extra(self) -> dict[str, Any]:
        """The settings that were declared and that only one target understands, as plain values."""
        names = [setting.name for setting in _TARGET_ONLY if setting.name not in _NOT_CONFIGURATION]
        found = {name: self.__dict__[name] for name in names if self.is_declared(name)}
        return {
            name: [item.value for item in value] if name == "cudaVersions" else value for name, value in found.items()
        }


class ServerlessEndpoint(Resource):
    """A queue-based resource with an image of your own."""


class CpuServerlessEndpoint(ServerlessEndpoint):
    """The same on CPU workers."""

    cpu_only = True


class LoadBalancerSlsResource(Resource):
    """A load-balanced resource (HTTP routes) with an image of your own."""

    load_balanced = True


class CpuLoadBalancerSlsResource(LoadBalancerSlsResource):
    """The same on CPU workers."""

    cpu_only = True


class LiveServerless(ServerlessEndpoint):
    """A queue-based resource on GPU workers."""

    image_kind = "gpu"


class CpuLiveServerless(CpuServerlessEndpoint):
    """A queue-based resource on CPU workers."""

    image_kind = "cpu"


class LiveLoadBalancer(LoadBalancerSlsResource):
    """A load-balanced resource (HTTP routes) on GPU workers."""

    image_kind = "lb"


class CpuLiveLoadBalancer(CpuLoadBalancerSlsResource):
    """A load-balanced resource (HTTP routes) on CPU workers."""

    image_kind = "lb-cpu"
