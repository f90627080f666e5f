"""What the metrics say of a server's parts. It is looked up when somebody asks, and costs nothing until then."""

from collections.abc import Iterable
from typing import Final

from flashmesh.executions.sqlite.writer import Writer
from flashmesh.gateway.front.server import FrontServer
from flashmesh.gateway.lb.passages import Passages
from flashmesh.gateway.logs import ServerLog
from flashmesh.gateway.metrics import Histogram, Metrics, Sample
from flashmesh.queueing.link import LinkServer

_HTTP: Final = (
    ("requests", "flash_http_requests_total", "Hot requests answered."),
    ("refused", "flash_http_refused_total", "Requests that broke a limit or a rule of HTTP."),
    ("accepted", "flash_http_connections_total", "Connections accepted."),
    ("handed_over", "flash_http_handed_over_total", "Connections whose requests go the long way."),
    ("turned_away", "flash_http_turned_away_total", "Connections beyond the limit."),
    ("dropped", "flash_http_dropped_total", "Connections whose client did not read its answers."),
)


def add_samples(
    metrics: Metrics,
    *,
    front: FrontServer,
    passages: Passages,
    link: LinkServer,
    commits: Writer,
    log: ServerLog,
) -> None:
    """Have the metrics look at these parts; `commits` are the database's, counted by how long they take."""
    metrics.add_source(lambda: http_samples(front))
    metrics.add_source(lambda: passage_samples(passages))
    metrics.add_source(lambda: link_samples(link))
    metrics.add_source(lambda: [_dropped_lines(log)])
    times = Histogram()
    commits.took = lambda seconds: times.observe(round(seconds * 1e6))
    metrics.add_histogram("flash_store_commit_seconds", "Commits of the database.", times)


def http_samples(front: FrontServer) -> Iterable[Sample]:
    """What the HTTP port has counted."""
    for attribute, name, help in _HTTP:
        yield name, "counter", help, {}, getattr(front, attribute)
    yield "flash_http_connections", "gauge", "Open connections.", {}, front.connections


def passage_samples(passages: Passages) -> Iterable[Sample]:
    """Requests to load-balanced endpoints, by the status of their answers; 0: their client left before."""
    for status, count in sorted(passages.requests.items()):
        name, labels = "flash_lb_requests_total", {"status": str(status)}
        yield name, "counter", "Requests that went to load-balanced endpoints.", labels, count
    yield "flash_lb_open", "gauge", "Requests and websockets on their way.", {}, len(passages.open)


def link_samples(link: LinkServer) -> Iterable[Sample]:
    """Who is connected, and how many workers each endpoint has."""
    for role, count in sorted(link.connections().items()):
        yield "flash_link_connections", "gauge", "Open connections of the link.", {"role": role}, count
    for endpoint in link.dispatcher.status()["endpoints"]:
        labels = {"endpoint": str(endpoint["name"])}
        yield "flash_link_workers", "gauge", "Workers that take calls.", labels, endpoint["workers"]


def _dropped_lines(log: ServerLog) -> Sample:
    return "flash_log_dropped_total", "counter", "Log lines that were not read fast enough.", {}, log.dropped
