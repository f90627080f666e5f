"""Flash's path to resource classes, enums, volumes and templates."""

from flashmesh.functions.apps import FlashApp, ResourceManager
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
from flashmesh.functions.resources import (
    CpuLiveLoadBalancer,
    CpuLiveServerless,
    CpuLoadBalancerSlsResource,
    CpuServerlessEndpoint,
    LiveLoadBalancer,
    LiveServerless,
    LoadBalancerSlsResource,
    Resource,
    ServerlessEndpoint,
)
from flashmesh.functions.templates import PodTemplate
from flashmesh.functions.volumes import NetworkVolume

BaseResource = DeployableResource = ServerlessResource = Resource
"""Flash has three base classes where one is enough."""

__all__ = [
    "CPU_DATACENTERS",
    "BaseResource",
    "CpuInstanceType",
    "CpuLiveLoadBalancer",
    "CpuLiveServerless",
    "CpuLoadBalancerSlsResource",
    "CpuServerlessEndpoint",
    "CudaVersion",
    "DataCenter",
    "DeployableResource",
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
    "ServerlessResource",
    "ServerlessScalerType",
    "ServerlessType",
]
