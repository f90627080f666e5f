"""Flash's path to its errors."""

from flashmesh.functions.errors import FlashmeshError


class RunpodAPIKeyError(FlashmeshError):
    """No RunPod API key was found. Functions run here need none; set RUNPOD_API_KEY to call RunPod endpoints."""


__all__ = ["RunpodAPIKeyError"]
