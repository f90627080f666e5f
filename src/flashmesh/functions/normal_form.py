"""From a resource as declared to its ResourceConfig."""

from __future__ import annotations

from flashmesh.functions.config import LB_CONCURRENCY, ResourceConfig, VolumeConfig
from flashmesh.functions.hardware import GpuGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flashmesh.functions.resources import Resource


def config_of(resource: Resource, *, resource_type: str | None = None) -> ResourceConfig:
    """Every setting of `resource`. Data centres are empty when none was declared: anywhere will do."""
    declared_template = resource.__dict__["template"]
    minimum = resource.minCudaVersion
    return ResourceConfig(
        resource_type=resource_type or type(resource).__name__,
        name=resource.name,
        is_load_balanced=resource.is_load_balanced,
        gpus=_gpus(resource),
        gpu_count=resource.gpuCount,
        cpus=tuple(size.value for size in resource.instanceIds or ()),
        workers_min=resource.workersMin,
        workers_max=resource.workersMax,
        idle_timeout_s=resource.idleTimeout,
        execution_timeout_ms=resource.executionTimeoutMs,
        max_concurrency=_concurrency(resource),
        queue_size=resource.queue_size,
        scaler_type=resource.scalerType.value,
        scaler_value=resource.scalerValue,
        flashboot=resource.flashboot,
        env=dict(resource.env or {}),
        volumes=_volumes(resource),
        datacenters=_places(resource),
        image=resource.__dict__["imageName"],
        endpoint_id=resource.__dict__["id"],
        template=declared_template.to_dict() if declared_template is not None else None,
        template_id=resource.templateId,
        python_version=resource.python_version,
        min_cuda_version=minimum.value if minimum is not None else None,
        mode=resource.mode,
        retries=resource.retries,
        retry_on=resource.retry_on,
        preload=resource.preload,
        gpu_share=resource.gpu_share,
        public=resource.public,
        target=resource.target,
        extra=resource.extra(),
    )


def _concurrency(resource: Resource) -> int:
    undeclared = resource.is_load_balanced and not resource.is_declared("max_concurrency")
    return LB_CONCURRENCY if undeclared else resource.max_concurrency


def _gpus(resource: Resource) -> tuple[str, ...]:
    """Names of members. A resource that gave only RunPod's pool ids (`gpuIds`) asks for those groups."""
    if resource.is_cpu:
        return ()
    if resource.is_declared("gpuIds") and not resource.is_declared("gpus"):
        pools = [pool.strip() for pool in resource.__dict__["gpuIds"].split(",")]
        named = tuple(pool for pool in pools if pool in GpuGroup.__members__)
        if named:
            return named
    return tuple(gpu.name for gpu in resource.gpus or ())


def _volumes(resource: Resource) -> tuple[VolumeConfig, ...]:
    volumes = [volume.to_config() for volume in resource.networkVolumes or ()]
    attached = resource.__dict__["networkVolumeId"]
    if attached is not None and all(volume.id != attached for volume in volumes):
        volumes.append(VolumeConfig(id=attached))
    return tuple(volumes)


def _places(resource: Resource) -> tuple[str, ...]:
    if resource.datacenter:
        return tuple(center.value for center in resource.datacenter)
    listed = resource.__dict__["locations"] or ""
    return tuple(place.strip() for place in listed.split(",") if place.strip())
