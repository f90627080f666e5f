"""The session's end of the link: one Unix socket on which workers, templates and clients report.

Who connects is told by the kernel (same user only) and by its HELLO. A worker's frames go to the dispatcher, a
template's to the target that started it, a client's become calls and questions (`client_end.py`).
"""

import asyncio
import os
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.kit.ids import EndpointName, WorkerId
from flashmesh.kit.tasks import Tasks
from flashmesh.queueing.client_end import ClientEnd
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.logbook import LogBook
from flashmesh.queueing.ports import EventLog, QueryHandler
from flashmesh.queueing.queries import built_in
from flashmesh.queueing.slots import Worker
from flashmesh.wire.connection import Keepalive, Link, serve_tcp
from flashmesh.wire.frames import PROTOCOL_VERSION, AnyFrame, Hello, Log, Ready, WorkerGone
from flashmesh.wire.memfd import Splices

HELLO_S: Final = 5.0
"""How long a connection may stay silent before its HELLO."""
CLOSE_S: Final = 1.0
"""How long the last bytes of a closing session may take to leave."""
WORKERS_BUSY: Final = Keepalive(wants_pong=False)
"""Over TCP: a worker may run a user's code for any time without answering; its machine still acknowledges."""


class LinkServer:
    """Serves the socket at `path` between `start` and `close`."""

    def __init__(
        self,
        path: Path,
        dispatcher: Dispatcher,
        *,
        queries: Mapping[str, QueryHandler] | None = None,
        on_template: Callable[[EndpointName, Mapping[str, Any]], None] | None = None,
        on_log: Callable[[Log], None] | None = None,
        log: EventLog | None = None,
        check_token: Callable[[Hello], str | None] | None = None,
    ) -> None:
        """Args:
        queries: questions answered beside the built-in ones (queries.py), or in their place.
        on_template: told what a template said at READY, after the dispatcher.
        on_log: given each line of user code, after it was kept for those who follow.
        check_token: given each HELLO that came over TCP, where no kernel says who dials; what it returns is why that
            connection is refused. Without it every one is.
        """
        self.dispatcher = dispatcher
        self.logbook = LogBook()
        self.queries = {**built_in(dispatcher, self.logbook), **(queries or {})}
        self.on_template = on_template
        self.on_log = on_log
        self.log: EventLog = log or (lambda event, fields: None)
        self.gathering: AbstractContextManager[None] | None = None
        """As of each Link. To be set before `start`."""
        self._path = path
        self._check_token = check_token
        self._servers: list[asyncio.AbstractServer] = []
        self._splices: Splices | None = None
        self._links: set[Link] = set()
        self._tasks = Tasks()
        self._emptied = asyncio.Event()
        self.closing = False

    async def start(self) -> None:
        """Bind the socket, in a directory of mode 0700, and accept. Raises OSError when that cannot be."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.parent.chmod(0o700)
        self._path.unlink(missing_ok=True)
        loop = asyncio.get_running_loop()
        self._splices = Splices(loop)
        self._servers.append(await loop.create_unix_server(self._accept, str(self._path), backlog=1024))
        self._path.chmod(0o600)

    async def listen(self, host: str, port: int, ssl_context: ssl.SSLContext | None) -> int:
        """Accept over TCP as well, from those `check_token` admits; the port, for when 0 was asked for. After `start`.

        Args:
            ssl_context: wire/tls.py's; None only where the network itself is protected.
        Raises:
            OSError: the address cannot be had.
        """
        server = await serve_tcp(self._accept, host, port, ssl_context)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop accepting, close every connection and wait for the handlers.

        Workers lose their session by that and nothing else: what they run is not judged lost, the next session asks.
        """
        self.closing = True
        for server in self._servers:
            server.close()
        for link in list(self._links):
            link.close()
        await self._tasks.close()
        if self._links:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await self._emptied.wait()
            except TimeoutError:
                for link in list(self._links):
                    link.abort()
        if self._splices is not None:
            self._splices.close()
        self._path.unlink(missing_ok=True)

    def connections(self) -> dict[str, int]:
        """How many are open, by role."""
        return Counter(str(link.state.role) for link in self._links)

    def _accept(self) -> Link:
        link = Link(_take, self._lost, splices=self._splices, keepalive=WORKERS_BUSY)
        link.gathering = self.gathering
        loop = asyncio.get_running_loop()
        link.state = _Stranger(self, loop.call_later(HELLO_S, link.abort, LinkProtocolError("No HELLO came in time.")))
        self._links.add(link)
        self._emptied.clear()
        return link

    def _lost(self, link: Link, error: Exception | None) -> None:
        self._links.discard(link)
        if not self._links:
            self._emptied.set()
        if isinstance(error, LinkProtocolError):
            self.log("link_protocol_error", {"role": link.state.role, "pid": link.peer_pid, "reason": str(error)})
        link.state.lost(link)

    def greet(self, link: Link, hello: Hello) -> None:
        """Give the connection the part its HELLO asks for. Closes it on a wrong version or user."""
        if hello.version != PROTOCOL_VERSION:
            link.abort(
                LinkProtocolError(f"The other end speaks version {hello.version} of the link, not {PROTOCOL_VERSION}.")
            )
        elif link.peer_uid not in (-1, os.getuid()):
            link.abort(LinkProtocolError(f"User {link.peer_uid} may not use this session."))
        elif not link.local and (refusal := self._refusal(hello)) is not None:
            link.abort(LinkProtocolError(f"A {hello.role} of {hello.endpoint or 'no endpoint'} was refused: {refusal}"))
        elif hello.role == "worker":
            link.state = _WorkerEnd(self, hello)
        elif hello.role == "template":
            link.state = _TemplateEnd(self, hello)
            self.dispatcher.source.template_linked(EndpointName(hello.endpoint), hello, link)
        else:
            link.state = ClientEnd(
                link, dispatcher=self.dispatcher, queries=self.queries, tasks=self._tasks, log=self.log
            )

    def _refusal(self, hello: Hello) -> str | None:
        return "nobody is admitted over TCP here." if self._check_token is None else self._check_token(hello)


