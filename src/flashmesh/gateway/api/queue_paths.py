"""The queue API's addresses: `/v2/{endpoint}[/{function}]/{verb}[/{id}]`. Pure."""

from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

PREFIX: Final = b"/v2/"
CALL_VERBS: Final = frozenset({"run", "runsync", "run_sync"})
LOOK_VERBS: Final = frozenset({"status", "stream", "cancel", "retry"})
ENDPOINT_VERBS: Final = frozenset({"purge-queue", "health"})
METHODS: Final = {
    **dict.fromkeys(CALL_VERBS, ("POST",)),
    "status": ("GET", "POST"),
    "stream": ("GET", "POST"),
    "cancel": ("POST",),
    "retry": ("POST",),
    "purge-queue": ("POST",),
    "health": ("GET",),
}
"""Which methods each verb answers."""


class QueuePath(NamedTuple):
    """What an address says. `execution` is empty for verbs that concern no job."""

    endpoint: str
    function: str | None
    verb: str
    execution: str = ""


def parse(path: bytes) -> QueuePath | None:
    """None when it is no address of the queue API. Names are percent-decoded."""
    if not path.startswith(PREFIX):
        return None
    parts = [_decoded(part) for part in path[len(PREFIX) :].split(b"/")]
    if "" in parts or not 2 <= len(parts) <= 4:
        return None
    if parts[-1] in CALL_VERBS and len(parts) <= 3:
        return QueuePath(parts[0], parts[1] if len(parts) == 3 else None, parts[-1])
    if parts[-1] in ENDPOINT_VERBS and len(parts) <= 3:
        return QueuePath(parts[0], parts[1] if len(parts) == 3 else None, parts[-1])
    if len(parts) >= 3 and parts[-2] in LOOK_VERBS:
        return QueuePath(parts[0], parts[1] if len(parts) == 4 else None, parts[-2], parts[-1])
    return None


def _decoded(part: bytes) -> str:
    return (unquote_to_bytes(part) if b"%" in part else part).decode("utf-8", "replace")
