"""The lean HTTP server: hot routes are answered from bytes to bytes, everything else is handed to uvicorn."""

from flashmesh.gateway.front.limits import FrontLimits
from flashmesh.gateway.front.server import FrontServer

__all__ = ["FrontLimits", "FrontServer"]
