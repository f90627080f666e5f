"""Flash's path to CPU resource classes."""

from flashmesh.functions.resources import CpuServerlessEndpoint

__all__ = ["CpuServerlessEndpoint"]
