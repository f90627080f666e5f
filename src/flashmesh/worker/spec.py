"""What a template needs to know to serve one build of one endpoint. Plain JSON on its way between processes."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from flashmesh.functions.config import ResourceConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleSpec:
    """One project file to import: its dotted name as written (`my-worker`, `01_start.cpu`) and its absolute path."""

    module: str
    file: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """One build of one endpoint, as the session hands it to keeper, template, zygote and workers.

    `to_dict` and `from_dict` are inverse; unknown keys are a TypeError, because both ends are the same version.
    """

    endpoint: str
    """The resource name, e.g. `longruns_stage1`."""
    build: str
    """12 hex over the configuration and the sources in the import closure."""
    generation: int
    """Counts the builds one session gave this endpoint, from 1; part of every worker's id."""
    project_root: str
    sys_path: list[str]
    """Appended after site-packages; the first is the project root. Never in front: no `queue.py` shadows the stdlib."""
    modules: list[ModuleSpec]
    """Imported in this order. The files that declare this endpoint's functions."""
    functions: list[str]
    """The callable ids served: `module.qualname`, for a class one per public method."""
    link: str
    """Path of the session's link socket."""
    manifest: str
    """Path of the manifest the workers read."""
    socket_path: str
    """The endpoint's socket for peers. The one for re-entrant calls stands beside it (see `reentrant_path`)."""
    site_dirs: list[str] = dataclasses.field(default_factory=list)
    """Inserted before site-packages: the endpoint's own environment."""
    config: dict[str, Any] = dataclasses.field(default_factory=lambda: {"resource_type": "Endpoint"})
    """`ResourceConfig.to_dict()`."""
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    """Set in the zygote before the import, over the session's own environment."""
    key_file: str | None = None
    """Holds the environment's signing key; None where nothing is signed."""
    import_limit_s: float = 60
    drain_limit_s: float = 30
    """How long running calls may take to finish when their worker is asked to leave."""
    template_idle_s: float = 600
    """A template without workers leaves after this long; the keeper starts it again on demand."""
    cuda_devices: str | None = None
    """`CUDA_VISIBLE_DEVICES` of the workers; None for an endpoint without GPU."""
    environment: str = "dev"
    """The environment's name, which signatures are bound to."""

    @cached_property
    def resource(self) -> ResourceConfig:
        """`config` as the object it came from. Raises TypeError for a field this version does not know."""
        return ResourceConfig.from_dict(self.config)

    @property
    def reentrant_path(self) -> str:
        return reentrant_path(self.socket_path)

    def to_dict(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["modules"] = [{"module": module.module, "file": module.file} for module in self.modules]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "WorkerSpec":
        values = dict(data)
        values["modules"] = [ModuleSpec(**module) for module in values["modules"]]
        return cls(**values)


def reentrant_path(socket_path: str) -> str:
    """Where calls go that come back to an endpoint which waits for them: `x.sock` → `x.again.sock`."""
    return socket_path.removesuffix(".sock") + ".again.sock"
