"""Flash's path to live resource classes."""

from flashmesh.functions.resources import CpuLiveLoadBalancer, CpuLiveServerless, LiveLoadBalancer, LiveServerless

__all__ = ["CpuLiveLoadBalancer", "CpuLiveServerless", "LiveLoadBalancer", "LiveServerless"]
