"""Flash's path to GPU groups and types."""

from flashmesh.functions.gpu_types import GpuType
from flashmesh.functions.hardware import GpuGroup

__all__ = ["GpuGroup", "GpuType"]
