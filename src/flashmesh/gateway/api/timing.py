"""X-Execution-Id, X-Cold-Start and Server-Timing of an answered call."""

from flashmesh.gateway.http import Header
from flashmesh.wire.frames import Result

_COLD: Header = (b"x-cold-start", b"true")
_WARM: Header = (b"x-cold-start", b"false")


def timing_headers(execution: bytes, result: Result, elapsed_us: int) -> list[Header]:
    """Milliseconds: in the queue, on the way (all that is none of the others), starting a worker, in the body."""
    queue_us, cold_us, run_us = result.queue_us, result.cold_us, result.run_us
    route_us = max(0, elapsed_us - queue_us - cold_us - run_us)
    timing = b"queue;dur=%.3f, route;dur=%.3f, cold;dur=%.3f, run;dur=%.3f" % (
        queue_us / 1000,
        route_us / 1000,
        cold_us / 1000,
        run_us / 1000,
    )
    return [(b"x-execution-id", execution), _COLD if cold_us else _WARM, (b"server-timing", timing)]
