"""Flash's path to NetworkVolume."""

from flashmesh.functions.volumes import NetworkVolume

__all__ = ["NetworkVolume"]
