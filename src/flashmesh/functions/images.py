"""Which container image a resource runs in when it names none, for targets that run containers."""

from __future__ import annotations

import os

from flashmesh.functions.errors import DeclarationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    ImageKind = Literal["gpu", "cpu", "lb", "lb-cpu"]

DEFAULT_PYTHON_VERSION = "3.12"

_REPOSITORIES = {
    "gpu": ("FLASH_GPU_IMAGE", "runpod/flash"),
    "cpu": ("FLASH_CPU_IMAGE", "runpod/flash-cpu"),
    "lb": ("FLASH_LB_IMAGE", "runpod/flash-lb"),
    "lb-cpu": ("FLASH_CPU_LB_IMAGE", "runpod/flash-lb-cpu"),
}


def default_image(kind: ImageKind, python_version: str | None = None) -> str:
    """The image of a kind of resource. `FLASH_GPU_IMAGE` and its siblings replace it, `FLASH_IMAGE_TAG` its tag."""
    if kind not in _REPOSITORIES:
        raise DeclarationError(f"Unknown image kind {kind!r}. Use one of: {', '.join(_REPOSITORIES)}.")
    variable, repository = _REPOSITORIES[kind]
    tag = os.environ.get("FLASH_IMAGE_TAG", "latest")
    return os.environ.get(variable) or f"{repository}:py{python_version or DEFAULT_PYTHON_VERSION}-{tag}"
