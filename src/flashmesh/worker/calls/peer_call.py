"""One call of a function that another endpoint of ours serves, over its Unix socket or its port."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote

import msgspec

from flashmesh.functions.caller import Call
from flashmesh.functions.errors import CallCycle, EndpointUnavailable, EndpointUnreachable, WorkerLost
from flashmesh.kit.ids import new_execution_id
from flashmesh.routing.route import Remote
from flashmesh.wire import failures, values
from flashmesh.wire.arguments import Binder, encode_arguments
from flashmesh.wire.frames import MSGPACK
from flashmesh.wire.signature import Purpose, Signer
from flashmesh.worker.calls.around import Around, bearer
from flashmesh.worker.calls.exchange import RecordReader, Response, Where
from flashmesh.worker.face.answers import END, ERROR, ITEM, ITEMS
from flashmesh.worker.invocation import CHAIN_LIMIT
from flashmesh.worker.spec import reentrant_path

MOVED: Final = frozenset({404, 410})
"""What an address answers that the endpoint has left, or that does not serve the function any more."""


class NotRun(EndpointUnreachable):
    """The endpoint could not run the call now: its worker was leaving. Call again."""


class Moved(EndpointUnreachable):
    """The endpoint is not at its address, or does not serve this function: nothing ran. `flash status` shows more."""


class PeerCall:
    """The bytes of one call, and what its answer means. Chain, trace and deadline come from the call that runs here.

    Attributes:
        address: where to connect to. wait_s: how long to wait for the whole answer.
    """

    def __init__(
        self, route: Remote, call: Call, *, function: str, binder: Binder, own: str, signer: Signer | None, key: str
    ) -> None:
        """`key` is shown to an endpoint over TCP; empty: none. Raises CallCycle, NotEncodable (naming the argument)."""
        self._around = around = Around.of_current(own)
        self.address = address_of(route, around.chain)
        self._function = function
        self._binder = binder
        self._signer = signer
        self._execution = new_execution_id()
        self._key = key
        self._body = encode_arguments(
            call.args,
            call.kwargs,
            init=call.init,
            signer=signer,
            context=Purpose(function, "call", self._execution),
        )

    @property
    def wait_s(self) -> float:
        return self._around.wait_s

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request."""
        address = self.address
        host, prefix = ("flash", "") if isinstance(address, str) else (address.authority, address.path)
        head = (
            f"POST {prefix}/{_quoted(self._function)}/run_sync HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: {MSGPACK}\r\nAccept: {ITEMS if stream else MSGPACK}\r\n"
            f"Content-Length: {len(self._body)}\r\n"
            f"X-Execution-Id: {self._execution}\r\n{self._around.headers()}{bearer(address, self._key)}\r\n"
        )
        return head.encode("latin-1") + self._body

    def value(self, response: Response, body: bytes) -> Any:
        """The function's value. Raises its exception, or NotRun."""
        if response.status != 200:
            raise self._failure(response, body)
        value = self._decoded(body)
        return self._binder.convert_result(value)

    def items(self) -> "ItemReader":
        """What reads a streamed answer."""
        return ItemReader(lambda data: self._binder.convert_item(self._decoded(data)), self._failure)

    def _decoded(self, data: bytes) -> Any:
        purpose = Purpose(self._function, "result", self._execution)
        return values.decode(data, MSGPACK, signer=self._signer, context=purpose)

    def _failure(self, response: Response, body: bytes) -> BaseException:
        info = failures.unpack(body) if response.content_type == MSGPACK else told(body)
        if info is None:
            return foreign_failure(self.address, response, body)
        if "x-flash-not-run" in response.headers:
            if info.code == EndpointUnavailable.code:
                return NotRun(info.message)
            if response.status in MOVED:
                return Moved(info.message)
        return failures.restore(info)


class ItemReader:
    """Turns the pieces of a streamed answer into items."""

    def __init__(self, decode: Callable[[bytes], Any], failure: Callable[[Response, bytes], BaseException]) -> None:
        self._decode = decode
        self._failure = failure
        self._records = RecordReader()
        self._refusal: list[bytes] = []
        self._ended = False

    def feed(self, response: Response, data: bytes) -> Iterator[Any]:
        """The items that are complete now. Raises the function's exception where it stands in the stream."""
        if response.content_type != ITEMS:
            self._refusal.append(data)
            if response.complete:
                raise self._failure(response, b"".join(self._refusal))
            return
        for kind, record in self._records.feed(data):
            if kind == ITEM:
                yield self._decode(record)
            elif kind == ERROR:
                raise failures.restore(failures.unpack(record))
            elif kind == END:
                self._ended = True

    def end(self) -> None:
        """Raises WorkerLost when the connection ended before the stream did."""
        if not self._ended:
            raise WorkerLost()


@lru_cache(maxsize=1024)
def _quoted(function: str) -> str:
    return quote(function, safe="")


def address_of(route: Remote, chain: tuple[str, ...]) -> Where:
    """Where to connect to, given the endpoints the call has come through, this one last.

    A call that comes back to an endpoint which waits for it goes to that endpoint's second socket, where it is taken
    over the limit, or refused at once where that is forbidden (each worker owns a GPU). Raises CallCycle for a chain
    that is too long, and for one that comes back over TCP, where it could wait for itself.
    """
    comes_back = route.endpoint in chain
    if len(chain) > CHAIN_LIMIT:
        shown = " → ".join((*chain, route.endpoint))
        raise CallCycle(f"The call went through {shown}: more than {CHAIN_LIMIT} endpoints. Call fewer in a row.")
    if route.socket:
        return (route.reentrant or reentrant_path(route.socket)) if comes_back else route.socket
    if comes_back and route.http_method is None:
        shown = " → ".join((*chain, route.endpoint))
        raise CallCycle(f"The call came back to an endpoint on another machine: {shown}. Break the cycle.")
    assert route.address is not None  # a route has at least one of them
    return route.address


def foreign_failure(address: Where, response: Response, body: bytes) -> EndpointUnreachable:
    """What an answer means that none of our endpoints gives."""
    text = " ".join(body[:500].decode("utf-8", "replace").split())
    shown = address if isinstance(address, str) else address.origin
    if 300 <= response.status < 400:
        return EndpointUnreachable(
            f"{shown} answered with a redirect ({response.status}), which is not followed: deploy its target's address."
        )
    kind = Moved if response.status in MOVED else EndpointUnreachable
    return kind(f"{shown} answered {response.status}: {text}. Is it an endpoint of ours? `flash status` shows them.")


def told(body: bytes) -> failures.ErrorInfo | None:
    """The error of a JSON answer `{"error": {"code", "type", "message", …}}`; None when it is none."""
    try:
        error = msgspec.json.decode(body)["error"]
        return failures.ErrorInfo(
            code=error["code"],
            type=error.get("type", ""),
            message=error.get("message", ""),
            traceback=error.get("traceback") or "",
        )
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        return None
