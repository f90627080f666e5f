"""Who on this machine has which GPU: chosen for an endpoint before its template starts, free again when that ends."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from flashmesh.deploy.local.gpus import Devices, Gpu, NoGpu
from flashmesh.deploy.local.hosted import Hosted
from flashmesh.deploy.local.inherited import Inherited
from flashmesh.deploy.local.plans import devices_for
from flashmesh.kit.ids import EndpointName


class GpuDesk:
    """Args:
    detect: finds this machine's GPUs; asked once, when the first GPU resource starts.
    endpoints, inherited: the target's own, looked at for who holds what.
    free_one: asks an endpoint that holds GPUs and does nothing to leave.
    notice: told an endpoint's name and a line for people to read.

    Attributes:
        freed: to be set whenever a GPU may have become free.
    """

    def __init__(
        self,
        *,
        detect: Callable[[], tuple[Gpu, ...]],
        endpoints: Mapping[EndpointName, Hosted],
        inherited: Inherited,
        free_one: Callable[[], None],
        notice: Callable[[str, str], None],
    ) -> None:
        self.freed = asyncio.Event()
        self._detect = detect
        self._gpus: tuple[Gpu, ...] | None = None
        self._endpoints = endpoints
        self._inherited = inherited
        self._free_one = free_one
        self._notice = notice
        self._said: set[str] = set()

    async def gpus(self) -> tuple[Gpu, ...]:
        if self._gpus is None:
            self._gpus = await asyncio.to_thread(self._detect)
        return self._gpus

    async def reserve(self, endpoint: Hosted) -> None:
        """Choose the endpoint's GPUs; waits while all that fit belong to others that do not share."""
        config = endpoint.resource.config
        if not config.gpus or endpoint.devices is not None:
            return
        gpus = await self.gpus()
        while True:
            found = devices_for(config, gpus, self._in_use())
            if isinstance(found, Devices):
                endpoint.devices = found
                if found.note:
                    self.say_once(endpoint, found.note)
                return
            if not isinstance(found, NoGpu) or not found.busy:
                self._say_no_gpu(endpoint)
                return
            self._notice(endpoint.name, found.reason)
            self.freed.clear()
            self._free_one()
            await self.freed.wait()

    def say_once(self, endpoint: Hosted, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._notice(endpoint.name, line)

    def _in_use(self) -> dict[str, int]:
        counts: dict[str, int] = dict(Counter(self._inherited.gpus()))
        for endpoint in self._endpoints.values():
            for gpu in endpoint.devices.gpus if endpoint.devices is not None else ():
                counts[gpu.uuid] = counts.get(gpu.uuid, 0) + 1
        return counts

    def _say_no_gpu(self, endpoint: Hosted) -> None:
        if "no GPU" not in self._said:
            self._said.add("no GPU")
            self._notice(endpoint.name, "no GPU here: running on CPU")
