"""A resource's declaration in one normal form, whichever class or keyword spelled it.

`Endpoint(...)`, `LiveServerless(...)` and their siblings all reduce to a `ResourceConfig`. Scan, manifest, target and
worker read only this, so a setting that is declared cannot be lost between them: `to_dict` and `from_dict` carry every
field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

LB_CONCURRENCY = 100
"""Requests and websockets that one worker of a load-balanced resource serves at once, unless it declares a number."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VolumeConfig:
    """A network volume: by name (made when missing) or by the id of an existing one."""

    name: str | None = None
    id: str | None = None
    size_gb: int = 100
    datacenter: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ResourceConfig:
    """Every setting of one resource. Times carry their unit in the name; GPUs are member names, other enums values."""

    resource_type: str
    """The class that was declared: `LiveServerless`, `CpuLiveLoadBalancer`, `Endpoint`, …"""
    name: str | None = None
    """The declared `name=`, as written."""
    is_load_balanced: bool = False
    gpus: tuple[str, ...] = ()
    """GpuGroup or GpuType names, any of which will do; empty for a CPU resource."""
    gpu_count: int = 1
    cpus: tuple[str, ...] = ()
    """CpuInstanceType values such as `cpu3g-2-8`; empty for a GPU resource."""
    workers_min: int = 0
    workers_max: int = 1
    idle_timeout_s: float = 60
    """How long a worker beyond `workers_min` may be idle before it leaves."""
    execution_timeout_ms: int = 0
    """Run-time limit of one call; 0 = none."""
    max_concurrency: int = 1
    """Calls one worker runs at the same time (async functions). Load-balanced: requests and websockets it serves."""
    queue_size: int = 1000
    """Calls that may wait for a worker; one more is answered QueueFull."""
    scaler_type: str = "QUEUE_DELAY"
    scaler_value: int = 4
    flashboot: bool = True
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dependencies: tuple[str, ...] = ()
    system_dependencies: tuple[str, ...] = ()
    accelerate_downloads: bool = True
    volumes: tuple[VolumeConfig, ...] = ()
    datacenters: tuple[str, ...] = ()
    """Empty: anywhere."""
    image: str | None = None
    endpoint_id: str | None = None
    template: Mapping[str, Any] | None = None
    template_id: str | None = None
    python_version: str | None = None
    min_cuda_version: str | None = None
    mode: str = "WARM"
    """WARM (a worker takes many calls), JOB (a fresh process for each) or EXTERNAL."""
    retries: int = 0
    """Extra attempts after an exception of `retry_on`, a run-time limit, and of a sync call whose worker was lost."""
    retry_on: tuple[str, ...] = ()
    """Exception types (`module.qualname`) that are retried; empty with `retries` > 0 means every Exception."""
    preload: bool = True
    """False: never fork workers from a process that imported the module."""
    gpu_share: bool | None = None
    public: bool = False
    target: str | None = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Declared settings that only one target understands, under the name the user wrote."""

    @property
    def worker_env(self) -> Mapping[str, str]:
        """The variables its workers get: its own, or those of its template when it has none, as on RunPod."""
        return self.env or (self.template or {}).get("env") or {}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values under the field names. `from_dict` gives back an equal object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ResourceConfig":
        """Raises TypeError for a field this version does not know."""
        values = dict(data)
        values["volumes"] = tuple(VolumeConfig(**volume) for volume in values.get("volumes", ()))
        for field in dataclasses.fields(cls):
            if isinstance(values.get(field.name), list):
                values[field.name] = tuple(values[field.name])
        return cls(**values)
