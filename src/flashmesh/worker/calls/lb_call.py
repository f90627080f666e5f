"""One call of a load-balanced function from another resource: plain HTTP to its declared method and path."""

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode

import msgspec

from flashmesh.functions.caller import Call
from flashmesh.functions.errors import QueueFull, RemoteError, ValidationError
from flashmesh.routing.route import Remote
from flashmesh.wire import values
from flashmesh.wire.arguments import Binder
from flashmesh.wire.frames import JSON
from flashmesh.worker.calls.around import Around, bearer
from flashmesh.worker.calls.events import EVENTS, EventReader
from flashmesh.worker.calls.exchange import Response
from flashmesh.worker.calls.peer_call import Moved, address_of
from flashmesh.worker.calls.queue_call import failure_of as failed_job

_BODILESS: Final = frozenset({"GET", "DELETE", "HEAD", "OPTIONS"})
_LINES: Final = "application/x-ndjson"
_NO_ROUTE: Final = "ROUTE_NOT_FOUND"
"""What an endpoint of ours answers where no route of it is: certainly nothing ran."""
_STREAM: Final = f"{EVENTS}, */*;q=0.5"
"""Events keep items apart: pieces of text may be cut anywhere on their way."""


class LbCall:
    """The bytes of one call, and what its answer means.

    The signature says where each argument goes: into the path where the path names it, into the query where the verb
    has no body, else into a JSON object. The only argument of a bodied verb that is an object itself is the body.
    """

    def __init__(self, route: Remote, call: Call, *, binder: Binder, own: str, key: str) -> None:
        """`key` is shown to an endpoint over TCP; empty: none.

        Raises ValidationError when an argument has no name to go by, NotEncodable, CallCycle.
        """
        self._around = around = Around.of_current(own)
        self.address = where = address_of(route, around.chain)
        self._binder = binder
        self._host = route.address.authority if route.address is not None else "localhost"
        self._method = route.http_method or "POST"
        self._key = key
        path, rest = fill_path(route.http_path or "/", named_arguments(call))
        self._path = path if isinstance(where, str) else where.path + path
        self._body = b""
        if self._method in _BODILESS:
            if rest:
                self._path += "?" + urlencode(_as_text(rest), doseq=True)
        elif rest:
            self._body = values.encode(_body_of(call, rest), JSON)

    @property
    def wait_s(self) -> float:
        return self._around.wait_s

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request."""
        body = f"Content-Type: {JSON}\r\nContent-Length: {len(self._body)}\r\n"
        close = "Connection: close\r\n" if isinstance(self.address, str) else ""
        head = (
            f"{self._method} {self._path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Accept: {_STREAM if stream else '*/*'}\r\n"
            f"{'' if self._method in _BODILESS else body}{bearer(self.address, self._key)}"
            f"{self._around.headers()}{close}\r\n"
        )
        return head.encode("latin-1") + self._body

    def value(self, response: Response, body: bytes) -> Any:
        """The answer as a value: JSON decoded, text as str, anything else as bytes. Raises for a status from 400 on."""
        if response.status >= 400:
            raise failure_of(response, body)
        if response.content_type == JSON:
            return self._binder.convert_result(values.decode(body, JSON))
        if response.content_type.startswith("text/"):
            return body.decode("utf-8", "replace")
        return body or None

    def items(self) -> "LineReader":
        """What reads a streamed answer."""
        return LineReader(failure_of, self._binder.convert_item)


class RouteFailed(RemoteError):
    """A route answered with an error. `http_status`: which."""

    def __init__(self, message: str, http_status: int) -> None:
        super().__init__(message, type_name="HTTPException")
        self.http_status = http_status


class LineReader:
    """The items of a streamed answer as they come: of events and of lines of JSON as values, else text, else bytes."""

    def __init__(self, failure: Callable[[Response, bytes], BaseException], convert: Callable[[Any], Any]) -> None:
        self._failure = failure
        self._convert = convert
        self._refusal: list[bytes] = []
        self._events = EventReader()
        self._line = b""

    def feed(self, response: Response, data: bytes) -> Iterator[Any]:
        if response.status >= 400:
            self._refusal.append(data)
            if response.complete:
                raise self._failure(response, b"".join(self._refusal))
        elif response.content_type == EVENTS:
            for _, text in self._events.feed(data):
                yield self._convert(values.decode(text, JSON))
        elif response.content_type == _LINES:
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                yield self._convert(values.decode(line, JSON))
        elif data:
            yield data.decode("utf-8", "replace") if response.content_type.startswith("text/") else data

    def end(self) -> None:
        """The connection's end is the stream's."""


def named_arguments(call: Call) -> dict[str, Any]:
    """The call's arguments by parameter name. Raises TypeError as a call would, ValidationError for a nameless one."""
    bound = inspect.signature(call.declaration.target).bind(*call.args, **call.kwargs)
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValidationError(
                f"{call.declaration.name} is called over HTTP, where arguments go by name. Pass them as keywords."
            )
        else:
            named[name] = value
    return named


def fill_path(path: str, arguments: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """`/items/{n}` with `n` put in, percent-encoded, and the arguments that are left. `{x:path}` keeps slashes."""
    rest = dict(arguments)
    filled = []
    for part in path.split("/"):
        if part.startswith("{") and part.endswith("}"):
            name, _, kind = part[1:-1].partition(":")
            if name not in rest:
                raise ValidationError(f"The path {path} needs {name!r}. Pass it.", field=name)
            filled.append(quote(str(rest.pop(name)), safe="/" if kind == "path" else ""))
        else:
            filled.append(quote(part, safe="%:@!$&'()*+,;="))
    return "/".join(filled), rest


def failure_of(response: Response, body: bytes) -> BaseException:
    """The exception an HTTP error stands for."""
    text = body[:2000].decode("utf-8", "replace")
    if response.status == 429:
        after = response.headers.get("retry-after", "")
        return QueueFull(retry_after=float(after) if after.isdecimal() else 1.0)
    try:
        told = msgspec.json.decode(body)
    except msgspec.DecodeError:
        told = None
    if isinstance(told, dict) and told.get("code") == _NO_ROUTE:
        return Moved(f"{told.get('error')} `flash deploy` brings callers and callees to one build.")
    if isinstance(told, dict) and told.get("error_type"):
        return failed_job(told)
    detail = told.get("detail") or told.get("error") or text if isinstance(told, dict) else text
    if response.status == 422:
        return ValidationError(f"The route refused the arguments: {detail}")
    return RouteFailed(f"The route answered {response.status}: {detail}", response.status)


def _body_of(call: Call, rest: dict[str, Any]) -> Any:
    """FastAPI's rule: a single model parameter is the body itself, several parameters are an object."""
    if len(rest) == 1:
        (value,) = rest.values()
        if _is_model(value):
            return value
    return rest


def _is_model(value: Any) -> bool:
    return hasattr(type(value), "model_fields") or hasattr(type(value), "__dataclass_fields__")


def _as_text(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: _query_value(value) for name, value in arguments.items() if value is not None}


def _query_value(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | set):
        return [_query_value(one) for one in value]
    return value if isinstance(value, str | int | float) else os.fsdecode(values.encode(value, JSON)).strip('"')
