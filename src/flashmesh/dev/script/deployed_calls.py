"""One call of a deployed function over a server's queue API: its bytes, and what its answers mean. Pure.

Arguments go as between workers (MessagePack), so that arrays and dataclasses keep their types. Nothing is pickled:
this program has no key of the environment, and opens nothing from another machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import msgspec

from flashmesh.dev.script.road import Server
from flashmesh.functions.caller import Call
from flashmesh.functions.errors import EndpointUnreachable, QueueFull
from flashmesh.functions.jobs import WORDS
from flashmesh.wire import values
from flashmesh.wire.arguments import Binder, encode_arguments
from flashmesh.wire.frames import JSON, MSGPACK
from flashmesh.worker.calls.around import child_trace
from flashmesh.worker.calls.events import EVENTS
from flashmesh.worker.calls.exchange import Response
from flashmesh.worker.calls.queue_call import WAITING, EventItems, Pending, failure_of

WAIT_MS: Final = 300_000
"""How long one request waits for a job's end, the longest a server allows; then it is asked for."""
WAIT_S: Final = WAIT_MS / 1000 + 30
STATES: Final = {word: state for state, word in WORDS.items()}
"""The queue API's words to those of executions."""
_CODES: Final = {"CANCELLED": "CANCELLED", "TIMED_OUT": "TIMEOUT"}
_POLL_S: Final = (0.1, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Deployed:
    """A function as the server has it.

    Attributes:
        endpoint: the endpoint's id. function: the callable's, with the method's name for a class.
        resource: its name in the manifest. entry: of that resource.
    """

    endpoint: str
    function: str
    resource: str
    entry: Mapping[str, Any]

    def path(self, verb: str) -> str:
        return f"/v2/{quote(self.endpoint, safe='')}/{quote(self.function, safe='')}/{verb}"


class DeployedCall:
    """See the module."""

    def __init__(self, server: Server, deployed: Deployed, call: Call, binder: Binder, *, main_module: str) -> None:
        """`main_module`: what this program is called in the project. Raises NotEncodable, naming the argument."""
        self._main_module = main_module
        self._server = server
        self._deployed = deployed
        self.binder = binder
        self._body = encode_arguments(call.args, call.kwargs, init=call.init)
        self._looks = 0

    def request(self, verb: str, *, accept: str) -> bytes:
        headers = f"Content-Type: {MSGPACK}\r\nAccept: {accept}\r\ntraceparent: {child_trace('')}\r\n"
        return self._server.request("POST", self._deployed.path(verb), headers, self._body)

    def whole(self) -> bytes:
        """The request that waits for the value."""
        return self.request(f"runsync?wait={WAIT_MS}", accept=f"{MSGPACK}, {JSON};q=0.5")

    def streamed(self) -> bytes:
        """The request whose answer is the items as they come."""
        return self.request("runsync", accept=EVENTS)

    def accepted(self) -> bytes:
        """The request that has it run later."""
        return self.request("run", accept=JSON)

    def value(self, response: Response, body: bytes) -> Any:
        """The function's value, or a Pending. Raises what the function raised."""
        if response.status == 200 and response.content_type == MSGPACK:
            return self.binder.convert_result(values.decode(body, MSGPACK))
        document = self.document(response, body)
        if document.get("status") in WAITING:
            return self._pending(str(document["id"]))
        return self.outcome(document)

    def outcome(self, document: Mapping[str, Any]) -> Any:
        """The value of a job that is over. Raises what the function raised, Cancelled or TimedOut."""
        if document.get("status") != "COMPLETED":
            raise self.failure(document)
        return self.binder.convert_result(document.get("output"))

    def items(self) -> EventItems:
        return EventItems(self.binder, self.value, self.failure)

    def about(self, verb: str, id: str) -> bytes:
        """The request that asks about a job, or has it cancelled."""
        method = "POST" if verb == "cancel" else "GET"
        return self._server.request(method, self._deployed.path(f"{verb}/{quote(id, safe='')}"))

    def document(self, response: Response, body: bytes) -> dict[str, Any]:
        """An answer's JSON. Raises what a refusal stands for."""
        try:
            document = msgspec.json.decode(body)
        except msgspec.DecodeError:
            document = None
        if not isinstance(document, dict):
            text = " ".join(body[:300].decode("utf-8", "replace").split())
            raise EndpointUnreachable(f"{self._server.url} answered {response.status}: {text}. Is it a `flash server`?")
        if response.status == 429:
            after = response.headers.get("retry-after", "")
            message = document.get("error")
            raise QueueFull(
                message if isinstance(message, str) else None, retry_after=float(after) if after.isdecimal() else 1.0
            )
        if response.status >= 400:
            raise self.failure(document)
        return document

    def failure(self, document: Mapping[str, Any]) -> BaseException:
        """What a refusal or a job stands for that is over without a value."""
        code = document.get("code") or _CODES.get(str(document.get("status")))
        told = {**document, "code": code} if code else dict(document)
        return failure_of(told, main_module=self._main_module)

    def _pending(self, id: str) -> Pending:
        self._looks += 1
        return Pending(self.about("status", id), pause_s(self._looks))


def pause_s(looks: int) -> float:
    """Seconds between two looks at a job; `looks`: how many there were, from 1."""
    first, factor, longest = _POLL_S
    return min(longest, first * factor ** min(looks - 1, 20))