def _take(link: Link, frame: AnyFrame) -> None:
    link.state.take(link, frame)


class _Stranger:
    """A connection that has not said HELLO."""

    role = "unknown"

    def __init__(self, server: LinkServer, timer: asyncio.TimerHandle) -> None:
        self._server = server
        self._timer = timer

    def take(self, link: Link, frame: AnyFrame) -> None:
        self._timer.cancel()
        if isinstance(frame, Hello):
            self._server.greet(link, frame)
        else:
            link.abort(LinkProtocolError(f"The first frame was {type(frame).__name__}, not HELLO."))

    def lost(self, link: Link) -> None:
        self._timer.cancel()


class _WorkerEnd:
    role = "worker"

    def __init__(self, server: LinkServer, hello: Hello) -> None:
        self._server = server
        self._hello = hello
        self._worker: Worker | None = None

    def take(self, link: Link, frame: AnyFrame) -> None:
        if not isinstance(frame, Ready):
            return
        dispatcher = self._server.dispatcher
        worker = self._worker = dispatcher.worker_ready(self._hello, frame.free, link, remote=not link.local)
        if worker is None:
            link.close()
        else:
            hear = dispatcher.worker_frame
            link.hear(lambda link, frame: hear(worker, frame))  # straight there: it is most of what a server hears

    def lost(self, link: Link) -> None:
        if self._worker is not None and not self._server.closing:
            self._server.dispatcher.worker_lost(self._worker)


class _TemplateEnd:
    role = "template"

    def __init__(self, server: LinkServer, hello: Hello) -> None:
        self._server = server
        self._endpoint = EndpointName(hello.endpoint)

    def take(self, link: Link, frame: AnyFrame) -> None:
        server, endpoint = self._server, self._endpoint
        if isinstance(frame, Log):
            server.logbook.add(frame)
            if server.on_log is not None:
                server.on_log(frame)
        elif isinstance(frame, Ready):
            server.dispatcher.template_ready(endpoint, frame.info)
            if server.on_template is not None:
                server.on_template(endpoint, frame.info)
        elif isinstance(frame, WorkerGone):
            server.dispatcher.worker_gone(endpoint, WorkerId(frame.worker), frame.status, frame.reason, frame.begun)

    def lost(self, link: Link) -> None:
        self._server.dispatcher.source.template_unlinked(self._endpoint, link)
