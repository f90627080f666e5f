"""The front's limits beyond those of every HTTP face of ours, and refusals as answers."""

import dataclasses
from typing import Final

from flashmesh.gateway.http import JSON_TYPE, Answer
from flashmesh.worker.face.limits import HttpLimits, Refusal, body_too_large, head_too_large, not_http, too_slow

__all__ = [
    "BROKEN", "FrontLimits", "Refusal", "answer_to", "body_too_large", "head_too_large", "not_http",
    "too_many_connections", "too_slow",
]  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrontLimits(HttpLimits):
    """Of one server. Times are seconds and end up to one `sweep_s` late, never early; sizes are bytes."""

    max_connections: int = 10_000
    """Beyond it a connection is answered 503 and closed. Keep it below the limit of open files."""
    max_pipelined: int = 16
    """Requests of one connection that wait for their answers at once; more stay unread."""
    max_unsent: int = 16 * 1024 * 1024
    """A client that left this much unread is dropped when another answer comes. One answer alone may be larger."""
    write_s: float = 60
    """How long an answer may stand still because its reader does not read."""
    linger_s: float = 2
    """How long the rest of a refused request is read and thrown away, so that the refusal is seen."""


def answer_to(refusal: Refusal) -> Answer:
    """What a refused client is told."""
    return Answer(refusal.status, [JSON_TYPE], refusal.body)


def too_many_connections(limits: FrontLimits) -> Refusal:
    return Refusal(
        503, f"This server has {limits.max_connections} connections open and takes no more. Close some, or try later."
    )


BROKEN: Final = answer_to(Refusal(500, "The server failed to answer this. Its log says why."))
