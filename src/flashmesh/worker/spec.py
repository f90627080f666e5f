"""What a template needs to know to serve one build of one endpoint. Plain JSON on its way between processes."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Final

from flashmesh.functions.config import ResourceConfig

COUNTS: Final = frozenset({"workers_min", "workers_max", "scaler_type", "scaler_value"})
"""Settings that say how many workers there are and nothing about what each does."""


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
    """What dispatcher, link and keeper call it: the resource name, e.g. `longruns_stage1`; of a deployment its id."""
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
    """What signatures are bound to: of a deployment `app/environment`."""
    resource_name: str = ""
    """The resource's name in the manifest, where `endpoint` is an id; empty: `endpoint` is that name."""
    tcp: str = ""
    """The URL at which its workers answer over TCP too (`http://127.0.0.1:41234`); empty: they do not."""
    public_key: str = ""
    """64 hex digits: the key that signed the tokens its TCP face takes."""
    revocations: str = ""
    """Path of the list of tokens that are refused all the same."""
    token_file: str | None = None
    """Holds the token its workers call others with; None where none is needed."""
    on_trial: bool = False
    """A build that has yet to prove itself: a template that cannot import it leaves, instead of telling callers so, and
    with `workers_min` above 0 it serves only once a worker of it is ready."""

    @cached_property
    def resource(self) -> ResourceConfig:
        """`config` as the object it came from. Raises TypeError for a field this version does not know."""
        return ResourceConfig.from_dict(self.config)

    @property
    def app(self) -> str:
        """The app it is deployed in; empty for a session's."""
        return self.environment.rpartition("/")[0]

    @property
    def app_environment(self) -> str:
        """That app's environment; empty for a session's."""
        return self.environment.rpartition("/")[2] if self.app else ""

    @property
    def reentrant_path(self) -> str:
        return reentrant_path(self.socket_path)

    def differs_in_counts_only(self, other: "WorkerSpec") -> bool:
        """Whether workers of `other` are workers of this one as well. True for two that do not differ at all."""
        return self._without_counts() == other._without_counts()

    def _without_counts(self) -> dict[str, Any]:
        config = {name: value for name, value in self.config.items() if name not in COUNTS}
        return {**self.to_dict(), "config": config, "on_trial": False}

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
