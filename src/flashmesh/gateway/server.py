"""One server: how it starts, how it tells that it is there, how it stops.

The order of starting: data directory and port first, because they fail most often; then store, queues, link and HTTP
port, which answers 503 until everything that an earlier server accepted stands in line again. The order of stopping is
the reverse, the store last: what ends on the way is still written.
"""

import asyncio
import gc
import os
import signal
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from flashmesh import __version__
from flashmesh.deploy.local.assemble import end_deployed, end_kept, has_kept
from flashmesh.deploy.local.place import SessionPlace, sweep
from flashmesh.deploy.local.prestart import prestart
from flashmesh.executions.record import Execution
from flashmesh.executions.states import Status
from flashmesh.functions.environment import conflict_message
from flashmesh.functions.errors import FlashmeshError
from flashmesh.gateway import transport
from flashmesh.gateway.access.certificates import AUTHORITY_FILE, ServerCertificate
from flashmesh.gateway.assemble import Parts, assemble
from flashmesh.gateway.beginning import Beginning
from flashmesh.gateway.door import Drained
from flashmesh.gateway.lb.directory import listed
from flashmesh.gateway.listening import Listener, bind
from flashmesh.gateway.logs import RotatedFiles, ServerLog
from flashmesh.gateway.notify import Starter, tell_systemd
from flashmesh.gateway.project import ServedProject
from flashmesh.gateway.settings import ServerSettings
from flashmesh.kit.ids import EndpointName
from flashmesh.kit.machine import host_folder
from flashmesh.project.model import ResourceSpec

HTTP_LAST_WORDS_S: Final = 1.0
"""How long answers that are ready may take to leave when the server ends."""
GC_THRESHOLDS: Final = (20_000, 20, 100)
"""Allocations between collections. The default (700) collects thousands of times a second under load; what a call
leaves behind has no cycles."""


