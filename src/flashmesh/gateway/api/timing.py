"""X-Execution-Id, X-Cold-Start and Server-Timing of an answered call, as lines of its head."""

from flashmesh.wire.frames import Result


def timing_lines(execution: bytes, result: Result, elapsed_us: int) -> bytes:
    """Milliseconds: in the queue, on the way (all that is none of the others), starting a worker, in the body."""
    queue_us, cold_us, run_us = result.queue_us, result.cold_us, result.run_us
    route_us = elapsed_us - queue_us - cold_us - run_us
    return (
        b"x-execution-id: %b\r\nx-cold-start: %b\r\n"
        b"server-timing: queue;dur=%.3f, route;dur=%.3f, cold;dur=%.3f, run;dur=%.3f\r\n"
    ) % (
        execution,
        b"true" if cold_us else b"false",
        queue_us / 1000,
        route_us / 1000 if route_us > 0 else 0,
        cold_us / 1000,
        run_us / 1000,
    )


def identity_line(execution: str) -> bytes:
    """X-Execution-Id alone."""
    return b"x-execution-id: %b\r\n" % execution.encode()
