"""One HTTP exchange with a peer, in an event loop or blocking.

Same-host peers are reached by one Unix connection per call: connecting is instant or refused, the listen backlog is the
peer's queue, and closing the connection takes the call back. Others are reached over TCP, TLS as their address says, on
connections that are kept where the peer keeps them (network.py). Nothing here decides where a call goes or is retried.
"""

import asyncio
import select
import socket
import ssl
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from time import monotonic
from typing import Final

import httptools

from flashmesh.functions.errors import EndpointUnreachable, QueueFull, WaitTimedOut, WorkerLost
from flashmesh.routing.addresses import Address
from flashmesh.routing.connecting import CA_FILE
from flashmesh.worker.calls.network import Network, Stream

PEER_WAIT_S: Final = 300.0
"""How long a call of a peer is waited for: queue, cold start and run together."""
_FIRST_BYTES: Final = 64 * 1024
"""Most answers are smaller. Larger: the buffer of every read is memory mapped anew, at 30 µs."""
_READ_BYTES: Final = 256 * 1024
_NONBLOCK: Final = getattr(socket, "SOCK_NONBLOCK", 0)
"""A socket that is made so needs not be told; macOS cannot."""
_RECORD_HEAD: Final = 5

Where = str | Address
"""A Unix socket's path, or an address over TCP."""


class NotReached(EndpointUnreachable):
    """Nobody accepts connections at the endpoint's address, so nothing ran there. `flash status` shows what is up."""


class Response:
    """A response as it comes in.

    Attributes:
        status: 0 until the head is here. complete: the body is here too.
        bodiless: it answers HEAD, so that its length is one of a body that does not come.
    """

    __slots__ = ("_body", "_headers", "_keeps", "_named", "_parser", "bodiless", "complete", "head_done", "status")

    def __init__(self, *, bodiless: bool = False) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._keeps = False
        self.bodiless = bodiless
        self.status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._named: dict[str, str] | None = None
        self.head_done = False
        self.complete = False

    @property
    def headers(self) -> dict[str, str]:
        """By their names in lower case. Made when asked for: most answers are their status and their body."""
        if self._named is None:
            self._named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in self._headers}
        return self._named

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip()

    def feed(self, data: bytes) -> None:
        """Take what came; an empty piece is the end of the connection. Raises WorkerLost when that is too early."""
        if data:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise EndpointUnreachable(
                    f"The answer is not HTTP ({error}). Is the endpoint's address right?"
                ) from error
            return
        lengthless = self.headers.keys().isdisjoint(("content-length", "transfer-encoding"))
        if not self.head_done or not lengthless:
            raise WorkerLost()
        self.complete = True

    @property
    def keeps(self) -> bool:
        """Whether the connection may carry another call: the answer is complete, and the other side leaves it open."""
        return self.complete and self._keeps and not self.bodiless

    def take(self) -> bytes:
        """The part of the body that came since the last time."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return body

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))
        self._named = None

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            return  # a word in between (RFC 9110, 15.2); the answer follows
        self.head_done = True
        self.complete = self.bodiless

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self.head_done:
            self.complete = True
            self._keeps = self._parser.should_keep_alive()  # the parser knows it only now
        else:
            self._headers, self._named = [], None


async def exchange(
    where: Where, request: bytes, *, seconds: float = PEER_WAIT_S, network: Network | None = None
) -> tuple[Response, bytes]:
    """Send a request and read the whole answer. Cancelling closes the connection, which cancels the call.

    Raises QueueFull, NotReached, WorkerLost (the connection ended without an answer), WaitTimedOut.
    """
    try:
        async with asyncio.timeout(seconds):
            if isinstance(where, Address):
                return await _exchange_over_network(where, request, network or Network())
            with _unix(where) as peer:
                response = Response(bodiless=_is_head(request))
                await _send(peer, request)
                while not response.complete:
                    response.feed(await _receive(peer, _size(response)))
                return response, response.take()
    except TimeoutError as error:
        raise _too_long(where, seconds) from error


def exchange_blocking(
    where: Where, request: bytes, *, seconds: float = PEER_WAIT_S, network: Network | None = None
) -> tuple[Response, bytes]:
    """The same for synchronous code; an exception raised by a signal handler closes the connection as well."""
    until = monotonic() + seconds
    peer, response = _opened_blocking(where, seconds, network), Response(bodiless=_is_head(request))
    try:
        _send_blocking(peer, request, where, until, seconds)
        while not response.complete:
            response.feed(_receive_blocking(peer, _size(response), where, until, seconds))
        return response, response.take()
    finally:
        _give_back_blocking(where, peer, network, response)


async def pieces(
    where: Where, request: bytes, *, seconds: float, network: Network | None = None
) -> AsyncGenerator[tuple[Response, bytes], None]:
    """The answer's body as it comes; `seconds` limits each wait. Closing the iterator closes the connection."""
    if isinstance(where, Address):
        over_network = _pieces_over_network(where, request, network or Network(), seconds)
        try:
            async for piece in over_network:
                yield piece
        finally:
            await over_network.aclose()
        return
    with _unix(where) as peer:
        response = Response(bodiless=_is_head(request))
        await _send(peer, request)
        while not response.complete:
            try:
                async with asyncio.timeout(seconds):
                    response.feed(await _receive(peer, _size(response)))
            except TimeoutError as error:
                raise _too_long(where, seconds) from error
            if response.head_done:
                yield response, response.take()


def pieces_blocking(
    where: Where, request: bytes, *, seconds: float, network: Network | None = None
) -> Iterator[tuple[Response, bytes]]:
    """The same for synchronous code."""
    peer, response = _opened_blocking(where, seconds, network), Response(bodiless=_is_head(request))
    try:
        _send_blocking(peer, request, where, monotonic() + seconds, seconds)
        while not response.complete:
            response.feed(_receive_blocking(peer, _size(response), where, monotonic() + seconds, seconds))
            if response.head_done:
                yield response, response.take()
    finally:
        _give_back_blocking(where, peer, network, response)


