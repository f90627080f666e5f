"""`/readyz`: whether this server is of use, and what of it is not. Pure.

A server of several endpoints of which one is broken goes on serving the others behind a load balancer: it is ready, and
its answer names the broken one. It is not ready when it can serve nothing, or cannot write down what it accepts.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from flashmesh.gateway.api.words import dump
from flashmesh.gateway.http import JSON_TYPE, Answer

BROKEN: Final = frozenset({"IMPORT_FAILED", "ENVIRONMENT_FAILED"})
"""What does not mend by itself. A worker that failed to start is tried again: no reason to name its endpoint."""


def readiness(endpoints: Iterable[Mapping[str, Any]], *, store: Exception | None, told_all: bool) -> Answer:
    """200 with status `ok`, or `degraded` and what is broken; 503 with status `unavailable` and why.

    Args:
        endpoints: as `Dispatcher.status` has them.
        store: why nothing can be written.
        told_all: whether the caller may see messages, which name files and lines.
    """
    endpoints = list(endpoints)
    broken = [endpoint for endpoint in endpoints if endpoint["error"] and endpoint["error"]["code"] in BROKEN]
    reasons = [
        {"endpoint": endpoint["name"], "code": endpoint["error"]["code"], "message": endpoint["error"]["message"]}
        for endpoint in broken
    ]
    # Workers of the build before a broken one go on with what they have.
    serving = len(broken) < len(endpoints) or any(endpoint["state"] == "ready" for endpoint in broken) or not endpoints
    if store is not None:
        reasons.append({"code": "STORE_UNAVAILABLE", "message": str(store)})
    if not told_all:
        for reason in reasons:
            del reason["message"]
    if not reasons:
        return Answer(200, [JSON_TYPE], dump({"status": "ok"}))
    if serving and store is None:
        return Answer(200, [JSON_TYPE], dump({"status": "degraded", "reasons": reasons}))
    return Answer(503, [JSON_TYPE, (b"retry-after", b"1")], dump({"status": "unavailable", "reasons": reasons}))
