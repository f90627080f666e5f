"""The keeper of a target: started when something is asked of it and none runs, and asked in terms of endpoints.

What an endpoint cannot serve without, as its sockets or a template, raises when it fails. What only puts things in
order (a template that should leave, a spec to remember) is logged instead.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from flashmesh.deploy.local.hosted import Hosted
from flashmesh.deploy.local.inherited import Inherited
from flashmesh.deploy.local.ports import KeeperPort
from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.queueing.ports import EventLog
from flashmesh.worker.keeper.client import KeptEndpoint
from flashmesh.worker.spec import WorkerSpec

PORT_PATIENCE_S: Final = 1.0
"""How long a TCP port may be held by processes that are just ending: a killed keeper's workers."""


class KeeperDesk:
    """Args:
    socket_dir: where the endpoints' sockets stand; made when the first is opened.
    start: starts a keeper; called again when one is lost. Raises OSError, EndpointUnavailable.
    inherited: is given what a keeper that an earlier server left has.
    """

    def __init__(
        self,
        *,
        socket_dir: Path,
        start: Callable[[], Awaitable[KeeperPort]],
        inherited: Inherited,
        log: EventLog,
    ) -> None:
        self._socket_dir = socket_dir
        self._start = start
        self._inherited = inherited
        self._log = log
        self._keeper: KeeperPort | None = None
        self._starting = asyncio.Lock()

    async def started(self) -> KeeperPort:
        """The keeper. Raises EndpointUnavailable when there is none and none can be started."""
        async with self._starting:
            if self._keeper is None:
                try:
                    self._keeper = await self._start()
                except OSError as error:
                    raise EndpointUnavailable(
                        f"the process that starts workers could not be started: {error}. The next call tries again"
                    ) from error
                self._inherited.add(self._keeper.kept)
            return self._keeper

    def lost(self) -> None:
        """It has ended: the next thing asked starts another."""
        self._keeper = None

    async def close(self, *, drain_s: float, keep: bool) -> None:
        """End it, if it runs; `keep`: let it serve on, where it can."""
        if self._keeper is not None:
            await self._keeper.close(drain_s=drain_s, keep=keep)

    # What an endpoint cannot do without: EndpointUnavailable reaches the caller

    async def open(self, endpoint: Hosted) -> None:
        """Open its sockets, or find them open."""
        self._socket_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        keeper = await self.started()
        queue_size = endpoint.resource.config.queue_size
        until = asyncio.get_running_loop().time() + PORT_PATIENCE_S
        while True:
            tcp = endpoint.tcp
            sockets = await keeper.open(endpoint.name, self._socket_dir, queue_size=queue_size, tcp=tcp)
            if not sockets.tcp_error or asyncio.get_running_loop().time() > until:
                break
            await asyncio.sleep(PORT_PATIENCE_S / 20)
        endpoint.opened(sockets)
        if sockets.tcp_unknown:
            await keeper.stop_template(endpoint.name, drain_s=endpoint.drain_s)

    async def start_template(self, spec: WorkerSpec, *, trial: bool = False) -> None:
        """Start its template, which none runs of; `trial`: it is to prove itself."""
        await (await self.started()).start_template(spec, trial=trial)

    async def tell(self, spec: WorkerSpec) -> None:
        """That is what the keeper starts from now on when somebody calls."""
        await (await self.started()).remember(spec)

    # What is only tried

    async def remember(self, endpoint: Hosted) -> None:
        """What is served is what the keeper starts from now on. One that is lost is told when there is another."""
        if endpoint.spec is None:
            return
        try:
            await self.tell(endpoint.spec)
        except EndpointUnavailable as error:
            self._log("remember_failed", {"endpoint": endpoint.name, "reason": str(error)})

    async def stop_template(self, endpoint: Hosted) -> None:
        """Let its template finish what it runs and go; its sockets stay open."""
        try:
            await (await self.started()).stop_template(endpoint.name, drain_s=endpoint.drain_s)
        except EndpointUnavailable as error:
            self._log("stop_failed", {"endpoint": endpoint.name, "reason": str(error)})

    async def close_endpoint(self, endpoint: Hosted) -> None:
        """Let it finish what it runs and go, with its sockets. Starts no keeper for that."""
        if self._keeper is not None:
            await self._close(self._keeper, endpoint.name, endpoint.drain_s)

    async def close_kept(self, kept: KeptEndpoint) -> None:
        """The same for one that an earlier server left."""
        drain_s = 0.0 if kept.spec is None else kept.spec.drain_limit_s
        try:
            keeper = await self.started()
        except EndpointUnavailable as error:
            self._log("remove_failed", {"endpoint": kept.endpoint, "reason": str(error)})
        else:
            await self._close(keeper, kept.endpoint, drain_s)

    async def _close(self, keeper: KeeperPort, endpoint: str, drain_s: float) -> None:
        try:
            await keeper.close_endpoint(endpoint, drain_s=drain_s)
        except EndpointUnavailable as error:
            self._log("remove_failed", {"endpoint": endpoint, "reason": str(error)})
