"""Flash's path to ResourceManager."""

from flashmesh.functions.apps import ResourceManager

__all__ = ["ResourceManager"]
