"""Flash's path to remote."""

from flashmesh.functions.remote import remote

__all__ = ["remote"]
