"""One end of a link in an asyncio loop: `Link`, and how to dial one. `BlockingLink` is for code without a loop.

Both send whole frames of any size and hand out whole frames; what stands between (pieces, order, limits) is
wire/codec.py's. Neither redials: who owns a link decides what its loss means.
"""

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, cast

from flashmesh.functions.errors import LinkProtocolError
from flashmesh.wire import memfd, tls
from flashmesh.wire.blocking_link import BlockingLink
from flashmesh.wire.codec import Aside, Asks, Ping, Pong, Returned, Takes
from flashmesh.wire.frames import AnyFrame
from flashmesh.wire.keepalive import Keepalive, Pulse
from flashmesh.wire.lending import IDLE_S
from flashmesh.wire.memfd import Descriptor, Splices
from flashmesh.wire.passage import Passage
from flashmesh.wire.peer import Peer, peer_of, unreachable
from flashmesh.wire.reading import FrameReader
from flashmesh.wire.writing import Attached, FrameWriter, Passing

CONNECT_S: Final = 10.0
HANDSHAKE_S: Final = 10.0
"""How long a dialler may take for its TLS handshake."""
WATCHFUL: Final = Keepalive()
TCP_REDIAL_S: Final = (0.1, 2.0)
"""First and longest pause between attempts over TCP; whoever redials adds the jitter."""

OnFrame = Callable[["Link", AnyFrame], None]
OnLost = Callable[["Link", Exception | None], None]
Connect = Callable[["Link"], Awaitable[None]]
"""Connects a Link to its session. Raises OSError when nobody answers."""


