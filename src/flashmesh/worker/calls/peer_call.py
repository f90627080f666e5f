"""One call of a function that another endpoint serves, over that endpoint's Unix socket."""

import os
from collections.abc import Callable, Iterator
from typing import Any
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
from flashmesh.worker.calls.exchange import PEER_WAIT_S, RecordReader, Response
from flashmesh.worker.face.answers import END, ERROR, ITEM, ITEMS
from flashmesh.worker.invocation import CHAIN_LIMIT, CURRENT
from flashmesh.worker.spec import reentrant_path


class NotRun(EndpointUnreachable):
    """The endpoint could not run the call now: its worker was leaving. Call again."""


class PeerCall:
    """The bytes of one call, and what its answer means. Chain, trace and deadline come from the call that runs here.

    Attributes:
        address: path of the socket to connect to. wait_s: how long to wait for the whole answer.
    """

    def __init__(
        self, route: Remote, call: Call, *, function: str, binder: Binder, own: str, signer: Signer | None
    ) -> None:
        """Raises CallCycle, NotEncodable (naming the argument)."""
        current = CURRENT.get()
        chain = (*(current.chain if current is not None else ()), own)
        self.address = address_of(route, chain)
        self._function = function
        self._binder = binder
        self._signer = signer
        self._execution = new_execution_id()
        self._chain = chain
        self._parent = current.execution if current is not None else ""
        self._trace = child_trace(current.trace if current is not None else "")
        self._deadline_ms = current.remaining_ms() if current is not None else 0
        self._body = encode_arguments(
            call.args,
            call.kwargs,
            init=call.init,
            signer=signer,
            context=Purpose(function, "call", self._execution),
        )

    @property
    def wait_s(self) -> float:
        return min(PEER_WAIT_S, self._deadline_ms / 1000) if self._deadline_ms else PEER_WAIT_S

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request."""
        parent = f"X-Flash-Parent: {self._parent}\r\n" if self._parent else ""
        deadline = f"X-Flash-Deadline-Ms: {self._deadline_ms}\r\n" if self._deadline_ms else ""
        head = (
            f"POST /{quote(self._function, safe='')}/run_sync HTTP/1.1\r\nHost: flash\r\nContent-Type: {MSGPACK}\r\n"
            f"Accept: {ITEMS if stream else MSGPACK}\r\nContent-Length: {len(self._body)}\r\n"
            f"X-Execution-Id: {self._execution}\r\nX-Flash-Chain: {','.join(self._chain)}\r\n{parent}{deadline}"
            f"traceparent: {self._trace}\r\n\r\n"
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
            text = body[:500].decode("utf-8", "replace")
            return EndpointUnreachable(f"{self.address} answered {response.status}: {text}. Is it an endpoint of ours?")
        if "x-flash-not-run" in response.headers and info.code == EndpointUnavailable.code:
            return NotRun(info.message)
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


def address_of(route: Remote, chain: tuple[str, ...]) -> str:
    """The socket to call, given the endpoints the call has come through, this one last.

    A call that comes back to an endpoint which waits for it goes to that endpoint's second socket, where it is taken
    over the limit, or refused at once where that is forbidden (each worker owns a GPU). Raises CallCycle for a chain
    that is too long.
    """
    shown = " → ".join((*chain, route.endpoint))
    if len(chain) > CHAIN_LIMIT:
        raise CallCycle(f"The call went through {shown}: more than {CHAIN_LIMIT} endpoints. Call fewer in a row.")
    if route.endpoint not in chain:
        return route.socket
    return reentrant_path(route.socket)


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


def child_trace(trace: str) -> str:
    """A W3C traceparent for a call made while `trace` runs: the same trace, a new span; a new trace without one."""
    parts = trace.split("-")
    trace_id = parts[1] if len(parts) == 4 and len(parts[1]) == 32 else os.urandom(16).hex()
    flags = parts[3] if len(parts) == 4 else "01"
    return f"00-{trace_id}-{os.urandom(8).hex()}-{flags}"
