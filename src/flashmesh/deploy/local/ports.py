"""What the local target uses of its neighbours: the keeper, environments, volumes."""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

from flashmesh.functions.config import ResourceConfig
from flashmesh.worker.keeper.client import EndpointSockets, KeeperEvent, KeptEndpoint
from flashmesh.worker.spec import WorkerSpec


class KeeperPort(Protocol):
    """What the target needs of `worker.keeper.client.Keeper`. Every method raises EndpointUnavailable."""

    kept: list[KeptEndpoint]
    """What it had when it was taken over."""

    async def open(
        self, endpoint: str, socket_dir: Path, *, queue_size: int = 1000, tcp: tuple[str, int] | None = None
    ) -> EndpointSockets: ...

    async def remember(self, spec: WorkerSpec) -> None: ...

    async def start_template(self, spec: WorkerSpec, *, trial: bool = False) -> int: ...

    async def stop_template(self, endpoint: str, *, drain_s: float = 30) -> None: ...

    async def close_endpoint(self, endpoint: str, *, drain_s: float = 30) -> None: ...

    async def close(self, *, drain_s: float = 30, keep: bool = False) -> None: ...


class EnvironmentsPort(Protocol):
    """What the target needs of `environments.Environments`."""

    def missing(self, requirements: Sequence[str]) -> list[str]: ...

    async def prepare(
        self, requirements: Sequence[str], project_requirements: Sequence[str] = (), *, endpoint: str = ""
    ) -> list[Path]: ...


class VolumesPort(Protocol):
    """What the target needs of `volumes.Volumes`."""

    def arrange(self, config: ResourceConfig) -> dict[str, str]: ...


StartKeeper = Callable[[Callable[[KeeperEvent], None]], Awaitable[KeeperPort]]
"""Starts a keeper that reports to the function it is given. Raises OSError, EndpointUnavailable."""
