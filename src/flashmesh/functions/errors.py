"""Every error the product raises, split by who must act. A user function's own exception travels as itself.

Each class carries `code`, the word that stands for it on the wire, in records and in HTTP bodies, and
`status`, the HTTP status our own faces answer with.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the name type checkers know; importing `typing` would double the cost of `import flashmesh`
if TYPE_CHECKING:
    from typing import ClassVar


class FlashmeshError(Exception):
    """Something went wrong in flashmesh."""

    code: ClassVar[str] = "INTERNAL"
    status: ClassVar[int] = 500

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or type(self).__name__).strip())


class DeclarationError(FlashmeshError, ValueError):
    """A decorator or resource was given values that cannot work together."""

    code = "DECLARATION"
    status = 500


class ValidationError(FlashmeshError, ValueError):
    """The arguments do not fit the function's signature."""

    code = "VALIDATION_ERROR"
    status = 422

    def __init__(self, message: str | None = None, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class MalformedRequest(FlashmeshError, ValueError):
    """The body is not JSON. Send an object such as {"input": {"name": "value"}}."""

    code = "MALFORMED_REQUEST"
    status = 400


class FunctionNotFound(FlashmeshError, LookupError):
    """No function of that name is served here. `flash status` lists what is."""

    code = "FUNCTION_NOT_FOUND"
    status = 404


class AmbiguousFunction(FlashmeshError, LookupError):
    """Several functions have that name. Use one of the full ids."""

    code = "AMBIGUOUS_FUNCTION"
    status = 409


class FunctionExists(FlashmeshError):
    """A function of that name is served already. Delete it first, or change what may be changed with PATCH."""

    code = "FUNCTION_EXISTS"
    status = 409


class FunctionRemoved(FlashmeshError):
    """The function was removed before the call ran."""

    code = "FUNCTION_REMOVED"
    status = 410


class CommandsNotAllowed(FlashmeshError):
    """Functions that start a command on this machine are off. Start the server with `--allow-commands`."""

    code = "COMMANDS_NOT_ALLOWED"
    status = 403


class ExternalError(FlashmeshError):
    """An external function answered with an error, or with something that cannot be understood."""

    code = "EXTERNAL_ERROR"
    status = 502


class ExternalBusy(FlashmeshError):
    """An external function cannot take the call now (429 or 503). Try again after `retry_after` seconds."""

    code = "EXTERNAL_BUSY"
    status = 503

    def __init__(self, message: str | None = None, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ExecutionNotFound(FlashmeshError, LookupError):
    """No execution with that id is known; it may be too old to be kept."""

    code = "EXECUTION_NOT_FOUND"
    status = 404


class IdempotencyConflict(FlashmeshError):
    """This idempotency key was used before with another body. Send the first body again, or use a new key."""

    code = "IDEMPOTENCY_CONFLICT"
    status = 409


class DuplicateExecution(FlashmeshError):
    """An execution with this id exists already. Make a new id for every call."""

    code = "DUPLICATE_EXECUTION"
    status = 409


class ResultEvicted(FlashmeshError):
    """The result of this execution was dropped to make room. Call the function again."""

    code = "RESULT_EVICTED"
    status = 410


class ItemsGone(FlashmeshError):
    """These items were handed out before and are not kept. Continue after the last one you received."""

    code = "ITEMS_GONE"
    status = 410


class QueueFull(FlashmeshError):
    """The queue of this function is full. Try again after `retry_after` seconds, or raise `queue_size`.

    Attributes:
        reason: what is full: `depth` (calls) or `bytes`.
    """

    code = "QUEUE_FULL"
    status = 429

    def __init__(self, message: str | None = None, *, retry_after: float = 1.0, reason: str = "depth") -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.reason = reason


class ImportFailed(FlashmeshError):
    """The file that holds this function could not be imported."""

    code = "IMPORT_FAILED"
    status = 503


class EnvironmentFailed(FlashmeshError):
    """The packages this function declares could not be installed."""

    code = "ENVIRONMENT_FAILED"
    status = 503


class EndpointUnavailable(FlashmeshError):
    """The endpoint could not be started."""

    code = "ENDPOINT_UNAVAILABLE"
    status = 503


class EndpointUnresolved(FlashmeshError):
    """No address is known for this endpoint. `flash status` shows what is up."""

    code = "ENDPOINT_UNRESOLVED"
    status = 503


class EndpointUnreachable(FlashmeshError):
    """The endpoint's address does not answer."""

    code = "ENDPOINT_UNREACHABLE"
    status = 503


class CallCycle(FlashmeshError):
    """The call came back to an endpoint that is waiting for it and cannot take one more."""

    code = "CALL_CYCLE"
    status = 508


class WorkerLost(FlashmeshError):
    """The worker died before it answered. The next call gets a fresh one; add `retries=` to have this call repeated."""

    code = "WORKER_LOST"
    status = 500


class TimedOut(FlashmeshError, TimeoutError):
    """The function ran longer than its limit (`execution_timeout_ms`) and was stopped."""

    code = "TIMEOUT"
    status = 504


class WaitTimedOut(FlashmeshError, TimeoutError):
    """The wait ended; the execution goes on."""

    code = "WAIT_TIMEOUT"
    status = 408


class Cancelled(FlashmeshError):
    """The execution was cancelled."""

    code = "CANCELLED"
    status = 409


class NotEncodable(FlashmeshError, TypeError):
    """A value cannot be sent to another process."""

    code = "NOT_ENCODABLE"
    status = 500


class UntrustedPayload(FlashmeshError):
    """A signed payload does not carry a valid signature, so it was not opened."""

    code = "UNTRUSTED_PAYLOAD"
    status = 403


class PayloadTooLarge(FlashmeshError, ValueError):
    """The body or value is larger than the limit. Send less, or raise FLASH_MAX_BODY_BYTES."""

    code = "PAYLOAD_TOO_LARGE"
    status = 413


class LinkProtocolError(FlashmeshError):
    """The other end of a link sent something that is not a frame. Both ends must run the same version of flashmesh."""

    code = "LINK_PROTOCOL"
    status = 502


class LinkLost(FlashmeshError, ConnectionError):
    """The process that runs this session is gone. Start it again with `flash run`."""

    code = "LINK_LOST"
    status = 503


class RemoteError(FlashmeshError):
    """An exception of a type that this process does not know was raised by the function.

    Attributes:
        type_name: `module.qualname` of the original exception.
        remote_traceback: its traceback, as text.
    """

    code = "USER_ERROR"
    status = 500

    def __init__(self, message: str | None = None, *, type_name: str = "", remote_traceback: str = "") -> None:
        super().__init__(message)
        self.type_name = type_name
        self.remote_traceback = remote_traceback


class RequestFailed(FlashmeshError):
    """The endpoint answered an HTTP request with an error.

    Attributes:
        status_code: the HTTP status it answered with.
        body: the beginning of what it said, as text.
    """

    code = "REQUEST_FAILED"
    status = 502

    def __init__(self, message: str | None = None, *, status_code: int = 0, body: str = "") -> None:
        super().__init__(message)
        self.status_code = status_code
        self.body = body


class InsecureAddress(FlashmeshError, ValueError):
    """The address is neither https nor on this machine, so nothing is sent there. Use an https:// address."""

    code = "INSECURE_ADDRESS"
    status = 500


class ServerRequired(FlashmeshError):
    """This needs a server that keeps apps and environments; functions alone need none. Run them with `flash run`."""

    code = "SERVER_REQUIRED"
    status = 503


class SettingsError(FlashmeshError, ValueError):
    """A setting has a value that cannot be used."""

    code = "SETTINGS"
    status = 500
