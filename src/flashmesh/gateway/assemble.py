"""Builds the graph of one server. Nothing here listens or starts a process."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flashmesh.deploy.local.assemble import LocalParts, local_parts
from flashmesh.deploy.local.deployed import Standing
from flashmesh.deploy.local.place import SessionPlace
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.executions.store import Retention
from flashmesh.gateway import api
from flashmesh.gateway.access.gate import AccessGate
from flashmesh.gateway.access.guard import guard
from flashmesh.gateway.access.pages import PageRules
from flashmesh.gateway.access.place import Place
from flashmesh.gateway.access.tokens import Tokens
from flashmesh.gateway.calls import Calls
from flashmesh.gateway.data import DataDirectory
from flashmesh.gateway.deployments.deployables import Deployables
from flashmesh.gateway.deployments.manifest_files import ManifestFiles
from flashmesh.gateway.deployments.service import Deployments
from flashmesh.gateway.deployments.values import ValuesKey
from flashmesh.gateway.door import Door
from flashmesh.gateway.front.limits import FrontLimits
from flashmesh.gateway.front.server import FrontServer
from flashmesh.gateway.functions.registry import FunctionRegistry
from flashmesh.gateway.lb.directory import LbServed, LbTable, listed
from flashmesh.gateway.lb.passages import Passages
from flashmesh.gateway.logs import ServerLog
from flashmesh.gateway.metrics import Histogram, Metrics, Sample
from flashmesh.gateway.settings import ServerSettings
from flashmesh.gateway.state.assemble import UPLOADS, StateParts, state_parts
from flashmesh.gateway.transport import link_check
from flashmesh.gateway.webhooks import SCHEMA, SCHEMA_NAME, Webhooks
from flashmesh.kit.descriptors import raise_limit
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.machine import host_folder
from flashmesh.project.appname import app_name
from flashmesh.project.model import ResourceSpec
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire.frames import Log
from flashmesh.worker.keeper.child import KeeperChild


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a server is made of."""

    store: SqliteStore
    local: LocalParts
    link: LinkServer
    registry: FunctionRegistry
    calls: Calls
    tokens: Tokens
    webhooks: Webhooks
    state: StateParts
    deployments: Deployments
    metrics: Metrics
    door: Door
    front: FrontServer
    lb: LbTable
    passages: Passages


