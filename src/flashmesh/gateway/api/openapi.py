"""The OpenAPI 3.1 document of the control plane. Pure."""

import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Final

from flashmesh import __version__
from flashmesh.gateway.api.bodies import InvocationRequest, Policy, Replicas
from flashmesh.gateway.api.operations import Operation, Vocabulary
from flashmesh.gateway.api.schemas import component_schemas
from flashmesh.gateway.api.wishes import MAX_KEY_CHARACTERS, MAX_WAIT_MS, WAIT_MS
from flashmesh.gateway.functions.spec import FunctionSpec, Patch, ProjectPatch

_TEXT: Final = {"type": "string"}
_SOME: Final = {"type": "string", "minLength": 1}
_PARAMETERS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "name": ({"type": "string", "minLength": 1}, "A function's id, or its name while that is unique"),
    "endpoint": (_TEXT, "An endpoint's id, its resource name, its declared name, or a function of it"),
    "function": (_TEXT, "One of the endpoint's functions"),
    "executionId": (_TEXT, "An execution"),
    "id": (_TEXT, "A job: an execution, by RunPod's name"),
    "deploymentId": (_TEXT, "A deployment"),
    "file": (_TEXT, "The file"),
}
_QUERIES: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "function": (_SOME, "Only of this function"),
    "status": (
        {"type": "string", "enum": ["queued", "running", "success", "error", "timeout", "cancelled"]},
        "Only those that stand there",
    ),
    "after": (_SOME, "Continue behind this execution"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "How many"),
    "execution": (_SOME, "Only of this execution"),
    "endpoint": (_SOME, "Only of this endpoint"),
    "tail": ({"type": "integer", "minimum": 0, "maximum": 10_000, "default": 100}, "How many earlier lines"),
    "follow": ({"type": "string", "enum": ["0", "1"], "default": "0"}, "1: go on with lines as they come"),
    "app": (_SOME, "Of this app; X-Flash-App says the same"),
    "env": (_SOME, "Of this environment; X-Flash-Environment says the same"),
    "wait": ({"type": "integer", "minimum": WAIT_MS[0], "maximum": WAIT_MS[-1]}, "Milliseconds to wait"),
}
_HEADERS: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "Idempotency-Key": (
        {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[!-~]([ -~]*[!-~])?$"},
        "The same key with the same body means the same execution",
    ),
    "traceparent": (_TEXT, "W3C trace context, handed on"),
    "X-Trace-Id": (_TEXT, "Any trace id, handed on when there is no traceparent"),
    "X-Timeout-Ms": (
        {"type": "integer", "minimum": 1, "maximum": MAX_WAIT_MS},
        "Milliseconds to wait for the result; the call goes on after that, and may run as long as its function says",
    ),
    "X-Dispatch-Attempt": ({"type": "integer", "minimum": 1, "maximum": 999_999_999}, "The attempt that this answers"),
}
_EXECUTION_HEADER: Final = {"X-Execution-Id": {"schema": _TEXT, "description": "The execution"}}
_FULL_HEADERS: Final = {
    "Retry-After": {"schema": {"type": "string"}, "description": "Seconds"},
    "X-Queue-Reject-Reason": {
        "schema": {"type": "string", "enum": ["depth", "bytes"]},
        "description": "What is full",
    },
}
_AT_THE_DOOR: Final = {
    400: "This is not HTTP as it should be",
    408: "The request did not arrive in time",
    413: "The body is too large",
    401: "A token is needed",
    403: "The token, host or page is not allowed",
    503: "The server starts or stops",
}
"""Answers that may come before any route."""
_TAGS: Final = {
    "functions": "Functions, and calls of them.",
    "executions": "What was called, where it stands, what came of it.",
    "state": "Apps, environments, builds and manifests.",
    "deployments": "What serves where: plans, deployments, going back.",
    "queue": "The queue API that RunPod's clients speak.",
    "operations": "The server itself.",
}
_MEDIA: Final = ("application/octet-stream", "application/x-msgpack")


