"""Write Python functions; run them on a laptop with one command; let them call each other as if they were local.

The names below are the public ones. Each is imported when it is first used, so that `import flashmesh` costs nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from flashmesh.functions.apps import FlashApp, ResourceManager
    from flashmesh.functions.endpoint import Endpoint
    from flashmesh.functions.endpoint_client import EndpointJob
    from flashmesh.functions.errors import (
        Cancelled,
        DeclarationError,
        EndpointUnavailable,
        EndpointUnreachable,
        EndpointUnresolved,
        FlashmeshError,
        QueueFull,
        RemoteError,
        RequestFailed,
        TimedOut,
        ValidationError,
        WaitTimedOut,
        WorkerLost,
    )
    from flashmesh.functions.gpu_types import GpuType
    from flashmesh.functions.hardware import (
        CPU_DATACENTERS,
        CpuInstanceType,
        CudaVersion,
        DataCenter,
        GpuGroup,
        ServerlessScalerType,
        ServerlessType,
    )
    from flashmesh.functions.hooks import worker_start
    from flashmesh.functions.jobs import Job
    from flashmesh.functions.remote import remote
    from flashmesh.functions.resources import (
        DEFAULT_WORKERS_MAX,
        DEFAULT_WORKERS_MIN,
        CpuLiveLoadBalancer,
        CpuLiveServerless,
        CpuLoadBalancerSlsResource,
        CpuServerlessEndpoint,
        LiveLoadBalancer,
        LiveServerless,
        LoadBalancerSlsResource,
        ServerlessEndpoint,
    )
    from flashmesh.functions.templates import PodTemplate
    from flashmesh.functions.volumes import NetworkVolume

__version__ = "0.1.0"

__all__ = [
    "CPU_DATACENTERS",
    "DEFAULT_WORKERS_MAX",
    "DEFAULT_WORKERS_MIN",
    "Cancelled",
    "CpuInstanceType",
    "CpuLiveLoadBalancer",
    "CpuLiveServerless",
    "CpuLoadBalancerSlsResource",
    "CpuServerlessEndpoint",
    "CudaVersion",
    "DataCenter",
    "DeclarationError",
    "Endpoint",
    "EndpointJob",
    "EndpointUnavailable",
    "EndpointUnreachable",
    "EndpointUnresolved",
    "FlashApp",
    "FlashmeshError",
    "GpuGroup",
    "GpuType",
    "Job",
    "LiveLoadBalancer",
    "LiveServerless",
    "LoadBalancerSlsResource",
    "NetworkVolume",
    "PodTemplate",
    "QueueFull",
    "RemoteError",
    "RequestFailed",
    "ResourceManager",
    "ServerlessEndpoint",
    "ServerlessScalerType",
    "ServerlessType",
    "TimedOut",
    "ValidationError",
    "WaitTimedOut",
    "WorkerLost",
    "remote",
    "worker_start",
]

_HOMES = {
    "apps": "FlashApp ResourceManager",
    "endpoint": "Endpoint",
    "endpoint_client": "EndpointJob",
    "errors": "Cancelled DeclarationError EndpointUnavailable EndpointUnreachable EndpointUnresolved FlashmeshError "
    "QueueFull RemoteError RequestFailed TimedOut ValidationError WaitTimedOut WorkerLost",
    "gpu_types": "GpuType",
    "hardware": "CPU_DATACENTERS CpuInstanceType CudaVersion DataCenter GpuGroup ServerlessScalerType ServerlessType",
    "hooks": "worker_start",
    "jobs": "Job",
    "remote": "remote",
    "resources": "DEFAULT_WORKERS_MAX DEFAULT_WORKERS_MIN CpuLiveLoadBalancer CpuLiveServerless "
    "CpuLoadBalancerSlsResource CpuServerlessEndpoint LiveLoadBalancer LiveServerless LoadBalancerSlsResource "
    "ServerlessEndpoint",
    "templates": "PodTemplate",
    "volumes": "NetworkVolume",
}
"""Module of `flashmesh.functions` to the public names it defines."""


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names.split():
            from importlib import import_module

            value: object = getattr(import_module(f"flashmesh.functions.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
