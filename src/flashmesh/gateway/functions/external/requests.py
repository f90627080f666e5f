"""What a function is sent: the InvocationRequest and its headers. Pure."""

import os
import re
from typing import Any, Final

import msgspec

from flashmesh.functions.errors import FlashmeshError, ValidationError
from flashmesh.gateway.functions.external.addresses import Target
from flashmesh.wire import json_values, msgpack_values
from flashmesh.wire.frames import BINARY, JSON, MSGPACK, Invoke

_PLAIN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_TRACE_ID: Final = re.compile(r"[0-9a-f]{32}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class _Request(msgspec.Struct):
    input: msgspec.Raw


_has_input = msgspec.json.Decoder(_Request)


def request_body(frame: Invoke) -> tuple[str, bytes]:
    """(media type, body). An InvocationRequest passes as it came; other JSON becomes its `input`, bytes stay bytes.

    Raises ValidationError for arguments that JSON cannot hold.
    """
    payload = frame.payload
    if frame.content_type == JSON:
        if payload.startswith(b'{"input":'):
            return JSON, payload
        return JSON, payload if _is_request(payload) else _wrapped(payload or b"null", frame.meta)
    if frame.content_type == MSGPACK:
        return JSON, _wrapped(_arguments(payload), frame.meta)
    return frame.content_type or BINARY, payload


def _is_request(payload: bytes) -> bool:
    try:
        _has_input.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return True


def _wrapped(value: bytes, meta: Any) -> bytes:
    metadata = meta.get("metadata")
    if not metadata:
        return b'{"input":' + value + b"}"
    return b'{"input":' + value + b',"metadata":' + msgspec.json.encode(metadata) + b"}"


def _arguments(payload: bytes) -> bytes:
    """What a Python caller gave: its keyword arguments as an object, else its one argument, else the list of them."""
    try:
        args, kwargs, _ = msgpack_values.decode(payload)
        return json_values.encode(kwargs if kwargs and not args else args[0] if len(args) == 1 else list(args) or None)
    except (FlashmeshError, ValueError, TypeError) as error:
        raise ValidationError(f"the arguments cannot be sent as JSON: {error}", field="input") from error


class Head:
    """The request's head for one address; what stays the same is made once."""

    def __init__(self, target: Target, *, callback_url: str | None) -> None:
        lines = [f"POST {target.path} HTTP/1.1", f"host: {target.authority}", "user-agent: flashmesh"]
        if callback_url:
            lines.append(f"x-callback-url: {callback_url}")
        self._fixed = "\r\n".join(lines)

    def of(self, frame: Invoke, content_type: str, size: int) -> bytes:
        meta = frame.meta
        text = (
            f"{self._fixed}\r\nx-execution-id: {frame.execution}\r\nx-dispatch-attempt: {frame.attempt}\r\n"
            f"content-type: {content_type}\r\ncontent-length: {size}\r\n"
        )
        if frame.deadline_ms:
            text += f"x-timeout-ms: {frame.deadline_ms}\r\n"
        if meta:
            trace, parent = trace_headers(meta)
            if trace:
                text += f"x-trace-id: {trace}\r\n"
            if parent:
                text += f"traceparent: {parent}\r\n"
            key = meta.get("idempotency_key")
            if key and _PLAIN.fullmatch(key):
                text += f"idempotency-key: {key}\r\n"
        return f"{text}\r\n".encode("latin-1")


def trace_headers(meta: Any) -> tuple[str, str]:
    """(X-Trace-Id, traceparent) of a call; empty where there is none to send.

    A trace given as a W3C traceparent, or as its 32-digit id, goes on as both, under a span of our own.
    """
    given = str(meta.get("traceparent") or meta.get("trace") or "")
    if not given or not _PLAIN.fullmatch(given):
        return "", ""
    found = _TRACEPARENT.fullmatch(given)
    trace = found.group(1) if found else given
    parent = f"00-{trace}-{os.urandom(8).hex()}-{given[-2:] if found else '01'}" if _TRACE_ID.fullmatch(trace) else ""
    own = str(meta.get("trace") or "")
    return (own if own and not _TRACEPARENT.fullmatch(own) and _PLAIN.fullmatch(own) else trace), parent
