"""What a client of any HTTP face of ours may send and how long it may take, and how it is told that it went beyond."""

import dataclasses
from typing import Final

from flashmesh.worker.face.http import DEFAULT_MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, json_body

_CODES: Final = {
    400: "MALFORMED_REQUEST",
    408: "REQUEST_TIMEOUT",
    413: "PAYLOAD_TOO_LARGE",
    417: "EXPECTATION_FAILED",
    431: "HEADERS_TOO_LARGE",
    500: "INTERNAL",
    501: "NOT_IMPLEMENTED",
    503: "OVERLOADED",
    505: "HTTP_VERSION_NOT_SUPPORTED",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Of one server. Times are seconds and end up to one `sweep_s` late, never early; sizes are bytes."""

    max_headers: int = MAX_HEADERS
    max_head: int = MAX_HEAD_BYTES
    """Request line and headers together."""
    max_body: int = DEFAULT_MAX_BODY_BYTES
    head_s: float = 10
    body_s: float = 60
    idle_s: float = 75
    sweep_s: float = 1
    """How often all connections are looked at: there is no timer per request."""
    uploads: tuple[bytes, ...] = ()
    """Beginnings of paths whose bodies the application bounds itself, and takes for as long as they keep coming."""

    def is_upload(self, url: bytes) -> bool:
        return self.uploads != () and url.startswith(self.uploads)


class Refusal(Exception):
    """The request breaks a limit or a rule of HTTP. It is answered and its connection closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def body(self) -> bytes:
        """As JSON: `error`, a code, and `message`, which says what to do."""
        return json_body({"error": _CODES[self.status], "message": self.message})


def not_http(why: object) -> Refusal:
    return Refusal(400, f"This is not a valid HTTP/1.1 request: {why}.")


def head_too_large(limits: HttpLimits) -> Refusal:
    return Refusal(
        431,
        f"The request's head is larger than {limits.max_head} bytes or has more than {limits.max_headers} headers. "
        "Send fewer or shorter ones.",
    )


def body_too_large(limits: HttpLimits) -> Refusal:
    return Refusal(413, f"The body is larger than {limits.max_body} bytes. Send less, or raise FLASH_MAX_BODY_BYTES.")


def too_slow(part: str, seconds: float) -> Refusal:
    return Refusal(408, f"The request's {part} did not arrive within {seconds:g} s. Send it without pauses.")
