"""One call of an endpoint that is called as RunPod's queue API is: `{"input": …}` in JSON, `output` in the answer.

So are called RunPod's own endpoints, and those of a manifest that does not say they are ours. JSON carries what the
function's annotations bring back: dataclasses, moments, bytes. A job that takes longer than its endpoint lets a request
wait is asked for until it is over.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote

import msgspec

from flashmesh.functions.caller import Call
from flashmesh.functions.errors import (
    EndpointUnreachable,
    MalformedRequest,
    QueueFull,
    RemoteError,
    ValidationError,
    WorkerLost,
)
from flashmesh.routing.addresses import Address
from flashmesh.routing.route import Remote, is_runpod
from flashmesh.wire import failures, values
from flashmesh.wire.answers import CODES
from flashmesh.wire.arguments import Binder
from flashmesh.wire.frames import JSON
from flashmesh.worker.calls.around import Around, bearer
from flashmesh.worker.calls.events import EVENTS, EventReader
from flashmesh.worker.calls.exchange import Response
from flashmesh.worker.calls.peer_call import MOVED, address_of, foreign_failure

WAITING: Final = frozenset({"IN_QUEUE", "IN_PROGRESS"})
_POLL_S: Final = (0.25, 1.5, 5.0)
"""The first pause between two looks at a job, by what it grows, and the longest."""


class Pending:
    """An answer that says: not yet. `request` asks again, after `pause_s`."""

    def __init__(self, request: bytes, pause_s: float) -> None:
        self.request = request
        self.pause_s = pause_s


class QueueCall:
    """The bytes of one call, and what its answer means.

    Attributes:
        address: where to connect to. wait_s: how long to wait for the job's end.
    """

    def __init__(self, route: Remote, call: Call, *, function: str, binder: Binder, own: str, key: str) -> None:
        """Raises CallCycle, ValidationError (an argument without a name), NotEncodable (naming the argument)."""
        self._around = around = Around.of_current(own)
        self.address = address_of(route, around.chain)
        self._binder = binder
        self._key = key
        self._looks = 0
        runpods = isinstance(self.address, Address) and is_runpod(self.address.host)
        named = input_of(call, function if runpods and not route.alone else "")
        self._body = b'{"input":%b}' % values.encode(named, JSON, name="input")
        self._prefix = "" if isinstance(self.address, str) else self.address.path
        self._verb = "/runsync" if runpods else f"/{quote(function, safe='')}/run_sync"

    @property
    def wait_s(self) -> float:
        return self._around.wait_s

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request."""
        head = (
            f"{self._head('POST', self._verb, EVENTS if stream else JSON)}"
            f"Content-Type: {JSON}\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        return head.encode("latin-1") + self._body

    def value(self, response: Response, body: bytes) -> Any:
        """The function's value, or a Pending. Raises what the function raised, as far as JSON tells."""
        document = self._document(response, body)
        if not isinstance(document, dict) or "status" not in document:
            return self._binder.convert_result(document)
        if document["status"] in WAITING and document.get("id"):
            return self._pending(str(document["id"]))
        if "output" not in document or document["status"] != "COMPLETED":
            raise failure_of(document)
        return self._binder.convert_result(document["output"])

    def items(self) -> "EventItems":
        """What reads a streamed answer."""
        return EventItems(self._binder, self.value)

    def _head(self, method: str, path: str, accept: str) -> str:
        host = "flash" if isinstance(self.address, str) else self.address.authority
        return (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n"
            f"{self._around.headers()}{bearer(self.address, self._key)}"
        )

    def _pending(self, id: str) -> Pending:
        first, factor, longest = _POLL_S
        self._looks += 1
        request = self._head("GET", f"/status/{quote(id, safe='')}", JSON) + "\r\n"
        return Pending(request.encode("latin-1"), min(longest, first * factor ** (self._looks - 1)))

    def _document(self, response: Response, body: bytes) -> Any:
        try:
            document = values.decode(body, JSON) if body else None
        except (MalformedRequest, ValidationError):
            raise foreign_failure(self.address, response, body) from None
        if response.status == 200:
            return document
        if response.status == 429:
            after = response.headers.get("retry-after", "")
            raise QueueFull(retry_after=float(after) if after.isdecimal() else 1.0)
        if response.status in MOVED or not isinstance(document, dict) or "error" not in document:
            raise foreign_failure(self.address, response, body)
        raise failure_of(document)


def input_of(call: Call, function: str = "") -> dict[str, Any]:
    """A call's arguments by name, with `method` for a class; `function` is named where the endpoint has several.

    Raises TypeError as a call would, ValidationError for arguments that have no name or that are a constructor's.
    """
    target: Any = call.declaration.target
    if call.init is not None and (call.init[0] or call.init[1]):
        raise ValidationError(
            f"{call.declaration.name} is called over HTTP, where its instance has no constructor arguments."
        )
    named: dict[str, Any] = {}
    if call.method is not None:
        target = getattr(target, call.method)
        named["method"] = call.method
    if function:
        named["function_name"] = function
    bound = _bind(target, call)
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValidationError(
                f"{call.declaration.name} is called over HTTP, where arguments go by name. Pass them as keywords."
            )
        elif not (call.method is not None and value is _SELF):
            named[name] = value
    return named


_SELF: Final = object()


def _bind(target: Any, call: Call) -> inspect.BoundArguments:
    signature = inspect.signature(target)
    if call.method is not None and inspect.isfunction(inspect.getattr_static(call.declaration.target, call.method)):
        return signature.bind(_SELF, *call.args, **call.kwargs)
    return signature.bind(*call.args, **call.kwargs)


def failure_of(document: dict[str, Any], *, main_module: str | None = None) -> BaseException:
    """The exception that a failed job's answer stands for: ours, RunPod's, or one a RunPod worker packed as text.

    `main_module`: what the program that runs here as `__main__` is called where the function ran.
    """
    error = document.get("error", document)  # the last event of a worker's own stream is the error itself
    told = error if isinstance(error, dict) else _packed(error)
    message = told.get("message") or told.get("error_message") or (error if isinstance(error, str) else None)
    kind = str(told.get("type") or document.get("error_type") or told.get("error_type") or "")
    code = str(told.get("code") or document.get("code") or "")
    info = failures.ErrorInfo(
        code=code if code in CODES else RemoteError.code,
        type=kind.removeprefix("<class '").removesuffix("'>") or "RuntimeError",
        message=str(message or f"the job ended {document.get('status', 'without saying how')}"),
        traceback=str(told.get("traceback") or told.get("error_traceback") or document.get("traceback") or ""),
        field=told.get("field") or document.get("field"),
    )
    info.module, _, info.qualname = info.type.rpartition(".")
    info.module = info.module or "builtins"
    return failures.restore(info, main_module=main_module)


def _packed(error: object) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(error) if isinstance(error, str) else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


class EventItems:
    """Turns an answer's events into items; an answer that is none is a list of them, or one."""

    def __init__(
        self,
        binder: Binder,
        value: Callable[[Response, bytes], Any],
        failure: Callable[[dict[str, Any]], BaseException] = failure_of,
    ) -> None:
        self._binder = binder
        self._value = value
        self._failure = failure
        self._events = EventReader()
        self._rest: list[bytes] = []
        self._ended = False

    def feed(self, response: Response, data: bytes) -> Iterator[Any]:
        """The items that are complete now. Raises the function's exception where it stands in the stream."""
        if response.content_type != EVENTS:
            self._rest.append(data)
            if response.complete:
                self._ended = True
                whole = self._value(response, b"".join(self._rest))
                if isinstance(whole, Pending):
                    raise EndpointUnreachable("The endpoint does not stream, and the job takes long. Call it whole.")
                yield from map(self._binder.convert_item, whole if isinstance(whole, list) else (whole,))
            return
        for name, text in self._events.feed(data):
            if name == "error":
                raise self._failure(msgspec.json.decode(text))
            if name == "end":
                self._ended = True
            elif not name:
                yield self._binder.convert_item(values.decode(text, JSON))

    def end(self) -> None:
        """Raises WorkerLost when the connection ended before the stream did."""
        if not self._ended:
            raise WorkerLost()
