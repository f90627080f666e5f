"""Flash's path to queue-based resource classes."""

from flashmesh.functions.hardware import CudaVersion, ServerlessScalerType, ServerlessType
from flashmesh.functions.resources import Resource as ServerlessResource
from flashmesh.functions.resources import ServerlessEndpoint

__all__ = ["CudaVersion", "ServerlessEndpoint", "ServerlessResource", "ServerlessScalerType", "ServerlessType"]
