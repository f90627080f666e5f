"""What a request's body says to the control plane, without building the value inside it. Pure.

The bytes go on to the function as they came: only JSON's syntax and the envelope's own fields are looked at here.
"""

import re
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import msgspec

from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway.api.failures import InvalidRequest
from flashmesh.wire.json_values import check_json

MAX_POLICY_MS: Final = 7 * 24 * 3600 * 1000
"""The longest limit of a job's policy: a week, as at RunPod."""
MAX_URL_CHARACTERS: Final = 2048
EMPTY_OBJECT: Final = b"{}"


class InvocationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `:invoke` and `:enqueue`. `input` may be anything, null too; `metadata` is stored and handed on."""

    input: msgspec.Raw
    metadata: dict[str, str] | None = None


class Policy(msgspec.Struct, forbid_unknown_fields=True):
    """What a job of the queue API asks for itself. Milliseconds."""

    executionTimeout: int | None = None  # noqa: N815 - RunPod's name
    """Its body may run for this long."""
    ttl: int | None = None
    """It is cancelled when it has not ended this long after it was accepted."""
    lowPriority: bool = False  # noqa: N815
    """It runs when no other job waits."""


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/run` and `/runsync`, when it is RunPod's envelope."""

    input: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    webhook: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    policy: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    s3Config: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET  # noqa: N815
    id: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Replicas(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT …/replicas`."""

    replicas: Annotated[int, msgspec.Meta(ge=0, le=1000)]


_invocation = msgspec.json.Decoder(InvocationRequest).decode
_envelope = msgspec.json.Decoder(Envelope).decode
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*?)`")
_MISSING: Final = re.compile(r"Object missing required field `(.*?)`")
_AT: Final = re.compile(r" - at `\$\.?(.*?)`$")


def read_invocation(body: bytes) -> InvocationRequest:
    """Raises InvalidRequest naming the field, MalformedRequest (not JSON), ValidationError (NaN)."""
    try:
        request = _invocation(body)
        if not body.isascii():
            str(body, "utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refused(body, error, 'Send an object such as {"input": {"name": "value"}}.') from error
    return request


def read_object(body: bytes, kind: Any) -> Any:
    """A body as the struct `kind`. Raises as `read_invocation`."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise refused(body, error, "Send an object as /openapi.json describes it.") from error


def refused(body: bytes, error: Exception, hint: str) -> FlashmeshError:
    """Why a body was not taken: its syntax, or the field that is wrong."""
    if not body.strip():
        return InvalidRequest(f"The body is empty. {hint}", details=("body: it is empty",))
    try:
        check_json(body)
    except FlashmeshError as wrong:
        return wrong
    text = str(error)
    unknown, missing, place = _UNKNOWN.search(text), _MISSING.search(text), _AT.search(text)
    where = place[1] if place else ""
    if unknown:
        field = f"{where}.{unknown[1]}" if where else unknown[1]
        message = f"`{field}` is not a field of this request. {hint}"
    elif missing:
        field = f"{where}.{missing[1]}" if where else missing[1]
        message = f"`{field}` is missing. {hint}"
    else:
        field = where or "body"
        message = f"`{field}` is wrong: {_AT.sub('', text)}. {hint}"
    return InvalidRequest(message, field=field)


class Job(msgspec.Struct):
    """What the queue API takes from a body before it hands it on."""

    webhook: str | None = None
    policy: Policy | None = None
    metadata: dict[str, Any] | None = None


_NOTHING: Final = Job()


def read_job(body: bytes) -> Job:
    """The envelope's own fields; a bare body has none. Raises InvalidRequest, MalformedRequest, ValidationError."""
    try:
        envelope = _envelope(body)
        if not body.isascii():
            str(body, "utf-8")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        check_json(body)
        return _NOTHING  # JSON, but no envelope: all of it is for the function
    unset = msgspec.UNSET
    if envelope.input is unset:
        return _NOTHING
    if envelope.webhook is unset and envelope.policy is unset and envelope.metadata is unset:
        return _NOTHING
    return Job(
        webhook=None if envelope.webhook is unset else _webhook(envelope.webhook),
        policy=None if envelope.policy is unset else _policy(envelope.policy),
        metadata=None if envelope.metadata is unset else _metadata(envelope.metadata),
    )


def _part(raw: msgspec.Raw, kind: Any, name: str) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _AT.search(text)
        field = f"{name}.{place[1]}" if place and place[1] else name
        unknown = _UNKNOWN.search(text)
        if unknown:
            field = f"{name}.{unknown[1]}"
        raise InvalidRequest(f"`{field}` is wrong: {_AT.sub('', text)}.", field=field) from error


def _webhook(raw: msgspec.Raw) -> str | None:
    url: str | None = _part(raw, str | None, "webhook")
    if not url:
        return None
    if len(url) > MAX_URL_CHARACTERS or not _is_address(url):
        raise InvalidRequest("`webhook` must be an http:// or https:// address without credentials.", field="webhook")
    return url


def _is_address(url: str) -> bool:
    """An http(s) URL with a host, a port in range, and nothing that would end a header line."""
    if not re.fullmatch(r"https?://[^\s/?#@\\]+(?:[/?#][^\s\x00-\x1f]*)?", url, re.ASCII):
        return False
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _policy(raw: msgspec.Raw) -> Policy | None:
    policy: Policy | None = _part(raw, Policy | None, "policy")
    if policy is None:
        return None
    for name in ("executionTimeout", "ttl"):
        value = getattr(policy, name)
        if value is not None and not 1 <= value <= MAX_POLICY_MS:
            raise InvalidRequest(
                f"`policy.{name}` is {value}; it must be milliseconds from 1 to {MAX_POLICY_MS}.",
                field=f"policy.{name}",
            )
    return policy


def _metadata(raw: msgspec.Raw) -> dict[str, Any] | None:
    found: dict[str, Any] | None = _part(raw, dict[str, Any] | None, "metadata")
    return found
