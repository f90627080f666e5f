"""How a file's path becomes a module, a URL prefix and a resource name. Pure text, no I/O."""

import hashlib
import re

from flashmesh.kit.ids import EndpointName

_NOT_NAME = re.compile(r"\W")


def module_of(file: str) -> str:
    """`longruns/stage1.py` -> `longruns.stage1`; `my-worker.py` -> `my-worker`; `pkg/__init__.py` -> `pkg`."""
    dotted = file.removesuffix(".py").replace("/", ".")
    return dotted.removesuffix(".__init__")


def prefix_of(file: str) -> str:
    """`longruns/stage1.py` -> `/longruns/stage1`. Hyphens stay: they are valid in URLs."""
    return "/" + file.removesuffix(".py")


def resource_stem(file: str) -> str:
    """`longruns/my-stage.py` -> `longruns_my_stage`: what the resources a file declares are named after."""
    return _NOT_NAME.sub("_", file.removesuffix(".py"))


def resource_name(file: str, config_name: str | None, *, alone: bool) -> EndpointName:
    """The name of one configuration object of `file`.

    Args:
        config_name: its declared `name=`, else the variable that holds it.
        alone: whether it is the only one of its file.
    """
    stem = resource_stem(file)
    if alone or not config_name:
        return EndpointName(stem)
    return EndpointName(f"{stem}_{_NOT_NAME.sub('_', config_name)}")


def short_hash(text: str) -> str:
    """Six hex digits that are the same on every machine and in every run."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:6]
