"""Every route of the faces, once: the application serves what is here, and the OpenAPI document describes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

TEXT: Final = {"type": "string"}
Responses = Mapping[int, str]
"""Status → name of the schema of its body; "" = no body; "text/…" = that media type."""

_REFUSED: Final = {400: "Refusal", 404: "Refusal", 409: "Refusal"}
_BODY: Final = {408: "Refusal", 413: "Refusal", 415: "Refusal", 422: "Refusal"}
_EITHER: Final = "JobRefusal|Refusal"
"""What the server itself refuses, before a request has reached its route, has one shape on every face."""
_JOB_REFUSED: Final = {400: _EITHER, 404: "JobRefusal", 409: "JobRefusal"}
_JOB_BODY: Final = {408: _EITHER, 413: _EITHER, 415: "JobRefusal", 422: "JobRefusal"}
_FULL: Final = {429: "Refusal", 503: "Refusal"}
_JOB_FULL: Final = {429: "JobRefusal", 503: _EITHER}
_CALL_HEADERS: Final = ("Idempotency-Key", "traceparent", "X-Trace-Id")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    id: str
    method: str
    path: str
    tag: str
    summary: str
    responses: Responses
    body: str = ""
    """Schema of the request's body; "any" = whatever the function takes."""
    queries: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    streams: bool = False
    """With `Accept: text/event-stream` it answers with events."""
    raw: bool = False
    """Bodies and results may be bytes or MessagePack as well."""
    face: str = "functions"
    streams_body: bool = False
    """Its body is handed on as it comes; whoever serves it bounds it."""


Described = Mapping[str, tuple[dict[str, Any], str]]
"""Parameters by name: schema and what they mean."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the operations of another part refer to: schemas of bodies, and parameters."""

    structs: tuple[type, ...] = ()
    parameters: Described = dataclasses.field(default_factory=dict)
    queries: Described = dataclasses.field(default_factory=dict)
    headers: Described = dataclasses.field(default_factory=dict)


def _queue(verb: str, **fields: Any) -> tuple[Operation, Operation]:
    """A verb of the queue API: of an endpoint, and of one function of it."""
    tail = verb + fields.pop("tail", "")
    name = f"queue_{verb.replace('-', '_')}"
    shared = {"tag": "queue", "face": "queue", **fields}
    return (
        Operation(id=name, path=f"/v2/{{endpoint}}/{tail}", **shared),
        Operation(id=f"{name}_of", path=f"/v2/{{endpoint}}/{{function}}/{tail}", **shared),
    )


OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        id="invoke_function",
        method="POST",
        path="/v1/functions/{name}:invoke",
        tag="functions",
        summary="Call a function and wait for its result; when the wait is over first, 408, and the call goes on",
        body="InvocationRequest",
        headers=(*_CALL_HEADERS, "X-Timeout-Ms"),
        streams=True,
        raw=True,
        responses={
            200: "InvocationResponse",
            **_REFUSED,
            **_BODY,
            **_FULL,
            408: "InvocationResponse",
            409: "InvocationResponse|Refusal",
            410: "Refusal",
            413: "InvocationResponse|Refusal",
            422: "InvocationResponse|Refusal",
            500: "InvocationResponse|Refusal",
            502: "InvocationResponse",
            503: "InvocationResponse|Refusal",
            504: "InvocationResponse",
            508: "InvocationResponse",
        },
    ),
    Operation(
        id="enqueue_function",
        method="POST",
        path="/v1/functions/{name}:enqueue",
        tag="functions",
        summary="Call a function later: answered once the call is stored",
        body="InvocationRequest",
        headers=_CALL_HEADERS,
        raw=True,
        responses={202: "EnqueueResponse", **_REFUSED, **_BODY, **_FULL},
    ),
    Operation(
        id="list_functions",
        method="GET",
        path="/v1/functions",
        tag="functions",
        summary="All functions",
        responses={200: "[FunctionResponse]"},
    ),
    Operation(
        id="create_function",
        method="POST",
        path="/v1/functions",
        tag="functions",
        summary="Serve a function that is not part of a project: an HTTP address or a command",
        body="FunctionSpec",
        responses={201: "FunctionResponse", **_REFUSED, **_BODY, 403: "Refusal", 503: "Refusal"},
    ),
    Operation(
        id="get_function",
        method="GET",
        path="/v1/functions/{name}",
        tag="functions",
        summary="One function",
        responses={200: "FunctionResponse", 404: "Refusal", 409: "Refusal"},
    ),
    Operation(
        id="patch_function",
        method="PATCH",
        path="/v1/functions/{name}",
        tag="functions",
        summary="Change limits of a function that is served",
        body="FunctionPatch",
        responses={200: "FunctionResponse", **_REFUSED, **_BODY, 403: "Refusal", 503: "Refusal"},
    ),
    Operation(
        id="delete_function",
        method="DELETE",
        path="/v1/functions/{name}",
        tag="functions",
        summary="Serve it no longer: what waits fails, what runs finishes",
        responses={204: "", **_REFUSED, 403: "Refusal", 503: "Refusal"},
    ),
    Operation(
        id="get_replicas",
        method="GET",
        path="/v1/functions/{name}/replicas",
        tag="functions",
        summary="How many workers are wanted and how many are ready",
        responses={200: "any", **_REFUSED, 503: "Refusal"},
    ),
    Operation(
        id="set_replicas",
        method="PUT",
        path="/v1/functions/{name}/replicas",
        tag="functions",
        summary="Keep that many workers",
        body="Replicas",
        responses={200: "any", **_REFUSED, **_BODY, 503: "Refusal"},
    ),
    Operation(
        id="retry_execution",
        method="POST",
        path="/v1/executions/{executionId}:retry",
        tag="executions",
        summary="Run an ended execution's request again, as a new execution that names the old one",
        responses={202: "EnqueueResponse", **_REFUSED, **_FULL},
    ),
    Operation(
        id="list_executions",
        method="GET",
        path="/v1/executions",
        tag="executions",
        summary="Executions, newest first",
        queries=("function", "status", "after", "limit", "app", "env"),
        responses={200: "ExecutionList", **_REFUSED},
    ),
    Operation(
        id="get_execution",
        method="GET",
        path="/v1/executions/{executionId}",
        tag="executions",
        summary="One execution with its output; 200 however it ended",
        responses={200: "ExecutionStatus", 404: "Refusal", 410: "Refusal"},
    ),
    Operation(
        id="cancel_execution",
        method="DELETE",
        path="/v1/executions/{executionId}",
        tag="executions",
        summary="Stop an execution; one that has ended stays as it is",
        responses={200: "ExecutionStatus", 404: "Refusal"},
    ),
    Operation(
        id="complete_execution",
        method="POST",
        path="/v1/internal/executions/{executionId}:complete",
        tag="executions",
        summary="How an external function that answered 202 has ended; of attempts only the current one counts",
        body="InvocationResult",
        headers=("X-Dispatch-Attempt",),
        responses={204: "", **_REFUSED, **_BODY},
    ),
    Operation(
        id="follow_logs",
        method="GET",
        path="/v1/logs",
        tag="executions",
        summary="What functions printed, as server-sent events",
        queries=("function", "execution", "endpoint", "tail", "follow", "app", "env"),
        responses={200: "text/event-stream", 400: "Refusal", 404: "Refusal", 409: "Refusal"},
    ),
    *_queue(
        "run",
        method="POST",
        summary="Accept a job",
        body="any",
        headers=_CALL_HEADERS,
        raw=True,
        responses={200: "Accepted", **_JOB_REFUSED, **_JOB_BODY, **_JOB_FULL},
    ),
    *(
        operation
        for verb in ("runsync", "run_sync")
        for operation in _queue(
            verb,
            method="POST",
            summary="Run a job and wait for it; a failed one is 200 too",
            body="any",
            queries=("wait",),
            headers=(*_CALL_HEADERS, "X-Timeout-Ms"),
            streams=True,
            raw=True,
            responses={200: "JobStatus", **_JOB_REFUSED, **_JOB_BODY, **_JOB_FULL, 410: "JobRefusal"},
        )
    ),
    *(
        dataclasses.replace(operation, id=f"{operation.id}{suffix}", method=method)
        for method, suffix in (("GET", ""), ("POST", "_by_post"))
        for operation in _queue(
            "status",
            tail="/{id}",
            method="GET",
            summary="A job with its output",
            responses={200: "JobStatus", 404: "JobRefusal", 409: "JobRefusal", 410: "JobRefusal"},
        )
    ),
    *(
        dataclasses.replace(operation, id=f"{operation.id}{suffix}", method=method)
        for method, suffix in (("GET", ""), ("POST", "_by_post"))
        for operation in _queue(
            "stream",
            tail="/{id}",
            method="GET",
            summary="What a job has yielded since the last time, each item once",
            queries=("wait",),
            streams=True,
            responses={200: "JobStream", **_JOB_REFUSED, 410: "JobRefusal"},
        )
    ),
    *_queue(
        "cancel",
        tail="/{id}",
        method="POST",
        summary="Stop a job",
        responses={200: "JobStatus", 404: "JobRefusal", 409: "JobRefusal"},
    ),
    *_queue(
        "retry",
        tail="/{id}",
        method="POST",
        summary="Run a job's request again, as a new job that names the old one",
        responses={200: "Accepted", **_JOB_REFUSED, **_JOB_FULL},
    ),
    *_queue(
        "purge-queue",
        method="POST",
        summary="Cancel every job that waits",
        responses={200: "Purged", 404: "JobRefusal", 409: "JobRefusal"},
    ),
    *_queue(
        "health",
        method="GET",
        summary="How many jobs and workers are in which state",
        responses={200: "EndpointHealth", 404: "JobRefusal", 409: "JobRefusal"},
    ),
    Operation(
        id="get_root",
        method="GET",
        path="/",
        tag="operations",
        summary="What this is",
        responses={200: "Greeting"},
    ),
    Operation(
        id="get_healthz",
        method="GET",
        path="/healthz",
        tag="operations",
        summary="Whether the server is up",
        responses={200: "Health"},
    ),
    Operation(
        id="get_readyz",
        method="GET",
        path="/readyz",
        tag="operations",
        summary="Whether the server can serve, and which endpoints cannot run calls",
        responses={200: "Readiness", 503: "Readiness|Refusal"},
    ),
    Operation(
        id="get_openapi",
        method="GET",
        path="/openapi.json",
        tag="operations",
        summary="This document",
        responses={200: "any"},
    ),
    Operation(
        id="get_docs",
        method="GET",
        path="/docs",
        tag="operations",
        summary="This document as a page",
        responses={200: "text/html"},
    ),
    Operation(
        id="get_docs_asset",
        method="GET",
        path="/docs/assets/{file}",
        tag="operations",
        summary="A file of that page",
        responses={200: "*/*", 404: "Refusal"},
    ),
)
METRICS: Final = Operation(
    id="get_metrics",
    method="GET",
    path="/metrics",
    tag="operations",
    summary="Counters and histograms, as Prometheus reads them",
    responses={200: "text/plain"},
)
