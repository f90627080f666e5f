"""Flash's path to PodTemplate."""

from flashmesh.functions.templates import KeyValuePair, PodTemplate

__all__ = ["KeyValuePair", "PodTemplate"]
