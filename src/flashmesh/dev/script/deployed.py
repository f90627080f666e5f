"""The Caller of a script whose project is deployed: calls go to the server, which queues, runs and records them.

What the server does not have runs in a worker here, which is said; under FLASH_SERVER it is an error, since that server
and no other place was asked for. Load-balanced functions go to their routes behind the same server.
"""

import asyncio
import hashlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from flashmesh.dev.script.deployed_calls import WAIT_S, Deployed, DeployedCall
from flashmesh.dev.script.deployed_jobs import DeployedJobs
from flashmesh.dev.script.functions import place_of
from flashmesh.dev.script.main_module import main_name
from flashmesh.dev.script.road import ASK_S, Road
from flashmesh.functions.caller import Call, Caller
from flashmesh.functions.declarations import Declaration
from flashmesh.functions.errors import EndpointUnresolved
from flashmesh.functions.jobs import Job
from flashmesh.kit.ids import EndpointName
from flashmesh.project.naming import module_of
from flashmesh.routing.addresses import Rules, read_address
from flashmesh.routing.route import Remote, entry_id
from flashmesh.wire.arguments import Binder
from flashmesh.worker.calls.exchange import PEER_WAIT_S, exchange, exchange_blocking, pieces, pieces_blocking
from flashmesh.worker.calls.lb_call import LbCall
from flashmesh.worker.calls.queue_call import Pending


