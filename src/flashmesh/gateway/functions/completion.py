"""How an external function that answered 202 has ended: the InvocationResult it sends to `:complete`. Pure."""

import msgspec

from flashmesh.functions.errors import ExternalError
from flashmesh.gateway.functions.external.answers import message_of
from flashmesh.gateway.functions.spec import parse_body


class CompletionError(msgspec.Struct):
    code: str | None = None
    message: str | None = None


class InvocationResult(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /v1/internal/executions/{id}:complete`."""

    success: bool
    output: msgspec.Raw = msgspec.Raw(b"null")
    error: CompletionError | None = None


def outcome_of(body: bytes) -> bytes | ExternalError:
    """The output's JSON as it came, or the failure. Raises MalformedRequest, ValidationError naming the field."""
    result = parse_body(body, InvocationResult)
    if result.success:
        return bytes(result.output)
    told = msgspec.to_builtins(result.error) if result.error is not None else "it said that it failed, and not why"
    return ExternalError(message_of(told))
