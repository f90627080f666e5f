"""Connections to endpoints on other machines: opened by the rules, kept for the next call, closed with their loop.

An endpoint that keeps a connection open after its answer is called on the same one again: a TLS handshake costs more
than most calls. What waits unused for longer than servers commonly allow is closed by us, and one that the other side
has closed or written to is never used: a call that goes out on a dead connection could not be told from one that ran.
"""

import asyncio
import select
import socket
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Final

from flashmesh.routing.addresses import Address, Rules
from flashmesh.routing.connecting import CONNECT_S, allowed, client_context, connect, fixed_hosts

IDLE_S: Final = 4.0
"""Uvicorn closes after 5 s, most proxies after 15 to 60."""
MOST_IDLE: Final = 32
"""Kept for one endpoint at a time; each costs a file descriptor here and there."""
_READ_BYTES: Final = 256 * 1024


class Stream:
    """One asynchronous connection. `reused`: it has carried a call before."""

    __slots__ = ("_expiry", "_reader", "_writer", "reused")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._expiry: asyncio.TimerHandle | None = None
        self.reused = False

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):  # closed early: what the peer has to say about it is read next
            self._writer.write(data)
            await self._writer.drain()

    async def receive(self) -> bytes:
        """What came; empty at the connection's end."""
        try:
            return await self._reader.read(_READ_BYTES)
        except (ConnectionError, ssl.SSLError):
            return b""

    @property
    def is_usable(self) -> bool:
        """Whether the other side has neither closed it nor said anything that nobody asked for."""
        buffered = getattr(self._reader, "_buffer", b"")
        return not (self._writer.is_closing() or self._reader.at_eof() or self._reader.exception() or buffered)

    def rest(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reused = True
        self._expiry = loop.call_later(IDLE_S, self.close)

    def wake(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def close(self) -> None:
        self.wake()
        self._writer.transport.abort()


class Network:
    """What one process knows of other machines. Safe to use from several threads and loops.

    Args:
        make_context: TLS towards endpoints, made when it is first needed: reading authorities takes 10 ms. Default: the
            system's.
    """

    def __init__(self, rules: Rules | None = None, *, make_context: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._rules = rules or Rules()
        self._make_context = make_context or partial(client_context, "")
        self._context: ssl.SSLContext | None = None
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopPool] = weakref.WeakKeyDictionary()
        self._sockets: dict[str, list[tuple[float, socket.socket]]] = {}
        self._lock = threading.Lock()

    # --- in a loop ---

    async def open(self, address: Address) -> Stream:
        """A connection that rested, or a new one; to be given back. Raises OSError, AddressRefused."""
        pool = await self._pool()
        return pool.take(address.origin) or await self._open(address)

    def give_back(self, address: Address, stream: Stream, *, keep: bool) -> None:
        """The end of a call. `keep`: its answer is complete, and the other side leaves the connection open."""
        pool = self._loops.get(asyncio.get_running_loop()) if keep else None
        if pool is None or not stream.is_usable or not pool.give(address.origin, stream):
            stream.close()

    async def _pool(self) -> "_LoopPool":
        loop = asyncio.get_running_loop()
        pool = self._loops.get(loop)
        if pool is None:
            pool = self._loops[loop] = _LoopPool(loop)
            await pool.hold()
        return pool

    async def _open(self, address: Address) -> Stream:
        loop = asyncio.get_running_loop()
        context = self.context() if address.scheme == "https" else None
        last: OSError = ConnectionRefusedError(f"nothing is known of {address.host}")
        async with asyncio.timeout(CONNECT_S):
            for host in fixed_hosts(address) or (address.host,):
                found = await loop.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)
                for family, _, _, _, where in allowed(found, address, self._rules):
                    try:
                        reader, writer = await asyncio.open_connection(
                            where[0],
                            where[1],
                            family=family,
                            ssl=context,
                            server_hostname=address.host if context is not None else None,
                        )
                    except ssl.SSLError:
                        raise  # another of its addresses would show the same certificate
                    except OSError as error:
                        last = error
                    else:
                        return Stream(reader, writer)
        raise last

    # --- blocking ---

    def open_blocking(self, address: Address, *, seconds: float) -> socket.socket:
        """The same for synchronous code. Raises OSError, AddressRefused."""
        return self._resting(address.origin) or self._connected(address, seconds)

    def give_back_blocking(self, address: Address, peer: socket.socket, *, keep: bool) -> None:
        """As `give_back`."""
        if keep:
            with self._lock:
                resting = self._sockets.setdefault(address.origin, [])
                if len(resting) < MOST_IDLE:
                    resting.append((monotonic(), peer))
                    return
        peer.close()

    def close(self) -> None:
        """Close what rests, where a process goes on without it."""
        with self._lock:
            for resting in self._sockets.values():
                for _, peer in resting:
                    peer.close()
            self._sockets.clear()

    def _resting(self, origin: str) -> socket.socket | None:
        with self._lock:
            resting = self._sockets.get(origin)
            while resting:
                since, peer = resting.pop()
                if monotonic() - since < IDLE_S and not select.select([peer], [], [], 0)[0]:
                    return peer
                peer.close()
        return None

    def _connected(self, address: Address, seconds: float) -> socket.socket:
        peer = connect(address, self._rules, seconds=seconds)
        if address.scheme == "http":
            peer.setblocking(False)  # whoever uses it waits with a limit of the call's own
            return peer
        try:
            return self.context().wrap_socket(peer, server_hostname=address.host)
        except BaseException:
            peer.close()
            raise

    def context(self) -> ssl.SSLContext:
        """TLS towards endpoints. Raises what `make_context` raises."""
        if self._context is None:
            self._context = self._make_context()
        return self._context


class _LoopPool:
    """The connections of one loop that rest. They end with it: `asyncio.run` closes every generator it has begun."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._resting: dict[str, list[Stream]] = {}
        self._held = self._until_the_loop_ends()

    async def hold(self) -> None:
        await anext(self._held)

    def take(self, origin: str) -> Stream | None:
        resting = self._resting.get(origin)
        while resting:
            stream = resting.pop()
            stream.wake()
            if stream.is_usable:
                return stream
            stream.close()
        return None

    def give(self, origin: str, stream: Stream) -> bool:
        """Whether it may rest here."""
        resting = [other for other in self._resting.get(origin, ()) if other.is_usable]
        loop = self._loop()
        rests = loop is not None and len(resting) < MOST_IDLE
        if loop is not None and rests:
            resting.append(stream)
            stream.rest(loop)
        self._resting[origin] = resting
        return rests

    async def _until_the_loop_ends(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            for resting in self._resting.values():
                for stream in resting:
                    stream.close()
            self._resting.clear()
            await asyncio.sleep(0)  # a transport lets go of its socket one turn after it was told to