class Server:
    """`start`, `run_until_stopped`, `stop`; once each, on one event loop.

    Args:
        beginning: what was taken and started already; closed by whoever made it, after this.
        starter: told when it answers or why it does not.
    """

    def __init__(self, settings: ServerSettings, *, beginning: Beginning, starter: Starter | None = None) -> None:
        self.settings = settings
        self._beginning = beginning
        self._starter = starter or Starter(None)
        self._stopping = asyncio.Event()
        self._closers: list[Callable[[], Any]] = []
        """What was opened, to be closed in reverse; coroutine functions too."""
        self._log: ServerLog
        self._parts: Parts
        self._listener: Listener
        self._project: ServedProject | None = None
        self._warming: asyncio.Task[None]
        self._own: asyncio.Task[None]
        self._tried: dict[str, asyncio.Event] = {}
        """By endpoint: whether its template has tried its import."""
        self._certificate: ServerCertificate | None = None
        self._leave_deployed = False
        """Whether deployed endpoints serve on when this server stops."""
        self._said: list[str] = []
        """For people, before it answered: a terminal that waits for it shows that as well."""

    @property
    def url(self) -> str:
        """Where it answers, for people."""
        return self._listener.url

    @property
    def address(self) -> str:
        """Where it answers, for programs of this machine: no name that others could answer to."""
        host = {"0.0.0.0": "127.0.0.1", "localhost": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(
            self.settings.host, self.settings.host
        )
        return f"{self._listener.scheme}://{f'[{host}]' if ':' in host else host}:{self._listener.port}"

    # Beginning

    async def start(self) -> None:
        """Serve. Raises why it cannot, with everything closed again. From here on SIGTERM and SIGINT stop it."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(signal.SIGUSR1, self._on_restart)
        try:
            await self._start()
        except BaseException:
            await self._close_all()
            raise

    async def _start(self) -> None:
        settings = self.settings
        data, place = self._beginning.data, self._beginning.place
        shown = self._certificate = transport.certificate(settings, host_folder(settings.home))
        self._listener = bind(settings.host, settings.port, scheme="http" if shown is None else "https")
        self._closers.append(self._listener.socket.close)
        files = RotatedFiles(data.logs, limit_bytes=settings.log_bytes, keep=settings.log_files)
        self._log = ServerLog(form=settings.log_format, invocations=settings.log_invocations, files=files)
        self._closers.append(self._log.close)
        if not settings.keep_endpoints and await asyncio.to_thread(end_kept, data.place):
            self._log.notice("Ended the endpoints that an earlier server had kept.")
        parts = self._parts = assemble(
            settings,
            data=data,
            place=place,
            keeper=self._beginning.take_keeper,
            log=self._log,
            url=self.address,
            amend_project=self._amend,
            on_template=self._imported,
            authority=None if shown is None else authority_of(settings),
        )
        deployed = parts.local.deployments
        assert deployed is not None
        self._closers.append(parts.store.close)
        self._closers.append(parts.local.volumes.close)
        self._closers.append(parts.link.close)
        self._closers.append(lambda: parts.local.target.close(0))
        self._closers.append(lambda: deployed.close(0, keep=True))
        self._closers.append(parts.registry.close)
        self._closers.append(parts.webhooks.close)
        self._closers.append(parts.deployments.close)
        await parts.front.start([self._listener.socket], None if shown is None else transport.http_context(shown))
        self._closers.append(parts.front.close)
        await self._restore(place)
        parts.door.open()
        parts.deployments.resume()
        if settings.mothership:
            self._own = asyncio.get_running_loop().create_task(self._serve_own_build(), name="own build")
            self._closers.append(self._end_own_build)
        data.announce(
            url=self.address,
            link=place.link,
            project=settings.project,
            drain_s=settings.drain_s,
            started_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            version=__version__,
        )
        settle_memory()

    async def _listen_for_links(self) -> None:
        """Let workers of other machines dial in."""
        host, port = self.settings.link_host, self.settings.link_port
        shown = transport.link_certificate(self.settings, host_folder(self.settings.home))
        context = None if shown is None else transport.link_context(shown)
        try:
            port = await self._parts.link.listen(host, port, context)
        except OSError as error:
            raise FlashmeshError(
                f"Cannot listen for workers on {host}:{port}: {error.strerror}. Name another address with "
                "`--link-host` and `--link-port`."
            ) from error
        text, facts = f"Workers dial in at {host}:{port}", {}
        if shown is not None:
            text += f"; the link's fingerprint is {shown.fingerprint}"
            facts["link_fingerprint"] = shown.fingerprint
        self._said.append(f"{text}.")
        self._log.notice(text, link_host=host, link_port=port, **facts)

    async def _restore(self, place: SessionPlace) -> None:
        """Declare everything that is served, then let what was accepted before go on."""
        parts = self._parts
        if self.settings.project is not None:
            found = self._project = await ServedProject.find(self.settings.project)
            found.say_problems(self._say_problem)
            resources = parts.registry.amended(found.resources)
            await found.declare(parts.local.target, place.manifest, resources)
            parts.registry.serve_project(resources)
            parts.lb.serve("project", [listed(resource, resource.name) for resource in found.balanced])
        if self.settings.keep_endpoints and has_kept(place.directory):
            await parts.local.target.end_undeclared()
        await parts.deployments.restore()
        if parts.local.deployments is not None:
            await parts.local.deployments.settle()
        await parts.registry.restore()
        await parts.link.start()  # not before: a worker of an earlier server's is known by its endpoint
        self._begin_warming()
        unfinished = parts.store.unfinished()
        if unfinished:
            parts.local.dispatcher.restore(unfinished, elsewhere=bool(self.settings.link_host))
            parts.calls.resume(unfinished)
            self._log.notice(f"{len(unfinished)} calls that were accepted before go on.", calls=len(unfinished))
        parts.webhooks.resume()
        if self.settings.link_host:
            await self._listen_for_links()  # not before either: what workers elsewhere run or hold is known by now

    def _say_problem(self, text: str, level: str) -> None:
        self._said.append(text)
        self._log.notice(text, level=level)

    async def _amend(self, resource: ResourceSpec) -> None:
        if self._project is not None:
            await self._project.update(self._parts.local.target, resource)

    def _imported(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        self._tried.setdefault(endpoint, asyncio.Event()).set()
        if info.get("state") == "import_failed":
            error = info.get("error") or {}
            text = f"{error.get('file') or endpoint}: {error.get('reason') or 'the import failed'}"
            self._log.notice(text, level="error", endpoint=endpoint)

    async def _serve_own_build(self) -> None:
        """As a mothership: beside what is served meanwhile, the stored manifest among it."""
        from flashmesh.gateway.deployments.mothership import own_build, serve_own_build

        parts = self._parts

        def notice(text: str, level: str) -> None:
            self._log.notice(text, level=level)

        try:
            await serve_own_build(
                own_build(self.settings.manifest_path, os.environ),
                deployments=parts.deployments,
                state=parts.state.manager,
                builds=parts.state.builds,
                environ=os.environ,
                notice=notice,
            )
        except (FlashmeshError, OSError) as error:
            notice(f"The build this server stands in is not deployed: {error}", "error")

    async def _end_own_build(self) -> None:
        self._own.cancel()
        await asyncio.gather(self._own, return_exceptions=True)

    def _begin_warming(self) -> None:
        self._warming = asyncio.get_running_loop().create_task(self._warm(), name="starting templates")
        self._closers.append(self._end_warming)

    async def _end_warming(self) -> None:
        self._warming.cancel()
        await asyncio.gather(self._warming, return_exceptions=True)

    async def _warm(self) -> None:
        """Start templates ahead of the first calls, one after the other."""
        if self._project is not None:
            target = self._parts.local.target
            await prestart(
                [resource.name for resource in (*self._project.resources, *self._project.balanced)],
                start=lambda name: target.prestart(EndpointName(name)),
                imported=lambda name: self._tried.setdefault(name, asyncio.Event()).wait(),
            )

    # Running

    async def run_until_stopped(self) -> int:
        """Until SIGTERM or SIGINT, then drain and stop. A second signal ends it at once. The exit code."""
        loop = asyncio.get_running_loop()
        tell_systemd("READY=1")
        facts = {} if self._certificate is None else {"fingerprint": self._certificate.fingerprint}
        self._starter.ready(url=self.url, pid=os.getpid(), said=self._said, **facts)
        text = f"flash server {__version__} answers at {self.url}"
        if self._certificate is not None:
            text += f"; its certificate's fingerprint is {self._certificate.fingerprint}"
        self._log.notice(text, url=self.url, pid=os.getpid(), **facts)
        looking = loop.create_task(self._look_around(), name="looking around")
        await self._stopping.wait()
        await self._end_warming()
        await asyncio.gather(looking, return_exceptions=True)
        await self.stop(self.settings.drain_s)
        return 0

    async def _look_around(self) -> None:
        """Once calls are served: what a start need not wait for."""
        await asyncio.to_thread(sweep)
        await self._sweep_builds()
        conflict = await asyncio.to_thread(conflict_message)
        if conflict is not None:
            self._log.notice(conflict, level="warning")

    async def _sweep_builds(self) -> None:
        try:
            gone = await self._parts.state.builds.sweep()
        except (FlashmeshError, OSError) as error:
            self._log.notice(f"Builds that nobody uses could not be removed: {error}", level="warning")
            return
        if gone:
            self._log.notice(f"Removed {len(gone)} builds that nothing is deployed from.", builds=len(gone))

    def _on_signal(self) -> None:
        if self._stopping.is_set():
            if not self._leave_deployed:
                end_deployed(self._beginning.data.deployed)
            os._exit(130)  # the session pipe closes with this process: keeper, templates and workers end by themselves
        self._stopping.set()

    def _on_restart(self) -> None:
        """As SIGTERM, but another server follows: endpoints that outlive a server are left to it."""
        self._beginning.keep = self.settings.keep_endpoints and not self._stopping.is_set()
        self._leave_deployed = not self._stopping.is_set()
        self._stopping.set()

    # The end

    async def stop(self, drain_s: float) -> None:
        """Take nothing new, let what runs or is waited for finish for at most `drain_s` seconds, and close. What was
        accepted to run later and has not begun stays in the store."""
        parts = self._parts
        loop = asyncio.get_running_loop()
        until = loop.time() + drain_s
        tell_systemd("STOPPING=1")
        parts.door.close()
        await parts.deployments.close()
        dispatcher = parts.local.dispatcher
        dispatcher.pause()
        drained = Drained({str(call.id) for call in dispatcher.unfinished() if self._waits_for(call)})
        dispatcher.on_ended.append(lambda execution: drained.ended(str(execution.id)))
        dispatcher.on_requeued.append(lambda call: None if self._waits_for(call) else drained.ended(str(call.id)))
        if len(drained):
            self._log.notice(f"Stopping: {len(drained)} calls may finish, for at most {drain_s:g} s (again: now).")
        finished, answered = await asyncio.gather(drained.wait(drain_s), parts.passages.drained(drain_s))
        if not answered:
            self._log.notice("Requests to HTTP endpoints did not finish in time.", level="warning")
        left_s = max(0.0, until - loop.time())
        closing = [parts.local.target.close(left_s, keep=self._beginning.keep)]
        if parts.local.deployments is not None:
            closing.append(parts.local.deployments.close(left_s, keep=self._leave_deployed))
        await asyncio.gather(*closing)
        if not finished:
            self._log.notice(f"{len(drained)} calls did not finish in time.", level="warning", calls=len(drained))
        await parts.front.drain(HTTP_LAST_WORDS_S)
        await self._close_all()

    def _waits_for(self, execution: Execution) -> bool:
        """Whether stopping waits for it: somebody holds a connection for it, or it runs and would be ended."""
        if execution.kind == "sync":
            return True
        deployed = self._parts.local.deployments
        is_deployed = deployed is not None and deployed.target_of(execution.endpoint) is not None
        stays = self._leave_deployed if is_deployed else self._beginning.keep
        return execution.status is Status.RUNNING and not stays

    async def _close_all(self) -> None:
        while self._closers:
            closed = self._closers.pop()()
            if asyncio.iscoroutine(closed):
                await closed


def authority_of(settings: ServerSettings) -> Path | None:
    """The server's own authority, where it shows a certificate of that; a given one is known or trusted anyway."""
    return None if settings.tls_cert is not None else host_folder(settings.home) / AUTHORITY_FILE


def settle_memory() -> None:
    """What is there now stays as long as the server: the collector, which was off while it was made, need not look at
    it. Not even once: what a start leaves as garbage is not worth the time."""
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    gc.enable()


def serve(settings: ServerSettings, beginning: Beginning, *, ready_fd: int | None = None) -> int:
    """Run a server in this process until it is stopped; the exit code.

    Args:
        beginning: made for these settings; the caller closes it.
        ready_fd: written to when it answers or cannot (`Starter`).
    Raises:
        FlashmeshError: why it cannot start.
    """
    import uvloop

    starter = Starter(ready_fd)

    async def main() -> int:
        server = Server(settings, beginning=beginning, starter=starter)
        await server.start()
        return await server.run_until_stopped()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(main())
        except FlashmeshError as error:
            starter.failed(str(error))
            raise
