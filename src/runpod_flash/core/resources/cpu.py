"""Flash's path to CPU instance types."""

from flashmesh.functions.hardware import CpuInstanceType

__all__ = ["CpuInstanceType"]
