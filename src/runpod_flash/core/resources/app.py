"""Flash's path to FlashApp."""

from flashmesh.functions.apps import FlashApp

__all__ = ["FlashApp"]
