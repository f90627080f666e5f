"""The asyncio part of `flash run`: session, server, watcher and signals, from the start-up table to the clean end."""

import asyncio
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from flashmesh import __version__
from flashmesh.deploy.local.place import SessionPlace, sweep
from flashmesh.deploy.local.prestart import prestart
from flashmesh.deploy.local.printer import LogPrinter
from flashmesh.dev.session import files, table
from flashmesh.dev.session.front import ForkingServer, Server
from flashmesh.dev.session.plain_server import PlainServer
from flashmesh.dev.session.reload import Changes, in_words
from flashmesh.dev.session.run_options import RunOptions
from flashmesh.dev.session.server_process import ServerProcess
from flashmesh.dev.session.session import Session, SessionSettings
from flashmesh.functions.environment import conflict_message
from flashmesh.gateway.listening import Listener
from flashmesh.project.scan import scan

DRAIN_S = 5.0
"""How long the first Ctrl-C waits for running calls. A second one does not wait."""


class Foreground:
    """One `flash run`. `run` returns the exit code."""

    def __init__(
        self,
        *,
        options: RunOptions,
        listener: Listener,
        place: SessionPlace,
        process: ServerProcess | None,
        restart: Callable[[], ServerProcess],
        server_options: dict[str, Any],
        token: str | None,
    ) -> None:
        self._options = options
        self._listener = listener
        self._place = place
        self._process = process
        self._restart = restart
        self._server_options = server_options
        self._token = token
        self._printer = LogPrinter()
        self._stop = asyncio.Event()
        self._ready = asyncio.Event()
        self._failed: str | None = None
        self._session: Session
        self._server: Server

    async def run(self) -> int:
        root = self._options.root
        project = scan(root)
        if (
            not project.functions
            and not any(problem.prefix for problem in project.problems)
            and not project.needs_import
        ):
            for line in table.problem_lines(project.problems):
                self._printer.plain(line + "\n")
            self._printer.plain(table.MINIMAL_EXAMPLE.format(root=root))
            return 1
        self._install_signals()
        settings = SessionSettings(server_url=f"http://127.0.0.1:{self._listener.port}", install=self._options.install)
        self._session = Session(
            project,
            place=self._place,
            printer=self._printer,
            settings=settings,
            on_late_change=self._serve_if,
        )
        self._server = self._make_server()
        await self._session.start(on_server_text=self._server.serve)
        if not self._options.fork:
            self._ready.set()
        self._announce()
        await self._first(self._ready, self._stop)
        if not self._stop.is_set():
            self._print_start()
            self._begin_background_work()
            await self._stop.wait()
        return await self._end()

    # Beginning

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            # The session pipe closes with this process: keeper, templates, workers and server end by themselves.
            try:
                self._server.kill()
                files.remove_session(self._options.root, os.getpid())
                self._place.close()
            finally:  # whoever asks twice is obeyed, whatever could not be tidied up
                os._exit(130)
        self._stop.set()

    def _make_server(self) -> Server:
        if self._process is None:
            environment = {
                "FLASH_SESSION_LINK": str(self._place.link),
                "FLASH_DEV_OPTIONS": _json(self._server_options),
                "FLASH_PROJECT_ROOT": str(self._options.root),
            }
            return PlainServer(
                self._listener, root=self._options.root, environment=environment, pipe_fd=self._place.pipe_fd
            )
        return ForkingServer(
            self._process,
            restart=self._restart,
            printer=self._printer,
            on_ready=lambda _: self._ready.set(),
            on_failure=self._fail,
        )

    def _fail(self, reason: str) -> None:
        self._failed = reason
        self._stop.set()

    def _announce(self) -> None:
        root = self._options.root
        files.ignore_folder(root)
        session = files.SessionFile(
            pid=os.getpid(),
            link=str(self._place.link),
            url=self._listener.url,
            started_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            version=__version__,
        )
        files.write_session(root, session)

    def _print_start(self) -> None:
        listener = self._listener
        url = listener.url
        docs = f"{url}/docs?token={self._token}" if self._token else None
        if listener.instead_of is not None:
            self._printer.plain(f"Port {listener.instead_of} is taken, using {listener.port}\n")
        self._printer.plain(table.start_table(url, self._session.routes, docs=docs))
        if self._token:
            self._printer.plain(f"\n  Other machines need the token: Authorization: Bearer {self._token}\n")

    def _begin_background_work(self) -> None:
        session = self._session
        if self._options.reload:
            session.in_background(self._watch(), "watching for changes")
        session.in_background(self._say_missing(), "looking for missing packages")
        if self._options.prepare:
            session.in_background(session.prepare_all(), "installing packages")
        else:
            ahead = prestart(session.endpoints(), start=session.prestart, imported=session.state.imported)
            session.in_background(ahead, "starting templates")
        session.in_background(asyncio.to_thread(sweep), "sweeping after killed sessions")

    async def _say_missing(self) -> None:
        conflict = await asyncio.to_thread(conflict_message)
        if conflict:
            self._printer.notice(conflict, level="warning")
        for line in await self._session.find_missing():
            self._printer.notice(line, level="warning")

    # Changes

    async def _watch(self) -> None:
        from flashmesh.dev.session.watch import changes  # watchfiles: 30 ms that the first answer need not wait for

        def look() -> None:  # what was saved since the scan
            self._session.in_background(self._reload(frozenset()), "looking for changes")

        async for paths in changes(self._options.root, on_watching=look):
            await self._reload(paths)

    async def _reload(self, paths: frozenset[str]) -> None:
        done = await self._session.reload(paths)
        self._serve_if(done)
        if done:
            self._printer.notice(in_words(done, paths=paths))

    def _serve_if(self, changes: Changes) -> None:
        if changes.server:
            self._server.serve()

    # The end

    async def _end(self) -> int:
        running = self._session.running_calls()
        if running:
            self._printer.notice(f"Stopping: finishing {running} running call(s), at most {DRAIN_S:g} s (again: now)")
        files.remove_session(self._options.root, os.getpid())
        await asyncio.gather(self._server.close(DRAIN_S), self._session.close(DRAIN_S), return_exceptions=False)
        if self._failed:
            self._printer.notice(self._failed, level="error")
            return 1
        return 0

    async def _first(self, *events: asyncio.Event) -> None:
        """Until one of them is set."""
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
