"""Endpoints that an earlier server left serving: what they hold, until each is taken over or ended."""

from collections.abc import Iterable, Iterator, Sequence

from flashmesh.deploy.local.gpus import Devices, Gpu
from flashmesh.kit.ids import EndpointName
from flashmesh.worker.keeper.client import KeptEndpoint


class Inherited:
    """Plain state; the target alone changes it."""

    def __init__(self) -> None:
        self._kept: dict[EndpointName, KeptEndpoint] = {}

    def add(self, kept: Iterable[KeptEndpoint]) -> None:
        """What a keeper had when it was taken over."""
        self._kept.update({EndpointName(one.endpoint): one for one in kept})

    def take(self, name: EndpointName) -> KeptEndpoint | None:
        """It is somebody's now."""
        return self._kept.pop(name, None)

    def clear(self) -> None:
        """Their keeper is gone."""
        self._kept.clear()

    def __iter__(self) -> Iterator[KeptEndpoint]:
        """Those that are nobody's yet."""
        return iter(list(self._kept.values()))

    def gpus(self) -> list[str]:
        """The uuids of the GPUs that the templates of these hold, once per endpoint that holds one."""
        return [uuid for kept in self._kept.values() for uuid in gpus_of(kept)]


def gpus_of(kept: KeptEndpoint) -> list[str]:
    """The uuids of the GPUs that its template holds; none without a template."""
    devices = kept.spec.cuda_devices if kept.spec is not None and kept.template_pid else None
    return devices.split(",") if devices else []


def devices_of(kept: KeptEndpoint, gpus: Sequence[Gpu]) -> Devices | None:
    """The same, of those that can be given to anybody here. None: none of them."""
    held = set(gpus_of(kept))
    found = tuple(gpu for gpu in gpus if gpu.uuid in held)
    return Devices(found) if found else None
