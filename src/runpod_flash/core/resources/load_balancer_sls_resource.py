"""Flash's path to load-balanced resource classes."""

from flashmesh.functions.resources import CpuLoadBalancerSlsResource, LoadBalancerSlsResource

__all__ = ["CpuLoadBalancerSlsResource", "LoadBalancerSlsResource"]
