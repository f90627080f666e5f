"""RunPod Flash's module name: the same objects as `flashmesh`, so that Flash projects run unchanged.

As in Flash, importing it reads the nearest `.env` file. Paths into the package that projects import from
(`runpod_flash.core.resources`, `runpod_flash.endpoint`, …) exist too.
"""

from os import path as _path

from flashmesh.functions.environment import CONFLICT as _CONFLICT
from flashmesh.functions.environment import is_mixed as _is_mixed
from flashmesh.functions.environment import load_dotenv as _load_dotenv

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flashmesh import (
        CPU_DATACENTERS,
        DEFAULT_WORKERS_MAX,
        DEFAULT_WORKERS_MIN,
        CpuInstanceType,
        CpuLiveLoadBalancer,
        CpuLiveServerless,
        CpuLoadBalancerSlsResource,
        CpuServerlessEndpoint,
        CudaVersion,
        DataCenter,
        Endpoint,
        EndpointJob,
        FlashApp,
        GpuGroup,
        GpuType,
        LiveLoadBalancer,
        LiveServerless,
        LoadBalancerSlsResource,
        NetworkVolume,
        PodTemplate,
        ResourceManager,
        ServerlessEndpoint,
        ServerlessScalerType,
        ServerlessType,
        remote,
    )

__version__ = "1.21.0"
"""The release of Flash whose interface this is."""

__all__ = [
    "CPU_DATACENTERS",
    "DEFAULT_WORKERS_MAX",
    "DEFAULT_WORKERS_MIN",
    "CpuInstanceType",
    "CpuLiveLoadBalancer",
    "CpuLiveServerless",
    "CpuLoadBalancerSlsResource",
    "CpuServerlessEndpoint",
    "CudaVersion",
    "DataCenter",
    "Endpoint",
    "EndpointJob",
    "FlashApp",
    "GpuGroup",
    "GpuType",
    "LiveLoadBalancer",
    "LiveServerless",
    "LoadBalancerSlsResource",
    "NetworkVolume",
    "PodTemplate",
    "ResourceManager",
    "ServerlessEndpoint",
    "ServerlessScalerType",
    "ServerlessType",
    "remote",
]

_load_dotenv()

if _is_mixed(_path.dirname(__file__)):  # noqa: PTH120 - pathlib is slow to import
    import warnings

    warnings.warn(_CONFLICT, stacklevel=2)


def __getattr__(name: str) -> object:
    if name in __all__:
        import flashmesh

        value: object = getattr(flashmesh, name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
