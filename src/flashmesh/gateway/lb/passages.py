"""All passages of a server: which requests they take, who may use them, and their end."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import unquote

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.access import gate as gates
from flashmesh.gateway.access.gate import AccessGate, Entered
from flashmesh.gateway.access.pages import cors_headers
from flashmesh.gateway.access.place import APP_HEADER, ENVIRONMENT_HEADER
from flashmesh.gateway.api.failures import failure as refusal_of
from flashmesh.gateway.front.limits import FrontLimits, answer_to, not_http
from flashmesh.gateway.http import Answer
from flashmesh.gateway.lb import heads
from flashmesh.gateway.lb.directory import LbDirectory
from flashmesh.gateway.lb.heads import BadHead, Destination, RequestHead, destination, request_head, to_endpoint
from flashmesh.gateway.lb.passage import Passage, failure
from flashmesh.kit.ids import EndpointName

log = logging.getLogger(__name__)

_LOOK_S: Final = 0.02


class Port(Protocol):
    """The HTTP port that connections come from and go back to."""

    limits: FrontLimits
    loop: asyncio.AbstractEventLoop
    draining: bool

    def dismiss(self, transport: asyncio.Transport, answer: Answer | None) -> None: ...

    def take_back(self, transport: asyncio.Transport, data: bytes, *, last: bool = False) -> None: ...


class Passages:
    """Takes over connections whose next request means a load-balanced endpoint.

    Args:
        closed: what is answered while nothing new is let in; None: it is open.

    Attributes, only to be read:
        requests: by status; 0 are those whose client left before the answer. open: those under way.
    """

    def __init__(self, directory: LbDirectory, gate: AccessGate, *, closed: Callable[[], Answer | None]) -> None:
        self._directory = directory
        self._gate = gate
        self._closed = closed
        self._port: Port
        self.requests: Counter[int] = Counter()
        self.open: set[Passage] = set()

    def bind(self, port: Port) -> None:
        """The port that it belongs to."""
        self._port = port

    # --- what the port asks ---

    def claims(self, data: bytes) -> Destination | None:
        """Where the request goes whose head `data` begins with; None: to no endpoint."""
        where = destination(data)
        return where if where is not None and (where.prefix or self._directory.has(where.name)) else None

    def adopt(self, transport: asyncio.Transport, data: bytes, where: Destination) -> None:
        """Serve the claimed request that `data` begins with; its connection comes back afterwards."""
        end = data.find(heads.END) + len(heads.END)
        try:
            head = request_head(data[:end])
        except BadHead as problem:
            self._port.dismiss(transport, answer_to(not_http(problem)))
            return
        made = self._passage(head, where, transport)
        if isinstance(made, Answer):
            self.requests[made.status] += 1
            self._port.dismiss(transport, made)
            return
        self.open.add(made)
        made.begin(transport, data[end:])

    def _passage(self, head: RequestHead, where: Destination, transport: asyncio.Transport) -> Passage | Answer:
        """The way to the endpoint, or why there is none."""
        closed = self._closed()
        if closed is not None:
            return closed
        headers, secure = head.headers, transport.get_extra_info("sslcontext") is not None

        def decide() -> gates.Decision:
            return self._decide(head, where)

        decision = decide()
        entered = decision if isinstance(decision, Entered) else None
        grant = self._gate.grant(entered.principal) if entered is not None else None
        try:
            found = self._directory.find(
                where.name,
                app=headers.get(APP_HEADER, b"").decode("latin-1") or (grant.app if grant else ""),
                environment=headers.get(ENVIRONMENT_HEADER, b"").decode("latin-1")
                or (grant.environment if grant else ""),
            )
        except FlashmeshError as error:
            if entered is None:
                return self._turned_away(decision, headers, secure=secure)
            return refusal_of(error, face="functions")
        if entered is None and not found.public:
            return self._turned_away(decision, headers, secure=secure)
        if grant is not None and not found.public and not _counts_for(grant, found):
            text = f"The token {grant.name!r} does not count for {found.endpoint}. Make one with `flash token create`."
            return failure(403, "FORBIDDEN", text)
        lasting = entered is not None and entered.principal != "" and not found.public
        origin = entered.origin if entered is not None and not found.public else None
        return Passage(
            _Port(self._port, self),
            endpoint=found.endpoint,
            path=found.socket_path,
            head=head,
            sent=to_endpoint(head, where, client=_client(transport), scheme="https" if secure else "http"),
            more=b"" if origin is None else b"".join(b"%b: %b\r\n" % line for line in cors_headers(origin)),
            still=(lambda: isinstance(decide(), Entered)) if lasting else None,
        )

    def _decide(self, head: RequestHead, where: Destination) -> gates.Decision:
        """As if it came below `/lb/`, however it names the endpoint. Its query is the endpoint's own."""
        path, _, query = where.target.partition(b"?")
        signs_in = b"token=" in query and bool(where.prefix)
        websocket = head.is_websocket
        if not (signs_in or websocket or b"/." in path or b"%" in path):
            # What it needs is the same for all paths of all endpoints.
            principal = self._gate.quick(head.method, b"/lb/any", b"", head.headers)
            if principal is not None:
                return Entered(principal)
        return self._gate.decide(
            method=head.method.decode("latin-1"),
            path=f"/lb/{where.name}{unquote(path.decode('latin-1'))}",
            query=query.decode("latin-1") if signs_in else "",
            headers=head.headers,
            websocket=websocket,
        )

    def _turned_away(self, decision: gates.Decision, headers: dict[bytes, bytes], *, secure: bool) -> Answer:
        assert not isinstance(decision, Entered)
        return gates.answer(decision, headers, secure=secure)

    # --- what is told ---

    def endpoint_failed(self, endpoint: EndpointName, error: FlashmeshError) -> None:
        """It cannot be started: nobody will accept the connections that wait for it."""
        for passage in [one for one in self.open if one.endpoint == endpoint]:
            passage.refuse(refusal_of(error, face="functions"))

    def ended(self, passage: Passage, status: int) -> None:
        """It is over."""
        self.open.discard(passage)
        self.requests[status] += 1

    # --- time and stopping ---

    @property
    def connections(self) -> int:
        return len(self.open)

    def sweep(self) -> None:
        """Every `sweep_s`."""
        for passage in list(self.open):
            passage.sweep()

    async def drained(self, seconds: float) -> bool:
        """Wait until every request has its answer; websockets are their endpoints' business."""
        until = self._port.loop.time() + seconds
        while any(not passage.is_tunnel for passage in self.open):
            if self._port.loop.time() >= until:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def close(self) -> None:
        """End everything now."""
        for passage in list(self.open):
            passage.abort()


class _Port:
    """What a passage has of its server."""

    def __init__(self, port: Port, passages: Passages) -> None:
        self._port = port
        self.limits = port.limits
        self.loop = port.loop
        self.dismiss = port.dismiss
        self.take_back = port.take_back
        self.ended = passages.ended

    @property
    def draining(self) -> bool:
        return self._port.draining


def _counts_for(grant: object, found: object) -> bool:
    """Whether a token of one app or environment is used for that one."""
    return all(
        getattr(grant, name) in ("", getattr(found, name)) or not getattr(found, name)
        for name in ("app", "environment")
    )


def _client(transport: asyncio.Transport) -> str:
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""