class Link(asyncio.Protocol):
    """A connection in an asyncio loop. Serves both ends: dialled by `dial`, accepted by `loop.create_unix_server`.

    All frames sent in one turn of the loop leave in one write. While the other end does not read, frames stay here,
    where control frames may still pass payloads; the transport's own buffer never holds more than a few hundred KiB.

    Args:
        on_frame: called with each frame, in order. An exception it raises ends the connection.
        on_lost: called once, after the last frame: None after a close by either end, else what went wrong
            (LinkProtocolError when the other end does not speak our frames).
        mapped: large MessagePack payloads may be given out as read-only memoryviews, valid as long as they are
            referred to. For an owner that decodes them and nothing else.
        splices: shared by links of one process between which payloads are passed on as they came.
        keepalive: how a TCP connection is watched; Unix links need no watching.
    Attributes:
        peer_pid, peer_uid: of the process at the other end; -1 before the connection or where unknown.
        local: whether the other end is a process of this machine that the kernel vouches for: a Unix socket.
        paused: the other end does not read, and what is sent stays here.
        state: free for the owner.
        gathering: entered around several frames that came at once, so that what follows from them can leave together.
    """

    def __init__(
        self,
        on_frame: OnFrame,
        on_lost: OnLost,
        *,
        max_payload: int | None = None,
        mapped: bool = False,
        splices: Splices | None = None,
        keepalive: Keepalive | None = None,
    ) -> None:
        self.transport: asyncio.Transport | None = None
        self.peer_pid = -1
        self.peer_uid = -1
        self.local = self.paused = False
        self.state: Any = None
        self.gathering: AbstractContextManager[None] | None = None
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._reader = FrameReader(max_payload=max_payload, on_aside=self._aside, mapped=mapped, splices=splices)
        self._writer = FrameWriter(max_payload=max_payload, splices=splices)
        self._writer.passing = Passing.UNASKED if memfd.AVAILABLE else Passing.NO
        self._writer.borrower = self._reader.borrower
        self._keepalive = keepalive
        self._pulse: Pulse | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._passage: Passage | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False
        self._closing = False
        self._failure: Exception | None = None

    @property
    def is_open(self) -> bool:
        """Connected, and neither end has begun to close."""
        return self.transport is not None and not self._closing

    def hear(self, on_frame: OnFrame) -> None:
        """Give every frame from the next one on to `on_frame`."""
        self._on_frame = on_frame

    def send(self, frame: AnyFrame) -> None:
        """Send it with everything else of this turn. Nothing happens on a closed link: `on_lost` tells.

        Raises PayloadTooLarge.
        """
        if self._closing:
            return
        self._writer.put(frame)
        if not self._scheduled:
            self._schedule()

    def send_now(self, frame: AnyFrame) -> None:
        """Send it at once, for an end that has nothing else to do. Otherwise as `send`."""
        if self._closing:
            return
        self._writer.put(frame)
        if self._loop is not None:
            self._flush()

    def close(self) -> None:
        """Send what waits, then close. Frames that still come are not delivered."""
        self._closing = True
        if self.transport is not None and not self._unsent:
            self.transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """Close now; what waits is dropped. `error` is what `on_lost` is told."""
        self._closing = True
        self._failure = self._failure or error
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has the methods and not the class
        self._loop = asyncio.get_running_loop()
        self.local = is_unix(transport)
        if self.local:
            self.peer_pid, self.peer_uid = peer_of(transport.get_extra_info("socket"))
        else:
            self._writer.passing = Passing.NO
            if self._keepalive is not None:
                self._pulse = Pulse(self._keepalive, self._loop, transport, self._say, self.abort)
        if self._writer or self._closing:
            self._flush()

    def data_received(self, data: bytes, descriptors: Sequence[Descriptor] = ()) -> None:
        if self._pulse is not None:
            self._pulse.heard()
        try:
            found = self._reader.feed_with(data, descriptors) if descriptors else self._reader.feed(data)
        except LinkProtocolError as error:
            self.abort(error)
            return
        if len(found) > 1 and self.gathering is not None:
            with self.gathering:
                self._hand_out(found)
        else:
            self._hand_out(found)

    def _hand_out(self, found: list[AnyFrame]) -> None:
        for frame in found:
            if self._closing:
                return
            self._on_frame(self, frame)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self._passage is not None and self._passage.busy:
            self._passage.drained()
        else:
            self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self.transport = None
        if self._passage is not None:
            self._passage.close()
        if self._pulse is not None:
            self._pulse.stop()
        if self._idle is not None:
            self._idle.cancel()
        self._reader.close()
        self._writer.close()
        self._on_lost(self, self._failure or exc)

    @property
    def _unsent(self) -> bool:
        return bool(self._writer) or (self._passage is not None and self._passage.busy)

    def _schedule(self) -> None:
        if not self._scheduled and not self.paused and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        transport = self.transport
        if transport is None or self.paused or (self._passage is not None and self._passage.busy):
            return
        if self._writer:
            piece = self._writer.take()
            if isinstance(piece, Attached):
                self._through().send(piece, self._flush_soon)
                return
            if piece:
                transport.write(piece)  # may call pause_writing
            elif self._writer:
                return  # a large payload waits for the answer whether the other end takes descriptors
        if not self._writer:
            if self._closing:
                transport.close()
        elif self._loop is not None and not self._stalled():
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush_soon(self) -> None:
        if self._unsent or self._closing:
            self._schedule()

    def _stalled(self) -> bool:
        return self.paused

    # What the two ends say to each other about the link itself

    def _say(self, aside: Aside) -> None:
        self._writer.put_aside(aside)
        self._schedule()

    def _aside(self, aside: Aside) -> None:
        if isinstance(aside, Ping):
            self._say(Pong())
        elif isinstance(aside, Asks):
            takes = memfd.AVAILABLE and self.local
            if takes:
                self._through().read_here()
            self._say(Takes(takes, takes))
        elif isinstance(aside, Takes):
            able = memfd.AVAILABLE and self.local
            self._writer.answered(aside if able else Takes())
            self._schedule()
        elif isinstance(aside, Returned) and self._writer.lender is not None:
            self._writer.lender.returned(aside.numbers)
            self._writer.lender.sort()
            self._watch_files()

    def _watch_files(self) -> None:
        """Give files up that are not used any more, after a while."""
        if self._idle is None and self._loop is not None:
            self._idle = self._loop.call_later(IDLE_S, self._give_up)

    def _give_up(self) -> None:
        self._idle = None
        lender = self._writer.lender
        if lender is not None:
            lender.give_up(before=time.monotonic() - IDLE_S)
            self._writer.put_files()
            self._schedule()
            if lender.idle:
                self._watch_files()

    def _through(self) -> Passage:
        if self._passage is None:
            assert self.transport is not None and self._loop is not None
            self._passage = Passage(self.transport, self._loop, self._received, self.abort)
        return self._passage

    def _received(self, data: bytes, descriptors: list[Descriptor]) -> None:
        """What came past the transport."""
        if not data:
            if self.transport is not None:
                self.transport.close()
            return
        self.data_received(data, descriptors)


