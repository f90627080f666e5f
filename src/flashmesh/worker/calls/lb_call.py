"""One call of a load-balanced function from another resource: plain HTTP to its declared method and path."""

import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from flashmesh.functions.caller import Call
from flashmesh.functions.errors import QueueFull, RemoteError, ValidationError
from flashmesh.routing.route import Remote
from flashmesh.wire import values
from flashmesh.wire.arguments import Binder
from flashmesh.wire.frames import JSON
from flashmesh.worker.calls.exchange import PEER_WAIT_S, Response
from flashmesh.worker.calls.peer_call import child_trace
from flashmesh.worker.invocation import CURRENT

_BODILESS: Final = frozenset({"GET", "DELETE", "HEAD", "OPTIONS"})


class LbCall:
    """The bytes of one call, and what its answer means.

    The signature says where each argument goes: into the path where the path names it, into the query where the verb
    has no body, else into a JSON object. The only argument of a bodied verb that is an object itself is the body.
    """

    def __init__(self, route: Remote, call: Call, *, binder: Binder, token: str) -> None:
        """Raises ValidationError when an argument has no name to go by, NotEncodable."""
        parts = urlsplit(route.url)
        self.address = f"{parts.scheme}://{parts.netloc}"
        self._binder = binder
        self._host = parts.netloc
        self._method = route.http_method or "POST"
        self._token = token
        current = CURRENT.get()
        self._trace = child_trace(current.trace if current is not None else "")
        self._deadline_ms = current.remaining_ms() if current is not None else 0
        self._path, rest = fill_path(parts.path, named_arguments(call))
        self._body = b""
        if self._method in _BODILESS:
            if rest:
                self._path += "?" + urlencode(_as_text(rest), doseq=True)
        elif rest:
            self._body = values.encode(_body_of(call, rest), JSON)

    @property
    def wait_s(self) -> float:
        return min(PEER_WAIT_S, self._deadline_ms / 1000) if self._deadline_ms else PEER_WAIT_S

    def request(self, *, stream: bool) -> bytes:
        """The whole HTTP request."""
        body = f"Content-Type: {JSON}\r\nContent-Length: {len(self._body)}\r\n"
        token = f"Authorization: Bearer {self._token}\r\n" if self._token else ""
        head = (
            f"{self._method} {self._path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: */*\r\n"
            f"{'' if self._method in _BODILESS else body}{token}traceparent: {self._trace}\r\nConnection: close\r\n\r\n"
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
        return LineReader(failure_of)


class LineReader:
    """The pieces of a streamed answer as they come: text as str, anything else as bytes."""

    def __init__(self, failure: Callable[[Response, bytes], BaseException]) -> None:
        self._failure = failure
        self._refusal: list[bytes] = []

    def feed(self, response: Response, data: bytes) -> Iterator[Any]:
        if response.status >= 400:
            self._refusal.append(data)
            if response.complete:
                raise self._failure(response, b"".join(self._refusal))
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
    detail = told.get("detail") or told.get("error") or text if isinstance(told, dict) else text
    if response.status == 422:
        return ValidationError(f"The route refused the arguments: {detail}")
    return RemoteError(f"The route answered {response.status}: {detail}", type_name="HTTPException")


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
