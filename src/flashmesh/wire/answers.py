"""What both clients of a session (asyncio and blocking) make of its answers."""

import os
from typing import Any, Final

from flashmesh.functions import errors
from flashmesh.functions.errors import FlashmeshError
from flashmesh.wire.frames import PROTOCOL_VERSION, Answer, Hello

CREDIT_BATCH: Final = 16
"""Items a busy reader consumes before it grants that many more; an empty buffer grants at once."""
CLOSE: Final = "close"
"""A QUERY with the id of a followed one and this word ends it; the session does not answer it."""
CODES: Final[dict[str, type[FlashmeshError]]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FlashmeshError)
}
"""The class each code stands for."""


def client_hello() -> Hello:
    """The HELLO of a client of this process."""
    return Hello(PROTOCOL_VERSION, "client", pid=os.getpid())


def error_of(error: dict[str, Any]) -> FlashmeshError:
    """The exception that an Answer's `error` stands for: the class whose `code` it carries."""
    raised = CODES.get(str(error.get("code")), FlashmeshError)(str(error.get("message") or "") or None)
    if isinstance(raised, errors.QueueFull) and error.get("retry_after") is not None:
        raised.retry_after = float(error["retry_after"])
    return raised


def body_of(answer: Answer | Exception) -> dict[str, Any]:
    """The answer's body. Raises the error it carries, or is."""
    if isinstance(answer, Exception):
        raise answer
    if answer.error is not None:
        raise error_of(answer.error)
    return answer.body


def again(error: Exception) -> Exception:
    """An exception of its own for each waiter: a shared one would collect all their tracebacks."""
    return type(error)(str(error))