def is_unix(transport: asyncio.BaseTransport) -> bool:
    """Whether both ends are on this machine, connected by a Unix socket."""
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.family == socket.AF_UNIX


async def dial(path: str | Path, on_frame: OnFrame, on_lost: OnLost, *hello: AnyFrame) -> Link:
    """Connect to a session's socket; `hello` leaves in the first write. Raises LinkLost when nobody listens."""
    link = Link(on_frame, on_lost)
    for frame in hello:
        link.send(frame)
    await by_unix(path)(link)
    return link


async def dial_tcp(
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    on_frame: OnFrame,
    on_lost: OnLost,
    *hello: AnyFrame,
    server_name: str | None = None,
    keepalive: Keepalive = WATCHFUL,
    connect_s: float = CONNECT_S,
    mapped: bool = False,
) -> Link:
    """Connect to a session's TCP port; `hello` leaves in the first write.

    Args:
        ssl_context: from wire/tls.py; None = without TLS, inside one machine or a network that protects it.
        server_name: the name the certificate must carry; default: `host`.
        connect_s: how long connecting and the TLS handshake may take.
    Raises:
        LinkLost: nobody listens, or not in time. UntrustedServer: its certificate is not the one expected.
    """
    link = Link(on_frame, on_lost, mapped=mapped, keepalive=keepalive)
    for frame in hello:
        link.send(frame)
    await by_tcp(host, port, ssl_context, server_name=server_name, connect_s=connect_s)(link)
    return link


def by_unix(path: str | Path) -> Connect:
    """Connects a link to the session whose socket is at `path`. Raises LinkLost."""

    async def connect(link: Link) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: link, str(path))
        except OSError as error:
            raise unreachable(path, error) from error

    return connect


def by_tcp(
    host: str,
    port: int,
    ssl_context: ssl.SSLContext | None,
    *,
    server_name: str | None = None,
    connect_s: float = CONNECT_S,
) -> Connect:
    """Connects a link to a session's TCP port; arguments and errors as of `dial_tcp`."""
    named = (server_name or host) if ssl_context is not None else None

    async def connect(link: Link) -> None:
        try:
            async with asyncio.timeout(connect_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: link, host, port, ssl=ssl_context, server_hostname=named
                )
        except OSError as error:
            raise tls.refused(host, port, error, connect_s) from error

    return connect


async def serve_tcp(
    accept: Callable[[], Link], host: str, port: int, ssl_context: ssl.SSLContext | None, *, backlog: int = 1024
) -> asyncio.Server:
    """Listen for links on a TCP port; `accept` makes each connection's. Raises OSError.

    `server.sockets` tells the port when 0 was asked for. A dialler whose handshake takes too long is dropped.
    """
    return await asyncio.get_running_loop().create_server(
        accept,
        host,
        port,
        ssl=ssl_context,
        ssl_handshake_timeout=HANDSHAKE_S if ssl_context is not None else None,
        backlog=backlog,
        reuse_address=True,
    )


__all__ = [
    "TCP_REDIAL_S", "BlockingLink", "Connect", "Keepalive", "Link", "Peer", "by_tcp", "by_unix", "dial", "dial_tcp",
    "is_unix", "peer_of", "serve_tcp",
]  # fmt: skip
