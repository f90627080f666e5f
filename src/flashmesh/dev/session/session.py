"""A session: everything of `flash run` but the server of its port. Scripts use it without one (headless.py).

It owns the project as scanned last, the queues, the link that workers and clients dial, and the local target. It lives
on one event loop. A reload compares two snapshots and replaces only what differs; one runs at a time, and the newest
state of the disk wins, because each reads what is there when it starts.
"""

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from flashmesh.deploy.local.assemble import LocalParts, local_parts
from flashmesh.deploy.local.environments import Environments
from flashmesh.deploy.local.inspections import Inspections
from flashmesh.deploy.local.manifest_file import write_manifest
from flashmesh.deploy.local.place import SessionPlace
from flashmesh.deploy.local.plans import requirements_of
from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.session import files, registration
from flashmesh.dev.session.closings import Closings
from flashmesh.dev.session.control import ProjectState, Send
from flashmesh.dev.session.generate import server_text
from flashmesh.dev.session.reload import Changes, Snapshot, compare
from flashmesh.dev.session.table import missing_lines, problem_lines
from flashmesh.executions.memory import MemoryStore
from flashmesh.functions.errors import EnvironmentFailed
from flashmesh.kit.ids import EndpointName
from flashmesh.project.closure import Closures
from flashmesh.project.model import Problem, Project, Route
from flashmesh.project.routes import build_routes, route_problems
from flashmesh.project.scan import scan
from flashmesh.queueing.endpoints import import_error
from flashmesh.queueing.link import LinkServer
from flashmesh.wire.frames import Log
from flashmesh.wire.signature import Signer

log = logging.getLogger("flashmesh.dev")
EARLY_IMPORT_S = 2.0
"""How long the start waits for files of which syntax cannot tell all. Longer: a first table that is more complete;
shorter: a file whose import never ends holds up the others less. What comes later is served then."""
ENVIRONMENT = "dev"
"""The name that signatures are bound to; as in WorkerSpec."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What differs between the programs that have a session."""

    server_url: str | None = None
    """Where HTTP routes are answered; None = this session has no server."""
    install: bool = True
    """Whether declared packages that are missing may be installed."""
    drain_s: float = 5.0
    """How long running calls may take to finish when the session ends."""


