"""Builds a worker from its spec: which part is given what."""

import asyncio
import inspect
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from flashmesh.functions.caller import install
from flashmesh.functions.calls import process
from flashmesh.wire.signature import Signer
from flashmesh.worker.callables import Callables, outside_loop
from flashmesh.worker.calls.assemble import worker_caller
from flashmesh.worker.calls.caller import WorkerCaller
from flashmesh.worker.context import WorkerContext
from flashmesh.worker.dialling import dialling
from flashmesh.worker.face.access import Access
from flashmesh.worker.face.face import About, Face, Limits
from flashmesh.worker.face.http import max_body_bytes
from flashmesh.worker.loader import Loaded, load
from flashmesh.worker.runner import Runner
from flashmesh.worker.spec import WorkerSpec
from flashmesh.worker.uplink import Uplink

if TYPE_CHECKING:
    from flashmesh.worker.lb.face import HttpFace

_LEVEL: Final = "LOG_LEVEL"


class Life(Protocol):
    """What the parts tell whoever decides about the worker's life."""

    def on_free(self, free: int, by_link: bool) -> None: ...
    def on_idle(self) -> None: ...
    def on_call(self) -> bool: ...
    def on_accepted_call(self) -> bool: ...
    def drain(self, reason: str = ...) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A worker's parts, connected."""

    runner: Runner
    callables: Callables
    faces: "tuple[Face | HttpFace, ...]"
    uplink: Uplink | None
    hooks: tuple[Callable[[], Any], ...]

    async def start(self) -> None:
        """Hooks, then the instances that can be made ahead. What a hook raises ends the worker."""
        for hook in self.hooks:
            result = outside_loop(hook)
            if inspect.isawaitable(result):
                await result
        await self.callables.make_instances()


def prepare(spec: WorkerSpec) -> Loaded:
    """What all workers that are forked from this process share: log output, the user's modules, the way calls leave.

    Raises loader.ImportProblem, SettingsError or AddressRefused, or whatever the import raised.
    """
    configure_logging()
    loaded = load(spec)
    install(
        worker_caller(
            endpoint=spec.endpoint,
            resource_name=spec.resource_name,
            config=spec.resource,
            declared=frozenset(loaded.declarations),
            manifest=Path(spec.manifest),
            socket_path=Path(spec.socket_path),
            link=spec.link,
            written_name=loaded.imports.written_name,
            signer=signer_of(spec),
            token_file=spec.token_file,
            deployed=bool(spec.app or spec.tcp),
            environ=os.environ,
        )
    )
    return loaded


def assemble(spec: WorkerSpec, context: WorkerContext, loaded: Loaded, life: Life) -> Parts:
    """The parts of one worker, in the running loop."""
    asyncio.get_running_loop()
    resource = spec.resource
    callables = loaded.callables
    # Synchronous bodies run one after the other whatever was declared: a second one is better off in another worker.
    many = (callables.any_async or loaded.http is not None) and not context.one_shot
    limit = max(1, resource.max_concurrency) if many else 1
    runner = Runner(
        context=context,
        limit=limit,
        default_run_ms=resource.execution_timeout_ms,
        signer=signer_of(spec),
        on_free=life.on_free,
        on_idle=life.on_idle,
    )
    uplink = None
    if not context.reentrant:
        road = dialling(spec.link, os.environ)
        uplink = Uplink(
            connect=road.connect,
            token=road.token,
            redial_s=road.redial_s,
            endpoint=spec.endpoint,
            build=spec.build,
            worker=context.worker_id,
            runner=runner,
            callables=callables,
            on_drain=life.drain,
            taken=life.on_call,
            prefetch=not context.one_shot,
        )
        runner.on_peer_end = uplink.peer_ended
        runner.next_in = uplink.line.next_in
    caller = process.caller
    calls = caller if isinstance(caller, WorkerCaller) else None
    about = About(
        endpoint=spec.endpoint,
        build=spec.build,
        worker=context.worker_id,
        manifest_queries=(lambda: calls.queries) if calls is not None else lambda: 0,
    )
    access = Access.of(spec, public=resource.public and loaded.http is not None)
    sockets: list[tuple[int, bool, Access | None]] = [(context.listen_fd, False, None)]
    if context.tcp_fd is not None:
        sockets.append((context.tcp_fd, False, access))
    if context.reentrant_fd is not None:
        sockets.append((context.reentrant_fd, True, None))
    if loaded.http is not None:
        from flashmesh.worker.lb.face import http_faces  # uvicorn: only where HTTP is served

        served = http_faces(sockets, loaded.http, runner=runner, context=context, about=about, taken=life.on_call)
        return Parts(runner=runner, callables=callables, faces=served, uplink=uplink, hooks=loaded.hooks)
    limits = Limits(max_body=max_body_bytes(os.environ))
    faces = tuple(
        Face(
            socket.socket(fileno=descriptor),
            runner=runner,
            callables=callables,
            about=about,
            limits=limits,
            access=access,
            passed_on=calls.passing_on.callable if calls is not None else None,
            over_limit=over_limit,
            settle=uplink.take_unsaid if uplink is not None else _nothing_unsaid,
            taken=life.on_accepted_call,
        )
        for descriptor, over_limit, access in sockets
    )
    return Parts(runner=runner, callables=callables, faces=faces, uplink=uplink, hooks=loaded.hooks)


def signer_of(spec: WorkerSpec) -> Signer | None:
    """The environment's signer; None where there is no key."""
    if spec.key_file is None:
        return None
    return Signer(Path(spec.key_file).read_bytes(), spec.environment)


def configure_logging() -> None:
    """Our own log lines to stderr, which the template reads, at LOG_LEVEL (default WARNING). The user's stay theirs."""
    logger = logging.getLogger("flashmesh")
    level = os.environ.get(_LEVEL, "").upper()
    logger.setLevel(level if level in logging.getLevelNamesMapping() else "WARNING")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


def _nothing_unsaid() -> bool:
    return False
