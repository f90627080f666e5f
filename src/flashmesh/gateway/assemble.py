"""Builds the graph of one server. Nothing here listens or starts a process."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from flashmesh.deploy.local.assemble import LocalParts, local_parts
from flashmesh.deploy.local.deployed import LocalDeployments, Standing
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
from flashmesh.gateway.metrics import Metrics
from flashmesh.gateway.samples import add_samples
from flashmesh.gateway.settings import ServerSettings
from flashmesh.gateway.state.assemble import UPLOADS, StateParts, state_parts
from flashmesh.gateway.transport import link_check
from flashmesh.gateway.webhooks import SCHEMA, SCHEMA_NAME, Webhooks
from flashmesh.kit.descriptors import raise_limit
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.machine import host_folder
from flashmesh.project.appname import app_name
from flashmesh.project.model import ResourceSpec
from flashmesh.queueing.link import LinkServer
from flashmesh.queueing.logbook import LogBook
from flashmesh.queueing.ports import LoopClock
from flashmesh.wire.frames import Log
from flashmesh.worker.keeper.child import KeeperChild

OnTemplate = Callable[[EndpointName, Mapping[str, Any]], None]
"""Told what a template said at READY."""

_OWN_FILES: Final = 400
"""Open files that no client gets: links, database, payloads, and up to 256 connections that are being turned away."""
_FEWEST_CONNECTIONS: Final = 16


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
    on_template: OnTemplate,
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
    app = "" if settings.project is None else app_name(settings.project)
    tokens = Tokens(host_folder(settings.home))

    store = make_store(settings, data, loop)
    local = make_local(settings, store=store, data=data, place=place, keeper=keeper, tokens=tokens, log=log)
    dispatcher, deployed = local.dispatcher, local.deployments
    assert deployed is not None  # it was told what deployments stand on
    link = LinkServer(place.link, dispatcher, on_log=log.output, log=log.event, check_token=link_check(tokens))

    registry = make_registry(
        settings,
        store=store,
        place=place,
        link=link,
        clock=clock,
        tokens=tokens,
        url=url,
        app=app,
        log=log,
        amend_project=amend_project,
    )
    calls = Calls(dispatcher=dispatcher, clock=clock)
    webhooks = make_webhooks(store)
    metrics = Metrics(dispatcher.unfinished)
    dispatcher.on_ended += [metrics.ended, webhooks.ended]
    dispatcher.on_refused.append(metrics.rejected)
    state = state_parts(database=store.database, folder=data.artifacts, limit_bytes=settings.max_artifact_bytes)
    deployments = make_deployments(
        settings, state=state, target=deployed, registry=registry, data=data, url=url, authority=authority, log=log
    )
    registry.amend_deployed = deployments.amend
    link.on_template = told_of_templates(deployments.template_said, deployed.template_said, on_template)

    gate = make_gate(settings, tokens, app)
    lb = LbTable(sockets_of(local, deployed))
    registry.on_scoped = following_scope(registry, gate=gate, lb=lb, app=app)
    door = Door(api.hot_routes(calls, registry))
    passages = Passages(lb, gate, closed=door.closed)
    dispatcher.on_failed.append(passages.endpoint_failed)
    shown = Shown(
        calls=calls, registry=registry, logbook=link.logbook, metrics=metrics, state=state, deployments=deployments
    )
    application = application_maker(settings, shown, gate=gate, door=door, url=url)
    front = make_front(settings, door=door, gate=gate, application=application, passages=passages, log=log)
    link.gathering = front.gathering
    add_samples(metrics, front=front, passages=passages, link=link, commits=store.database.writer, log=log)
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


# What runs functions, and keeps the record of it


def make_store(settings: ServerSettings, data: DataDirectory, loop: asyncio.AbstractEventLoop) -> SqliteStore:
    """The executions, and the database that everything else is in as well."""
    retention = Retention(
        count=settings.retention_count, age_s=settings.retention_age_s, bytes=settings.retention_bytes
    )
    return SqliteStore(data.database, loop=loop, retention=retention, durability=settings.durability)


def make_local(
    settings: ServerSettings,
    *,
    store: SqliteStore,
    data: DataDirectory,
    place: SessionPlace,
    keeper: Callable[[], KeeperChild | None],
    tokens: Tokens,
    log: ServerLog,
) -> LocalParts:
    """Queues, and this machine as a target, for a project's endpoints and for deployed ones."""
    return local_parts(
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


def make_registry(
    settings: ServerSettings,
    *,
    store: SqliteStore,
    place: SessionPlace,
    link: LinkServer,
    clock: LoopClock,
    tokens: Tokens,
    url: str,
    app: str,
    amend_project: Callable[[ResourceSpec], Awaitable[None]],
    log: ServerLog,
) -> FunctionRegistry:
    """The directory of what is served, with what functions made by POST run on."""

    def printed(line: Log) -> None:
        link.logbook.add(line)
        log.output(line)

    return FunctionRegistry(
        dispatcher=link.dispatcher,
        clock=clock,
        settings=settings,
        database=store.database,
        on_log=printed,
        log=log.event,
        amend_project=amend_project,
        callback_url=f"{url}/v1/internal/executions",
        directory=settings.project,
        scratch=place.directory,
        app=app,
        grant=tokens.grant,
    )


def make_webhooks(store: SqliteStore) -> Webhooks:
    """What tells others that a call has ended; what it has still to tell is in the database."""
    webhooks = Webhooks(database=store.database)
    store.database.add_schema(SCHEMA_NAME, SCHEMA)
    return webhooks


def told_of_templates(*listeners: OnTemplate) -> OnTemplate:
    """Tells each of them, in this order, what a template said at READY."""

    def told(endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        for listener in listeners:
            listener(endpoint, info)

    return told


# Deployments


def make_deployments(
    settings: ServerSettings,
    *,
    state: StateParts,
    target: LocalDeployments,
    registry: FunctionRegistry,
    data: DataDirectory,
    url: str,
    authority: Path | None,
    log: ServerLog,
) -> Deployments:
    """What carries deployments out on this machine."""
    manifests = ManifestFiles(data.manifests)
    return Deployments(
        state=state.manager,
        deployables=Deployables(
            state=state.manager,
            artifacts=state.artifacts,
            manifests=manifests,
            server_url=url,
            environ=workers_environ(settings, authority),
        ),
        target=target,
        registry=registry,
        manifests=manifests,
        key=ValuesKey.open(data.path),
        server_url=public_url(settings, url),
        notice=lambda text, level: log.notice(text, level=level),
    )


def public_url(settings: ServerSettings, url: str) -> str:
    """Where callers elsewhere reach the server."""
    if settings.mothership and settings.runpod_endpoint_id:
        return f"https://{settings.runpod_endpoint_id}.api.runpod.ai"
    return url


# Who may reach what


def make_gate(settings: ServerSettings, tokens: Tokens, app: str) -> AccessGate:
    """Who may call: by token, by page, and by place while only the project's functions are served."""
    pages = PageRules.make(host=settings.host, allow_host=settings.allow_host, allow_origin=settings.allow_origin)
    return AccessGate(pages, tokens, Place(app))


def sockets_of(local: LocalParts, deployed: LocalDeployments) -> Callable[[EndpointName], str | None]:
    """Finds where an endpoint listens on this machine, whichever target has it; None: nowhere yet."""

    def socket_of(endpoint: EndpointName) -> str | None:
        hosted = (deployed.target_of(endpoint) or local.target).hosted(endpoint)
        return None if hosted is None or hosted.sockets is None else str(hosted.sockets.socket_path)

    return socket_of


def following_scope(registry: FunctionRegistry, *, gate: AccessGate, lb: LbTable, app: str) -> Callable[[], None]:
    """To be called when environments come or go.

    With deployed environments a token's place is looked at per function, by the registry; without, the gate does it.
    """

    def changed() -> None:
        gate.place = None if registry.scoped else Place(app)
        lb.serve("deployed", deployed_http(registry))

    return changed


def deployed_http(registry: FunctionRegistry) -> Iterable[LbServed]:
    """The deployed endpoints that have HTTP routes."""
    return [
        listed(one.resource, one.endpoint, app=one.app, environment=one.environment)
        for one in registry.deployed_endpoints()
        if one.resource.is_load_balanced
    ]


# HTTP


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the application shows of a server."""

    calls: Calls
    registry: FunctionRegistry
    logbook: LogBook
    metrics: Metrics
    state: StateParts
    deployments: Deployments


def application_maker(
    settings: ServerSettings, shown: Shown, *, gate: AccessGate, door: Door, url: str
) -> Callable[[], Any]:
    """Makes the application of everything that is not hot, when it is first needed. That imports starlette."""

    def application() -> Any:
        from flashmesh.gateway.deployments.faces import deployment_face  # with starlette, as the other
        from flashmesh.gateway.state.faces import StateFaces

        state, deployments, metrics = shown.state, shown.deployments, shown.metrics
        state_faces = StateFaces(parts=state, grant=gate.grant, deployer=deployments, secure=url.startswith("https:"))
        metrics.add_source(state_faces.samples)
        made = api.application(
            calls=shown.calls,
            registry=shown.registry,
            logbook=shown.logbook,
            complete=shown.registry.posted.complete,
            metrics=metrics.exposition,
            limits=api_limits(settings),
            faces=(state_faces.face(), deployment_face(deployments, state.manager, gate.grant)),
        )
        return guard(door.guard(made), gate)

    return application


def api_limits(settings: ServerSettings) -> Any:
    """The limits of what is not hot. Imports starlette."""
    from flashmesh.gateway.api.starlette_app import ApiLimits  # with the application, at its first request

    return ApiLimits(max_body_bytes=settings.max_body_bytes, body_limit_s=settings.body_timeout_s)


def make_front(
    settings: ServerSettings,
    *,
    door: Door,
    gate: AccessGate,
    application: Callable[[], Any],
    passages: Passages,
    log: ServerLog,
) -> FrontServer:
    """The HTTP port, with as many connections as this process can have open."""
    files = raise_limit()
    limits = front_limits(settings, files=files)
    if limits.max_connections < settings.max_connections:
        log.notice(
            f"At most {limits.max_connections} connections at once, not {settings.max_connections}: this process may "
            f"open {files} files. Allow more with `ulimit -n`, or LimitNOFILE= of its systemd unit.",
            level="warning",
        )
    return FrontServer(door, gate, application, limits, lean=settings.lean, passages=passages)


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
