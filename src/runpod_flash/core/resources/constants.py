"""Flash's path to worker defaults."""

from flashmesh.functions.resources import DEFAULT_WORKERS_MAX, DEFAULT_WORKERS_MIN

__all__ = ["DEFAULT_WORKERS_MAX", "DEFAULT_WORKERS_MIN"]
