"""The answer to one call on a worker's face: JSON in RunPod's envelope, the bare value, or a stream.

| Accept                     | a value                         | a generator's items    | a failure                  |
|----------------------------|---------------------------------|------------------------|----------------------------|
| `application/json`, absent | `{"id","status","output":…}`    | the list of them       | `{"id","status","error"}`  |
| `application/x-msgpack`    | the value                       | the list of them       | an ErrorInfo               |
| `application/octet-stream` | bytes as they are; else as JSON | the list of them       | as JSON                    |
| `text/event-stream`        | one `data:` event               | one `data:` event each | an `error` event           |
| ITEMS                      | one item record                 | one record each        | an error record            |

ITEMS is what our own peers ask for: records of a kind byte (`I` item, `E` end, `X` ErrorInfo), a 4-byte length and the
MessagePack bytes. A stream that stops without `E` or `X` was cut off.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire import failures
from flashmesh.wire.frames import BINARY, JSON, MSGPACK
from flashmesh.worker.face.http import RequestRefused, answer, json_body, stream_head
from flashmesh.worker.invocation import Invocation

if TYPE_CHECKING:
    from flashmesh.worker.face.face import Connection

ITEMS: Final = "application/x-flash-items"
EVENTS: Final = "text/event-stream"
ITEM, END, ERROR = b"I", b"E", b"X"


def record(kind: bytes, data: bytes = b"") -> bytes:
    """One record of an ITEMS stream."""
    return kind + len(data).to_bytes(4, "big") + data


@lru_cache(maxsize=64)
def _wanted(accept: str) -> tuple[str, bool, bool]:
    """What an Accept header asks for: the media type of values, whether events, whether items as they come."""
    events = EVENTS in accept
    media = JSON
    if ITEMS in accept or MSGPACK in accept:
        media = MSGPACK
    elif BINARY in accept and not events:
        media = BINARY
    return media, events, events or ITEMS in accept


class CallReply:
    """Writes one invocation's answer to its connection, and cancels it when the caller hangs up.

    Attributes:
        accept: the media type values are encoded in. streams: items are sent as they come.
    """

    __slots__ = ("_connection", "_execution", "_headed", "_invocation", "accept", "events", "streams")

    def __init__(self, connection: "Connection", execution: str, accept: str) -> None:
        self._connection = connection
        self._execution = execution
        self._headed = False
        self._invocation: Invocation | None = None
        self.accept, self.events, self.streams = _wanted(accept)

    # --- what the runner tells ---

    def started(self, invocation: Invocation, *, sync: bool) -> bool:
        face, connection = self._connection.face, self._connection
        self._invocation = invocation
        connection.on_closed = self._gone
        if not sync:
            return False
        face.runner.canceller.watch(connection.peer, invocation)
        return face.settle()

    def waiting(self, invocation: Invocation) -> None:
        connection, canceller = self._connection, self._connection.face.runner.canceller
        if canceller.unwatch(invocation):
            canceller.hush(connection.peer)
        # Not at once: most bodies are over after their first step, and watching a descriptor costs nine system calls.
        connection.face.loop.call_soon(self._watch, invocation)

    def _watch(self, invocation: Invocation) -> None:
        if not (invocation.finished or self._connection.closed):
            # Readable means closed. Bytes after the request are nothing a caller of ours sends; they end the call too.
            self._connection.watch(self._connection.close)

    def item(self, invocation: Invocation, data: bytes) -> None:
        self._head()
        if self._connection.write(self._piece(data)):
            if invocation.window is not None:
                invocation.window.grant(1)
        else:
            self._connection.on_written(self._drained)

    def succeeded(self, invocation: Invocation, content_type: str, payload: bytes, run_us: int) -> None:
        self._over(invocation)
        if self.streams:
            self._head()
            last = self._piece(payload) if payload else b""
            self._connection.finish(last + (b"event: end\ndata: {}\n\n" if self.events else record(END)))
            return
        more = f"X-Execution-Id: {self._execution}\r\nServer-Timing: run;dur={run_us / 1000:.3f}\r\n"
        if content_type == JSON:
            body = b'{"id":"%b","status":"COMPLETED","output":%b}' % (self._execution.encode(), payload)
        else:
            body = payload
        self._connection.finish(answer(200, body, content_type, more))

    def failed(self, invocation: Invocation, error: BaseException, run_us: int, *, ran: bool, code: str | None) -> None:
        self._over(invocation)
        self._fail(failures.describe(error, code=code), ran=ran)

    # --- refusals before there is an invocation ---

    def refuse(self, error: FlashmeshError | RequestRefused) -> None:
        """Answer an error of ours; nothing ran."""
        if isinstance(error, RequestRefused):
            self._connection.refuse(error.status, error.message)
        else:
            self._fail(failures.describe(error), ran=False)

    def _fail(self, info: failures.ErrorInfo, *, ran: bool) -> None:
        if self._headed:
            if self.events:
                last = b"event: error\ndata: %b\n\n" % json_body(failures.to_http(info))
            else:
                last = record(ERROR, failures.pack(info))
            self._connection.finish(last)
            return
        more = f"X-Execution-Id: {self._execution}\r\n"
        if not ran:
            more += "X-Flash-Not-Run: 1\r\n"
        if info.retry_after is not None:
            more += f"Retry-After: {max(1, round(info.retry_after))}\r\n"
        if self.accept == MSGPACK:
            body, content_type = failures.pack(info), MSGPACK
        else:
            body = json_body({"id": self._execution, "status": "FAILED", "error": failures.to_http(info)})
            content_type = JSON
        self._connection.finish(answer(failures.http_status(info), body, content_type, more))

    def _head(self) -> None:
        if not self._headed:
            self._headed = True
            content_type = EVENTS if self.events else ITEMS
            self._connection.write(stream_head(content_type, f"X-Execution-Id: {self._execution}\r\n"))

    def _piece(self, data: bytes) -> bytes:
        return b"data: %b\n\n" % data if self.events else record(ITEM, data)

    def _drained(self) -> None:
        if self._invocation is not None and self._invocation.window is not None:
            self._invocation.window.grant(1 << 30)

    def _over(self, invocation: Invocation) -> None:
        self._connection.face.runner.canceller.unwatch(invocation)
        self._connection.on_closed = None
        if not self._connection.closed:
            self._connection.watch(None)

    def _gone(self) -> None:
        if self._invocation is not None:
            self._connection.face.runner.canceller.stop(self._invocation, "cancel")
