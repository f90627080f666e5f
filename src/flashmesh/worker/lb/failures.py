"""A failed call as an HTTP answer, in one shape: RunPod's fields, then what Python users want to know. Pure."""

import math
import re
from typing import Any, Final

from flashmesh.wire import failures
from flashmesh.wire.failures import ErrorInfo

Header = tuple[bytes, bytes]

_FAILED_WORDS: Final = {"TIMEOUT": "TIMED_OUT", "CANCELLED": "CANCELLED"}
_PLACE: Final = re.compile(r"(?P<file>[^:\n]+):(?P<line>\d+): (?P<reason>.+?)(?:\. Correct the file.*)?$", re.DOTALL)
"""How the message of a failed import begins: the place in the user's file, then why."""


def failed(execution: str | None, info: ErrorInfo, **more: Any) -> tuple[int, list[Header], dict[str, Any]]:
    """Status, headers and body of a call that failed."""
    told = failures.to_http(info)
    body: dict[str, Any] = {"id": execution} if execution is not None else {}
    body |= {
        "status": _FAILED_WORDS.get(info.code, "FAILED"),
        "error": told["message"] or told["type"],
        "error_type": told["type"],
        "code": info.code,
    }
    if told.get("field"):
        body["field"] = told["field"]
    if info.code == "IMPORT_FAILED" and (place := _PLACE.match(told["message"])):
        body |= {"file": place["file"], "line": int(place["line"]), "reason": place["reason"]}
    body |= {key: value for key, value in more.items() if value is not None}
    if told.get("traceback"):
        body["traceback"] = told["traceback"]
    headers: list[Header] = [(b"x-execution-id", execution.encode())] if execution is not None else []
    status = failures.http_status(info)
    if info.retry_after is not None or status == 429:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(info.retry_after or 1))))
    return status, headers, body