def assemble(
    settings: ServerSettings,
    *,
    data: DataDirectory,
    place: SessionPlace,
    keeper: Callable[[], KeeperChild | None],
    log: ServerLog,
    url: str,
    amend_project: Callable[[ResourceSpec], Awaitable[None]],
    on_template: Callable[[EndpointName, Mapping[str, Any]], None],
    authority: Path | None = None,
) -> Parts:
    """Everything of a server, wired and still. Call it on the event loop that it will live on.

    Args:
        keeper: gives, once, the keeper's process if it was started already.
        url: where external functions on this machine reach it.
        amend_project: serves a project's resource with other settings.
        on_template: told when a template has tried its import.
        authority: the certificate by which workers know this server; None: it needs none.
    Raises:
        FlashmeshError: what an unusable database, key or token register says.
    """
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop)
    tokens = Tokens(host_folder(settings.home))
    store = SqliteStore(
        data.database,
        loop=loop,
        retention=Retention(
            count=settings.retention_count, age_s=settings.retention_age_s, bytes=settings.retention_bytes
        ),
        durability=settings.durability,
    )
    local = local_parts(
        store=store,
        place=place,
        project_root=settings.project,
        install=settings.install,
        notice=lambda endpoint, line: log.notice(f"[{endpoint}] {line}" if endpoint else line, level="warning"),
        log=log.event,
        home=settings.home,
        keeps_endpoints=settings.keep_endpoints,
        begun=keeper,
        standing=standing(settings, data=data, place=place, tokens=tokens),
    )
    assert local.deployments is not None
    app = "" if settings.project is None else app_name(settings.project)
    dispatcher = local.dispatcher
    deployed = local.deployments

    def template_said(endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        deployments.template_said(endpoint, info)
        deployed.template_said(endpoint, info)
        on_template(endpoint, info)

    link = LinkServer(
        place.link,
        dispatcher,
        on_template=template_said,
        on_log=log.output,
        log=log.event,
        check_token=link_check(tokens),
    )

    def heard(line: Log) -> None:
        link.logbook.add(line)
        log.output(line)

    registry = FunctionRegistry(
        dispatcher=dispatcher,
        clock=clock,
        settings=settings,
        database=store.database,
        on_log=heard,
        log=log.event,
        amend_project=amend_project,
        callback_url=f"{url}/v1/internal/executions",
        directory=settings.project,
        scratch=place.directory,
        loop=loop,
        app=app,
        grant=tokens.grant,
    )
    calls = Calls(dispatcher=dispatcher, clock=clock)
    webhooks = Webhooks(database=store.database)
    store.database.add_schema(SCHEMA_NAME, SCHEMA)
    state = state_parts(database=store.database, folder=data.artifacts, limit_bytes=settings.max_artifact_bytes)
    manifests = ManifestFiles(data.manifests)
    deployments = Deployments(
        state=state.manager,
        deployables=Deployables(
            state=state.manager,
            artifacts=state.artifacts,
            manifests=manifests,
            server_url=url,
            environ=workers_environ(settings, authority),
        ),
        target=deployed,
        registry=registry,
        manifests=manifests,
        key=ValuesKey.open(data.path),
        server_url=public_url(settings, url),
        notice=lambda text, level: log.notice(text, level=level),
    )
    registry.amend_deployed = deployments.amend
    metrics = Metrics(dispatcher.unfinished)
    dispatcher.on_ended += [metrics.ended, webhooks.ended]
    dispatcher.on_refused.append(metrics.rejected)
    gate = AccessGate(
        PageRules.make(host=settings.host, allow_host=settings.allow_host, allow_origin=settings.allow_origin),
        tokens,
        Place(app),
    )

    def socket_of(endpoint: EndpointName) -> str | None:
        hosted = (deployed.target_of(endpoint) or local.target).hosted(endpoint)
        return None if hosted is None or hosted.sockets is None else str(hosted.sockets.socket_path)

    lb = LbTable(socket_of)

    def served_elsewhere() -> None:
        gate.place = None if registry.scoped else Place(app)

        lb.serve("deployed", deployed_http(registry))

    registry.on_scoped = served_elsewhere
    door = Door(api.hot_routes(calls, registry))
    passages = Passages(lb, gate, closed=door.closed)
    dispatcher.on_failed.append(passages.endpoint_failed)

    def application() -> Any:
        from flashmesh.gateway.deployments.faces import deployment_face  # with starlette, as the other
        from flashmesh.gateway.state.faces import StateFaces

        state_faces = StateFaces(parts=state, grant=gate.grant, deployer=deployments, secure=url.startswith("https:"))
        metrics.add_source(state_faces.samples)
        made = api.application(
            calls=calls,
            registry=registry,
            logbook=link.logbook,
            complete=registry.posted.complete,
            metrics=metrics.exposition,
            limits=api_limits(settings),
            faces=(state_faces.face(), deployment_face(deployments, state.manager, gate.grant)),
        )
        return guard(door.guard(made), gate)

    files = raise_limit()
    limits = front_limits(settings, files=files)
    if limits.max_connections < settings.max_connections:
        log.notice(
            f"At most {limits.max_connections} connections at once, not {settings.max_connections}: this process may "
            f"open {files} files. Allow more with `ulimit -n`, or LimitNOFILE= of its systemd unit.",
            level="warning",
        )
    front = FrontServer(door, gate, application, limits, lean=settings.lean, passages=passages)
    link.gathering = front.gathering
    metrics.add_source(lambda: http_samples(front))
    metrics.add_source(lambda: passage_samples(passages))
    metrics.add_source(lambda: link_samples(dispatcher, link))
    metrics.add_source(lambda: [_dropped_lines(log)])
    commits = Histogram()
    store.database.writer.took = lambda seconds: commits.observe(round(seconds * 1e6))
    metrics.add_histogram("flash_store_commit_seconds", "Commits of the database.", commits)
    return Parts(
        store=store,
        local=local,
        link=link,
        registry=registry,
        calls=calls,
        tokens=tokens,
        webhooks=webhooks,
        state=state,
        deployments=deployments,
        metrics=metrics,
        door=door,
        front=front,
        lb=lb,
        passages=passages,
    )


def deployed_http(registry: FunctionRegistry) -> Iterable[LbServed]:
    """The deployed endpoints that have HTTP routes."""
    return [
        listed(one.resource, one.endpoint, app=one.app, environment=one.environment)
        for one in registry.deployed_endpoints()
        if one.resource.is_load_balanced
    ]


def standing(settings: ServerSettings, *, data: DataDirectory, place: SessionPlace, tokens: Tokens) -> Standing:
    """What deployed endpoints need of this server."""

    def token_for(app: str, environment: str) -> str:
        return tokens.keys.issue(f"peers of {app}/{environment}", "peer", app=app, environment=environment)[0]

    return Standing(
        pointer=data.deployed,
        link=place.link,
        host=settings.endpoint_host,
        plain_networks=settings.plain_networks,
        public_key=tokens.keys.public,
        revocations=tokens.revocations,
        token_for=token_for,
    )


def workers_environ(settings: ServerSettings, authority: Path | None) -> dict[str, str]:
    """What workers of deployed endpoints are told of the network they are in."""
    environ = {}
    if authority is not None:
        environ["FLASH_CA_FILE"] = str(authority)
    if settings.plain_networks:
        environ["FLASH_PLAIN_NETWORKS"] = ",".join(settings.plain_networks)
    if settings.mothership:
        environ |= {"FLASH_IS_MOTHERSHIP": "", "RUNPOD_ENDPOINT_ID": ""}  # those are the server's, not theirs
    return environ


def public_url(settings: ServerSettings, url: str) -> str:
    """Where callers elsewhere reach the server."""
    if settings.mothership and settings.runpod_endpoint_id:
        return f"https://{settings.runpod_endpoint_id}.api.runpod.ai"
    return url


def front_limits(settings: ServerSettings, *, files: int) -> FrontLimits:
    """The limits of the HTTP port of a process that may have so many files open.

    Clients never get the last ones: without them no worker could dial in and no large payload be kept, and a client
    beyond the limit would not even be told so.
    """
    return FrontLimits(
        max_body=settings.max_body_bytes,
        max_connections=min(settings.max_connections, max(_FEWEST_CONNECTIONS, files - _OWN_FILES)),
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        uploads=UPLOADS,
    )


def api_limits(settings: ServerSettings) -> Any:
    """The same for what is not hot. Imports starlette."""
    from flashmesh.gateway.api.starlette_app import ApiLimits  # with the application, at its first request

    return ApiLimits(max_body_bytes=settings.max_body_bytes, body_limit_s=settings.body_timeout_s)


_OWN_FILES: Final = 400
"""Open files that no client gets: links, database, payloads, and up to 256 connections that are being turned away."""
_FEWEST_CONNECTIONS: Final = 16

_HTTP: Final = (
    ("requests", "flash_http_requests_total", "Hot requests answered."),
    ("refused", "flash_http_refused_total", "Requests that broke a limit or a rule of HTTP."),
    ("accepted", "flash_http_connections_total", "Connections accepted."),
    ("handed_over", "flash_http_handed_over_total", "Connections whose requests go the long way."),
    ("turned_away", "flash_http_turned_away_total", "Connections beyond the limit."),
    ("dropped", "flash_http_dropped_total", "Connections whose client did not read its answers."),
)


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


def link_samples(dispatcher: Dispatcher, link: LinkServer) -> Iterable[Sample]:
    """Who is connected, and how many workers each endpoint has."""
    for role, count in sorted(link.connections().items()):
        yield "flash_link_connections", "gauge", "Open connections of the link.", {"role": role}, count
    for endpoint in dispatcher.status()["endpoints"]:
        labels = {"endpoint": str(endpoint["name"])}
        yield "flash_link_workers", "gauge", "Workers that take calls.", labels, endpoint["workers"]


def _dropped_lines(log: ServerLog) -> Sample:
    return "flash_log_dropped_total", "counter", "Log lines that were not read fast enough.", {}, log.dropped
