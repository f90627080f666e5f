"""Twice as many calls as can be done: what is refused, what is still done, and how long that takes."""

from collections.abc import Iterator

from benchmarks import http_load
from benchmarks.measure import Row
from benchmarks.open_loop import OpenLoad, closed_rate, open_loop
from benchmarks.served import BODY, Server, invoke

FACTOR = 2.0
FUNCTIONS = (("short", "a function that returns at once"), ("milliseconds", "a function of 5 ms"))


def overload_rows(server: Server, seconds: float) -> Iterator[Row]:
    """For a function that does nothing, where the server is the limit, and one that takes 5 ms, where the worker is;
    with and without a token."""
    for function, words in FUNCTIONS:
        http_load.some(server.port, http_load.request_bytes(invoke(function), BODY), 20)
        for token in ("", server.token()):
            request = http_load.request_bytes(invoke(function), BODY, token=token)
            capacity = closed_rate(server.port, request, under_way=64, seconds=max(2.0, seconds))
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
    client = f"the latest {load.late_s * 1e3:.0f} ms late, {load.client_share:.0%} of a core for the client"
    sent = f"{load.offered:.0f}/s sent, {client}; {counts}"
    yield Row(f"{name}: goodput", load.goodput, "/s", "the same client, 64 under way", capacity, "", sent)
    yield Row(f"{name}: p99 of the accepted", load.p99_s * 1e3, "ms", "", None, "", "from when each was due")
