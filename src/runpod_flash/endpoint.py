"""Flash's path to Endpoint."""

from flashmesh.functions.endpoint import Endpoint
from flashmesh.functions.endpoint_client import EndpointJob

__all__ = ["Endpoint", "EndpointJob"]
