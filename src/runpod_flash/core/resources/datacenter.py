"""Flash's path to data centres."""

from flashmesh.functions.hardware import CPU_DATACENTERS, DataCenter

__all__ = ["CPU_DATACENTERS", "DataCenter"]
