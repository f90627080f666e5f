"""Projects written in one call, and stand-ins for our public names, so that the scan is tested on its own."""

import dataclasses
import enum
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flashmesh.functions.config import ResourceConfig, VolumeConfig
from flashmesh.project.model import Project, ResourceSpec
from flashmesh.project.scan import scan
from flashmesh.project.vocabulary import PublicNames


class GpuGroup(enum.Enum):
    ANY = "any"
    ADA_24 = "ADA_24"

    @classmethod
    def all(cls) -> list["GpuGroup"]:
        return list(cls)


GpuGroup.__module__ = "flashmesh.functions.hardware"
GpuGroup.all.__func__.__module__ = GpuGroup.__module__  # type: ignore[attr-defined]


class NetworkVolume:
    def __init__(self, name: str, size: int = 100) -> None:
        if size < 10:
            raise ValueError("size must be at least 10")
        self.name = name
        self.size = size


class _Resource:
    load_balanced = False
    is_load_balanced = False

    def __init__(
        self,
        name: str,
        gpus: list[GpuGroup] | None = None,
        workersMin: int = 0,  # noqa: N803 - Flash's own spelling
        workersMax: int = 1,  # noqa: N803
        env: Mapping[str, str] | None = None,
        networkVolume: NetworkVolume | None = None,  # noqa: N803
        dependencies: list[str] | None = None,
    ) -> None:
        if workersMax < workersMin:
            raise ValueError("workersMin is larger than workersMax")
        volumes = (VolumeConfig(name=networkVolume.name, size_gb=networkVolume.size),) if networkVolume else ()
        self.config = ResourceConfig(
            resource_type=type(self).__name__,
            name=name,
            is_load_balanced=self.load_balanced,
            gpus=tuple(gpu.name for gpu in gpus or ()),
            workers_min=workersMin,
            workers_max=workersMax,
            env=env or {},
            volumes=volumes,
            dependencies=tuple(dependencies or ()),
        )

    def to_config(self) -> ResourceConfig:
        return self.config


class LiveServerless(_Resource):
    pass


class CpuLiveServerless(_Resource):
    pass


class CpuLiveLoadBalancer(_Resource):
    load_balanced = True


class Endpoint:
    is_load_balanced = False

    def __init__(
        self,
        name: str | None = None,
        *,
        gpu: Any = None,
        workers: Any = None,
        dependencies: list[str] | None = None,
        env: Mapping[str, str] | None = None,
        retries: int = 0,
    ) -> None:
        workers_max = workers if isinstance(workers, int) else 1
        if workers_max < 0:
            raise ValueError("workers must not be negative")
        self.config = ResourceConfig(
            resource_type="Endpoint",
            name=name,
            workers_max=workers_max,
            dependencies=tuple(dependencies or ()),
            env=env or {},
            retries=retries,
            gpus=(gpu.name,) if gpu else (),
        )

    def to_config(self) -> ResourceConfig:
        return self.config


NAMES: dict[str, Any] = {
    "GpuGroup": GpuGroup,
    "NetworkVolume": NetworkVolume,
    "LiveServerless": LiveServerless,
    "CpuLiveServerless": CpuLiveServerless,
    "CpuLiveLoadBalancer": CpuLiveLoadBalancer,
    "Endpoint": Endpoint,
    "remote": object(),
}


def _lookup(name: str) -> Any:
    try:
        return NAMES[name]
    except KeyError:
        raise AttributeError(name) from None


VOCABULARY = PublicNames(_lookup)

WORKER = """
    from flashmesh import LiveServerless, remote

    gpu = LiveServerless(name="gpu")

    @remote(gpu)
    async def process(data: dict) -> dict:
        return data
"""


def write(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Make a project of `files`; texts are dedented."""
    for path, content in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).encode())
    return root


def scanned(root: Path, files: Mapping[str, str | bytes], **options: Any) -> Project:
    """The project that `files` make, scanned with the stand-ins."""
    return scan(write(root, files), vocabulary=VOCABULARY, **options)


def only(project: Project) -> ResourceSpec:
    """Its only resource."""
    assert [problem for problem in project.problems if problem.severity == "error"] == []
    assert len(project.resources) == 1, [dataclasses.asdict(resource) for resource in project.resources]
    return project.resources[0]
