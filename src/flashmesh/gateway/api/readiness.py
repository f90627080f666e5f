"""`/readyz`: whether every endpoint can run calls. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh.gateway.api.words import dump
from flashmesh.gateway.http import JSON_TYPE, Answer

BROKEN: Final = frozenset({"IMPORT_FAILED", "ENVIRONMENT_FAILED"})
"""What does not mend by itself. A worker that failed to start is tried again: no reason to take the server out."""


def readiness(endpoints: Iterable[Mapping[str, Any]], *, told_all: bool) -> Answer:
    """200, or 503 with what is broken. `told_all`: the caller may see messages, which name files and lines."""
    reasons: list[dict[str, str]] = []
    for endpoint in endpoints:
        error = endpoint.get("error")
        if not error or error["code"] not in BROKEN:
            continue
        reason = {"endpoint": str(endpoint["name"]), "code": str(error["code"])}
        if told_all:
            reason["message"] = str(error["message"])
        reasons.append(reason)
    if not reasons:
        return Answer(200, [JSON_TYPE], dump({"status": "ok"}))
    return Answer(503, [JSON_TYPE, (b"retry-after", b"1")], dump({"status": "unavailable", "reasons": reasons}))