class RecordReader:
    """Cuts a stream of (kind byte, 4-byte length, data) records."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The records that are complete now, in order. To be exhausted before the next piece is fed."""
        buffer = self._buffer
        buffer += data
        found = []
        at = 0
        while len(buffer) - at >= _RECORD_HEAD:
            end = at + _RECORD_HEAD + int.from_bytes(buffer[at + 1 : at + _RECORD_HEAD], "big")
            if len(buffer) < end:
                break
            found.append((bytes(buffer[at : at + 1]), bytes(buffer[at + _RECORD_HEAD : end])))
            at = end
        del buffer[:at]
        return iter(found)


def _is_head(request: bytes) -> bool:
    return request.startswith(b"HEAD ")


def _size(response: Response) -> int:
    return _READ_BYTES if response.head_done else _FIRST_BYTES


def _unix(path: str) -> socket.socket:
    """A connected socket. Raises QueueFull when the peer's backlog is full, NotReached when nobody listens."""
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | _NONBLOCK)
    try:
        if not _NONBLOCK:
            peer.setblocking(False)
        peer.connect(path)  # a full backlog must say so and not block
    except BlockingIOError as error:
        peer.close()
        raise QueueFull(f"Too many calls wait for the endpoint at {path}. Try again in a second.") from error
    except OSError as error:
        peer.close()
        raise _not_reached(path, error) from error
    except BaseException:
        peer.close()
        raise
    return peer


async def _opened(network: Network, address: Address) -> Stream:
    try:
        return await network.open(address)
    except OSError as error:  # TimeoutError and ssl.SSLError, too
        raise _not_reached(address, error) from error


async def _exchange_over_network(address: Address, request: bytes, network: Network) -> tuple[Response, bytes]:
    stream, response = await _opened(network, address), Response(bodiless=_is_head(request))
    try:
        await stream.send(request)
        while not response.complete:
            response.feed(await stream.receive())
        return response, response.take()
    finally:
        network.give_back(address, stream, keep=response.keeps)


async def _pieces_over_network(
    address: Address, request: bytes, network: Network, seconds: float
) -> AsyncGenerator[tuple[Response, bytes], None]:
    stream, response = await _opened(network, address), Response(bodiless=_is_head(request))
    try:
        await stream.send(request)
        while not response.complete:
            try:
                async with asyncio.timeout(seconds):
                    response.feed(await stream.receive())
            except TimeoutError as error:
                raise _too_long(address, seconds) from error
            if response.head_done:
                yield response, response.take()
    finally:
        network.give_back(address, stream, keep=response.keeps)


def _opened_blocking(where: Where, seconds: float, network: Network | None) -> socket.socket:
    if isinstance(where, str):
        return _unix(where)
    try:
        return (network or Network()).open_blocking(where, seconds=seconds)
    except OSError as error:
        raise _not_reached(where, error) from error


def _give_back_blocking(where: Where, peer: socket.socket, network: Network | None, response: Response) -> None:
    if isinstance(where, Address) and network is not None:
        network.give_back_blocking(where, peer, keep=response.keeps)
    else:
        peer.close()


async def _send(peer: socket.socket, request: bytes) -> None:
    try:
        sent = peer.send(request)
    except BlockingIOError:
        sent = 0
    except OSError:
        return  # closed early: what the peer has to say about it is read next
    if sent < len(request):
        try:
            await asyncio.get_running_loop().sock_sendall(peer, memoryview(request)[sent:])
        except OSError:
            return


async def _receive(peer: socket.socket, size: int) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(peer, size)
    except ConnectionError:
        return b""


def _send_blocking(peer: socket.socket, request: bytes, address: Where, until: float, seconds: float) -> None:
    sent = 0
    try:
        if not isinstance(peer, ssl.SSLSocket):
            with suppress(BlockingIOError):
                sent = peer.send(request)
        if sent < len(request):
            peer.settimeout(max(0.001, until - monotonic()))
            peer.sendall(memoryview(request)[sent:])
            peer.setblocking(isinstance(peer, ssl.SSLSocket))
    except TimeoutError as error:
        raise _too_long(address, seconds) from error
    except OSError:
        return  # as above


def _receive_blocking(peer: socket.socket, size: int, address: Where, until: float, seconds: float) -> bytes:
    left = until - monotonic()
    if left <= 0:
        raise _too_long(address, seconds)
    if isinstance(peer, ssl.SSLSocket):
        peer.settimeout(left)
    else:
        ready = select.poll()  # a timeout of the socket's own would be set for each call
        ready.register(peer.fileno(), select.POLLIN)
        if not ready.poll(left * 1000):
            raise _too_long(address, seconds)
    try:
        return peer.recv(size)
    except TimeoutError as error:
        raise _too_long(address, seconds) from error
    except ConnectionError:
        return b""


def _not_reached(where: Where, error: OSError) -> NotReached:
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = f"its certificate cannot be trusted: {error.verify_message}; {CA_FILE} names an authority of your own"
    elif isinstance(error, TimeoutError):
        reason = "it does not answer"
    else:
        reason = error.strerror or str(error)
    return NotReached(f"{_shown(where)} cannot be reached ({reason}). `flash status` shows what is up.")


def _too_long(where: Where, seconds: float) -> WaitTimedOut:
    return WaitTimedOut(f"{_shown(where)} gave no answer within {seconds:.0f} s. The call was taken back.")


def _shown(where: Where) -> str:
    return where if isinstance(where, str) else where.origin
