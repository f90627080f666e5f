"""Twice as many calls as can be done: what is refused, what is still done, and how long that takes."""

from collections.abc import Iterator

from benchmarks import closed_loop, http_load
from benchmarks.measure import Row
from benchmarks.open_loop import OpenLoad, open_loop
from benchmarks.served import BODY, Server, invoke

FACTOR = 2.0
FUNCTIONS = (("short", "a function that returns at once"), ("milliseconds", "a function of 5 ms"))


def overload_rows(server: Server, seconds: float) -> Iterator[Row]:
    """For a function that does nothing, where the server is the limit, and one that takes 5 ms, where the worker is;
    with and without a token."""
    for function, words in FUNCTIONS:
        http_load.some(server.port, http_load.request_bytes(invoke(function), BODY), 20)
        for token in ("", server.token()):
            capacity = closed_loop.load(
                server.port, invoke(function), BODY, connections=64, seconds=seconds, token=token
            ).rate
            request = http_load.request_bytes(invoke(function), BODY, token=token)
            load = open_loop(server.port, request, rate=FACTOR * capacity, seconds=max(2.0, seconds))
            name = f"overload 2×, {words}" + (", with a token" if token else "")
            yield from _rows(name, load, capacity)


def _rows(name: str, load: OpenLoad, capacity: float) -> Iterator[Row]:
    others = {status: count for status, count in sorted(load.statuses.items()) if status not in (200, 429)}
    counts = f"200: {load.statuses[200]}, 429: {load.statuses[429]}, others: {others or 0}"
    if load.without_retry_after:
        counts += f", 429 without Retry-After: {load.without_retry_after}"
    if load.unanswered:
        counts += f", unanswered: {load.unanswered}"
    if load.unsent:
        counts += f", not sent for want of connections: {load.unsent}"
    sent = f"{load.offered:.0f}/s sent, the latest {load.late_s * 1e3:.0f} ms late; {counts}"
    yield Row(f"{name}: goodput", load.goodput, "/s", "closed loop, c=64", capacity, "", sent)
    yield Row(f"{name}: p99 of the accepted", load.p99_s * 1e3, "ms", "", None, "", "from when each was due")