class Session:
    """Made with a project that was scanned already; `start`, then `reload` and `register` as things change, `close`."""

    def __init__(
        self,
        project: Project,
        *,
        place: SessionPlace,
        printer: LogPrinter,
        settings: SessionSettings,
        on_late_change: Callable[[Changes], None] = lambda _: None,
    ) -> None:
        """Args:
        on_late_change: told when an import has changed what is served, after `start` or `reload` had returned.
        """
        self._on_late_change = on_late_change
        self.state = ProjectState(project)
        self.routes: tuple[Route, ...] = ()
        self._place = place
        self._printer = printer
        self._closings = Closings(printer)
        self._settings = settings
        self._scanned = project
        self._inspections = Inspections()
        self._closures = Closures(project)
        self._snapshot = Snapshot({}, "")
        self._registered: dict[str, registration.Registered] = {}
        self._said: set[Problem] = set()
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[Any]] = set()
        self._parts: LocalParts
        self._link: LinkServer

    # Life

    async def start(self, *, on_server_text: Callable[[], None] = lambda: None) -> None:
        """Answer on the link, with every endpoint of the project declared; no template runs yet.

        Args:
            on_server_text: called as soon as `.flash/server.py` is written: starting a server takes longest.
        """
        self._parts = local_parts(
            store=MemoryStore(),
            place=self._place,
            project_root=self._scanned.root,
            install=self._settings.install,
            notice=self._on_notice,
            log=self._on_event,
        )
        self._link = LinkServer(
            self._place.link,
            self._parts.dispatcher,
            queries={
                "project": self.state.answer_project,
                "follow_project": self.state.answer_follow_project,
                "resolve": self.state.answer_resolve,
                "register": self._answer_register,
            },
            on_template=self._imported,
            on_log=self._on_log,
            log=self._on_event,
        )
        async with self._reloading:
            early = self._inspections.missing(self._scanned)
            importing = None
            if early:
                work = self._inspections.import_all(self._scanned.root, early)
                importing = self.in_background(work, "importing what syntax does not tell")
                await asyncio.wait((importing,), timeout=EARLY_IMPORT_S)
            self._write_server(self._complete(self._scanned))
            on_server_text()
            await self._take(self._scanned, importing=importing)
        await self._link.start()

    async def close(self, drain_s: float | None = None) -> None:
        """Let running calls finish, at most `drain_s`, then end every process and leave nothing behind."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._parts.target.close(self._settings.drain_s if drain_s is None else drain_s)
        await self._link.close()
        self._parts.volumes.close()
        self._closings.flush()

    def running_calls(self) -> int:
        endpoints: list[dict[str, Any]] = self._parts.dispatcher.status()["endpoints"]
        return sum(int(endpoint["running"]) for endpoint in endpoints)

    def in_background(self, work: Coroutine[Any, Any, Any], name: str) -> "asyncio.Task[Any]":
        """Run `work` until it ends or the session does; what it raises is logged."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._work_ended)
        return task

    def _work_ended(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    # The project

    async def reload(self, changed: frozenset[str]) -> Changes:
        """Scan again and replace what differs. `changed`: paths known to have changed, relative to the root."""
        async with self._reloading:
            root = self.state.project.root
            project = scan(root, previous=self._scanned, changed=[root / path for path in changed])
            return await self._take(project)

    async def _take(self, project: Project, *, importing: "asyncio.Task[Any] | None" = None) -> Changes:
        """Serve what a scan found: at once where syntax tells all, else after an import that nobody else waits for.

        Args:
            importing: that import, when it is under way already.
        """
        self._scanned = project
        changes = await self._apply(self._complete(project))
        missing = self._inspections.missing(project)
        if missing:
            self.in_background(self._import(missing, importing), "serving what syntax does not tell")
        return changes

    async def _import(self, missing: list[str], importing: "asyncio.Task[Any] | None") -> None:
        if importing is None:
            await self._inspections.import_all(self._scanned.root, missing)
        else:
            await asyncio.wait((importing,))
        async with self._reloading:
            changes = await self._apply(self._complete(self._scanned))
        self._on_late_change(changes)

    def _complete(self, project: Project) -> Project:
        """With what imports have told, and the problems of its routes."""
        project = self._inspections.complete(project)
        return dataclasses.replace(project, problems=(*project.problems, *route_problems(project)))

    async def _apply(self, project: Project) -> Changes:
        """Make what runs match `project`. Workers first: a route is served when its function is."""
        closures = Closures(project)
        builds = closures.builds()
        text = self._write_server(project)
        balanced = {resource.name for resource in project.resources if resource.is_load_balanced}
        queued: dict[str, str] = {name: build for name, build in builds.items() if name not in balanced}
        server = "\0".join([text, *(builds[name] for name in sorted(balanced))])
        before, self._snapshot = self._snapshot, Snapshot(queued, server)
        changes = compare(before, self._snapshot)
        self._closures = closures
        target = self._parts.target
        for name in changes.removed:
            await target.remove(EndpointName(name))
        for name in (*changes.added, *changes.updated):
            resource = project.resource(name)
            assert resource is not None
            await target.update(resource, project, builds[resource.name])
        self.state.replace(project, forget=frozenset((*changes.added, *changes.updated)))
        self._write_manifest()
        return changes

    def _write_server(self, project: Project) -> str:
        """Routes, their problems, and the text of `.flash/server.py`, which is written where there is a server."""
        self.routes = build_routes(project)
        self._say_problems(project.problems)
        text = server_text(project, self.routes)
        if self._settings.server_url is not None:
            files.write_server(project.root, text)
        return text

    def _write_manifest(self) -> None:
        projects = [(self.state.project, self._closures)]
        projects += [(entry.project, Closures(entry.project)) for entry in self._registered.values()]
        write_manifest(
            self._place.manifest, projects, sockets=self._parts.target.sockets(), server_url=self._settings.server_url
        )

    def _say_problems(self, problems: tuple[Problem, ...]) -> None:
        fresh = [problem for problem in problems if problem not in self._said]
        self._said = set(problems)
        for problem, line in zip(_ordered(fresh), problem_lines(fresh), strict=True):
            self._printer.notice(line, level=problem.severity)

    # Ahead of the first call

    def endpoints(self) -> list[str]:
        """Those that workers serve, in the order of their files."""
        return [resource.name for resource in self.state.project.resources if not resource.is_load_balanced]

    def prestart(self, name: str) -> bool:
        """Start a template now. False: it would have to install packages, which only a call may ask for."""
        return self._parts.target.prestart(EndpointName(name))

    async def prepare_all(self) -> None:
        """Install what every endpoint declares."""
        for name in self.endpoints():
            try:
                await self._parts.target.prepare(EndpointName(name))
            except EnvironmentFailed as error:
                self._printer.notice(f"{name}: {error}", level="error")

    async def find_missing(self) -> list[str]:
        """What to say about packages that functions declare and that are not here; the dev server is told, too."""
        project = self.state.project
        balanced = frozenset(resource.name for resource in project.resources if resource.is_load_balanced)
        missing = await asyncio.to_thread(_missing, project, self._parts.environments)
        if missing != self.state.missing:
            self.state.missing = missing
            self.state.touch()
        return missing_lines(missing, balanced, install=self._settings.install)

    # What a script registers

    async def _answer_register(self, arguments: dict[str, Any], send: Send) -> dict[str, Any] | None:
        async with self._reloading:
            signer = Signer(self._place.key_file.read_bytes(), ENVIRONMENT)
            found = registration.read(arguments, signer=signer, sources=self._place.sources)
            for entry in found:
                name = entry.resource.name
                known = self._registered.get(name)
                if known is not None and known.build == entry.build:
                    continue
                self._registered[name] = entry
                await self._parts.target.update(entry.resource, entry.project, entry.build)
            self._write_manifest()
        return {"builds": {entry.resource.name: entry.build for entry in found}}

    # What workers and templates say

    def _imported(self, endpoint: EndpointName, info: Mapping[str, Any]) -> None:
        """A template has tried to import its modules. The dispatcher has heard it before."""
        wanted = self._snapshot.builds.get(endpoint)
        if wanted is not None and info.get("build", wanted) != wanted:
            return  # of a build that was replaced meanwhile
        error = _relative_to(self._root_of(endpoint), info.get("error"))
        self.state.learn(endpoint, {**info, "error": error})
        if error is None or info.get("state") != "import_failed":
            return
        # The build before it must not go on answering: the user would debug a program that is no longer on disk.
        self._parts.dispatcher.fail_endpoint(endpoint, import_error(endpoint, error))
        place = f"{error.get('file') or endpoint}" + (f":{error['line']}" if error.get("line") else "")
        self._printer.notice(f"error: {place}: {error.get('reason')} (its routes answer 503)", level="error")

    def _root_of(self, endpoint: EndpointName) -> Path:
        registered = self._registered.get(endpoint)
        return registered.project.root if registered is not None else self.state.project.root

    def _on_log(self, frame: Log) -> None:
        self._closings.flush()
        self._printer.output(
            function=frame.function,
            endpoint=frame.endpoint,
            text=frame.text,
            stream=frame.stream,
            dropped=frame.dropped,
        )

    def _on_event(self, event: str, fields: Mapping[str, Any]) -> None:
        if event == "invocation":
            self._closings.add(fields)
        else:
            log.info("%s %s", event, dict(fields))

    def _on_notice(self, endpoint: str, line: str) -> None:
        self._closings.flush()
        self._printer.notice(f"[{endpoint}] {line}" if endpoint else line, level="warning")


def _missing(project: Project, environments: Environments) -> dict[str, list[str]]:
    found = {}
    for resource in project.resources:
        lacking = environments.missing([*requirements_of(resource), *project.requirements])
        if lacking:
            found[str(resource.name)] = lacking
    return found


def _relative_to(root: Path, error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An import's error with its file as people know it."""
    if not error:
        return None
    file = Path(str(error.get("file") or ""))
    return {**error, "file": file.relative_to(root).as_posix()} if file.is_relative_to(root) else dict(error)


def _ordered(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.severity != "error", problem.file, problem.line or 0))