class DeployedCaller:
    """See the module. Safe to use from several threads and loops.

    Args:
        here: makes the Caller of workers on this machine, when something has to run there.
        say: tells the user one line.
    """

    def __init__(self, road: Road, *, here: Callable[[], Caller], say: Callable[[str], None]) -> None:
        self._road = road
        self._server = road.server
        self._make_here = here
        self._here: Caller | None = None
        self._say = say
        self._main_module = _main_module(road.root)
        self._lock = threading.Lock()
        self._known: dict[int, tuple[Declaration, Deployed | None]] = {}
        self._compared: set[str] = set()
        self._binders: dict[tuple[int, str | None], Binder] = {}

    def close(self) -> None:
        """Close what rests between calls. Workers here end by themselves."""
        self._server.close()

    # --- the port ---

    def is_local(self, declaration: Declaration) -> bool:
        return declaration.resource.is_load_balanced and self._deployed(declaration) is None

    async def call(self, call: Call) -> Any:
        plan = await asyncio.to_thread(self._plan, call)
        if plan is None:
            return await self._elsewhere(call).call(call)
        network = self._server.network
        request, seconds = _whole(plan)
        while True:
            value = plan.value(*await exchange(self._server.address, request, seconds=seconds, network=network))
            if not isinstance(value, Pending):
                return value
            await asyncio.sleep(value.pause_s)
            request, seconds = value.request, ASK_S

    def call_blocking(self, call: Call) -> Any:
        plan = self._plan(call)
        if plan is None:
            return self._elsewhere(call).call_blocking(call)
        network, pause = self._server.network, threading.Event()
        request, seconds = _whole(plan)
        while True:
            value = plan.value(*exchange_blocking(self._server.address, request, seconds=seconds, network=network))
            if not isinstance(value, Pending):
                return value
            pause.wait(value.pause_s)
            request, seconds = value.request, ASK_S

    async def stream(self, call: Call) -> AsyncIterator[Any]:
        plan = await asyncio.to_thread(self._plan, call)
        if plan is None:
            items = self._elsewhere(call).stream(call)
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()  # type: ignore[attr-defined]
            return
        reader = plan.items()
        parts = pieces(self._server.address, _streamed(plan), seconds=PEER_WAIT_S, network=self._server.network)
        try:
            async for response, data in parts:
                for item in reader.feed(response, data):
                    yield item
            reader.end()
        finally:
            await parts.aclose()

    def stream_blocking(self, call: Call) -> Iterator[Any]:
        plan = self._plan(call)
        if plan is None:
            yield from self._elsewhere(call).stream_blocking(call)
            return
        reader, network = plan.items(), self._server.network
        for response, data in pieces_blocking(
            self._server.address, _streamed(plan), seconds=PEER_WAIT_S, network=network
        ):
            yield from reader.feed(response, data)
        reader.end()

    def spawn(self, call: Call) -> Job:
        plan = self._plan(call)
        if plan is None:
            return self._elsewhere(call).spawn(call)
        if isinstance(plan, LbCall):
            raise EndpointUnresolved(f"{call.declaration.name!r} is a route and has no queue. Call it directly.")
        server = self._server
        response, body = exchange_blocking(server.address, plan.accepted(), seconds=ASK_S, network=server.network)
        document = plan.document(response, body)
        return Job(str(document["id"]), DeployedJobs(server, plan))

    # --- deciding ---

    def _plan(self, call: Call) -> DeployedCall | LbCall | None:
        """What to send; None: it is not deployed. Raises NotEncodable."""
        deployed = self._deployed(call.declaration)
        if deployed is None:
            return None
        binder = self._binder_of(call)
        if deployed.entry.get("is_load_balanced"):
            return LbCall(self._route(deployed, call.declaration), call, binder=binder, own="", key=self._server.token)
        if call.method is not None:
            deployed = Deployed(
                deployed.endpoint, f"{deployed.function}.{call.method}", deployed.resource, deployed.entry
            )
        return DeployedCall(self._server, deployed, call, binder, main_module=self._main_module)

    def _deployed(self, declaration: Declaration) -> Deployed | None:
        """The function as the server has it. What is said about it is said when it is first looked for."""
        with self._lock:
            found = self._known.get(id(declaration))
            if found is None:
                found = self._known[id(declaration)] = (declaration, self._find(declaration))
        return found[1]

    def _find(self, declaration: Declaration) -> Deployed | None:
        place = place_of(declaration)
        if place.file is None or not place.file.is_relative_to(self._road.root):
            return None
        module = module_of(place.file.relative_to(self._road.root).as_posix())
        wanted = f"{module}.{declaration.qualname}"
        for resource, entry in self._road.manifest["resources"].items():
            if any(entry_id(function) == wanted for function in entry.get("functions", ())):
                self._compare(resource, entry)
                return Deployed(str(entry.get("endpoint_id") or resource), wanted, resource, entry)
        return None

    def _compare(self, resource: str, entry: Any) -> None:
        """Say it, once, when what is deployed was made from other files than those that are here."""
        if resource in self._compared:
            return
        self._compared.add(resource)
        sources = entry.get("sources") or {}
        changed = [file for file, digest in sources.items() if _differs(self._road.root / file, digest)]
        if changed:
            shown = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
            build = f" (build {entry['build']})" if entry.get("build") else ""
            self._say(
                f"{resource} is deployed{build} from other code than is here: {shown} changed. "
                "`flash deploy` brings it up to date"
            )

    def _route(self, deployed: Deployed, declaration: Declaration) -> Remote:
        """The declared route, behind the server."""
        base = read_address(f"{self._server.url}/lb/{quote(deployed.endpoint, safe='')}", Rules())
        path = declaration.path or "/"
        return Remote(
            EndpointName(deployed.endpoint),
            "",
            base.origin + base.path + path,
            base,
            http_method=declaration.method or "POST",
            http_path=path,
        )

    def _elsewhere(self, call: Call) -> Caller:
        """Workers here, for what is not deployed. Raises EndpointUnresolved under FLASH_SERVER."""
        road, name = self._road, call.declaration.name
        if self._server.source == "FLASH_SERVER":
            raise EndpointUnresolved(
                f"{name!r} is not deployed on {self._server.url} (app {road.app}, environment {road.environment}). "
                "Deploy it: `flash deploy`; or unset FLASH_SERVER to run it here."
            )
        with self._lock:
            if self._here is None:
                self._say(f"{name} is not deployed there: it runs in a worker on this machine")
                self._here = self._make_here()
            return self._here

    def _binder_of(self, call: Call) -> Binder:
        key = (id(call.declaration), call.method)
        binder = self._binders.get(key)
        if binder is None:
            target: Any = call.declaration.target
            binder = self._binders[key] = Binder(target if call.method is None else getattr(target, call.method))
        return binder


def _main_module(root: Path) -> str:
    """What the project calls this program's file."""
    file = getattr(sys.modules.get("__main__"), "__file__", None)
    path = Path(file).resolve() if isinstance(file, str) and not file.startswith("<") else None
    if path is None or not path.is_relative_to(root):
        return main_name()
    return module_of(path.relative_to(root).as_posix())


def _whole(plan: DeployedCall | LbCall) -> tuple[bytes, float]:
    return (plan.request(stream=False), PEER_WAIT_S) if isinstance(plan, LbCall) else (plan.whole(), WAIT_S)


def _streamed(plan: DeployedCall | LbCall) -> bytes:
    return plan.request(stream=True) if isinstance(plan, LbCall) else plan.streamed()


def _differs(file: Path, digest: str) -> bool:
    """Whether a file has other bytes than those that were deployed; one that is gone has."""
    try:
        return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()[: len(digest)] != digest
    except OSError:
        return bool(digest)