def document(operations: Iterable[Operation], more: Iterable[Vocabulary] = ()) -> dict[str, Any]:
    """The whole document. `more`: what operations of other parts refer to."""
    known = _together(more)
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, known)
    own = (InvocationRequest, Policy, FunctionSpec, Patch, ProjectPatch, Replicas)
    schemas = component_schemas(*own, *known.structs)
    schemas["FunctionPatch"] = {
        "anyOf": [{"$ref": "#/components/schemas/Patch"}, {"$ref": "#/components/schemas/ProjectPatch"}]
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "flash server", "version": __version__, "description": "Functions, queues and executions."},
        "paths": paths,
        "tags": [{"name": name, "description": text} for name, text in _TAGS.items()],
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _together(more: Iterable[Vocabulary]) -> Vocabulary:
    structs: tuple[type, ...] = ()
    parameters, queries, headers = dict(_PARAMETERS), dict(_QUERIES), dict(_HEADERS)
    for one in more:
        structs += one.structs
        parameters |= one.parameters
        queries |= one.queries
        headers |= one.headers
    return Vocabulary(structs=structs, parameters=parameters, queries=queries, headers=headers)


def _described(operation: Operation, known: Vocabulary) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "responses": {str(status): _response(operation, status) for status in sorted(operation.responses)},
    }
    for status, text in _AT_THE_DOOR.items():
        if operation.path not in ("/healthz", "/readyz"):
            made["responses"].setdefault(str(status), _json(text, _schema("Refusal")))
    parameters = [_parameter("path", name, known.parameters) for name in re.findall(r"\{(\w+)\}", operation.path)]
    parameters += [_parameter("query", name, known.queries) for name in operation.queries]
    parameters += [_parameter("header", name, known.headers) for name in operation.headers]
    if parameters:
        made["parameters"] = parameters
    if operation.body:
        made["requestBody"] = _request(operation)
    return made


def _parameter(place: str, name: str, known: Mapping[str, tuple[dict[str, Any], str]]) -> dict[str, Any]:
    schema, text = known[name]
    return {"name": name, "in": place, "required": place == "path", "schema": schema, "description": text}


def _request(operation: Operation) -> dict[str, Any]:
    if operation.body == "artifact":
        return {"required": True, "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}}}
    content: dict[str, Any] = {"application/json": {"schema": _schema(operation.body)}}
    if operation.body == "InvocationRequest":
        content["application/json"]["example"] = {"input": {"name": "value"}}
    elif operation.body == "any":
        content["application/json"]["schema"] = {
            "description": '`{"input": …, "webhook"?, "policy"?}`, or the function\'s own value',
        }
        content["application/json"]["example"] = {"input": {"name": "value"}}
    if operation.raw:
        content["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    return {"required": operation.body != "any", "content": content}


def _response(operation: Operation, status: int) -> dict[str, Any]:
    name = operation.responses[status]
    text = HTTPStatus(status).phrase if status != 508 else "Loop Detected"
    if name == "":
        return {"description": text}
    if "/" in name:
        return {"description": text, "content": {name: {"schema": _TEXT if name != "*/*" else {}}}}
    made = _json(text, _schema(name))
    if operation.raw and status == 200:
        for media in _MEDIA:
            made["content"][media] = {"schema": {"type": "string", "format": "binary"}}
    if operation.streams and status == 200:
        made["content"]["text/event-stream"] = {"schema": _TEXT}
    headers: dict[str, Any] = {}
    if "executionId" in operation.path or operation.raw:
        headers |= _EXECUTION_HEADER if status < 300 else {}
    if status == 429:
        headers |= _FULL_HEADERS
    if headers:
        made["headers"] = headers
    return made


def _schema(name: str) -> dict[str, Any]:
    if name == "any":
        return {}
    if name.startswith("["):
        return {"type": "array", "items": _schema(name.strip("[]"))}
    if "|" in name:
        return {"anyOf": [_schema(part) for part in name.split("|")]}
    return {"$ref": f"#/components/schemas/{name}"}


def _json(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
