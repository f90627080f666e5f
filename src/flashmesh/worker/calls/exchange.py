"""One HTTP exchange per connection with a peer, in an event loop or blocking.

Same-host peers are reached by one Unix connection per call: connecting is instant or refused, the listen backlog is the
peer's queue, and closing the connection takes the call back. Nothing here decides where a call goes or is retried.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from time import monotonic
from typing import Final
from urllib.parse import urlsplit

import httptools

from flashmesh.functions.errors import EndpointUnreachable, QueueFull, WaitTimedOut, WorkerLost

PEER_WAIT_S: Final = 300.0
"""How long a call of a peer is waited for: queue, cold start and run together."""
_READ_BYTES: Final = 256 * 1024
_RECORD_HEAD: Final = 5


class NotReached(EndpointUnreachable):
    """Nobody accepts connections at the endpoint's address, so nothing ran there. `flash status` shows what is up."""


class Response:
    """A response as it comes in.

    Attributes:
        status: 0 until the head is here. headers: lower-case names. complete: the body is here too.
    """

    __slots__ = ("_body", "_parser", "complete", "head_done", "headers", "status")

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self.status = 0
        self.headers: dict[str, str] = {}
        self.head_done = False
        self.complete = False

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
        lengthless = "content-length" not in self.headers and "transfer-encoding" not in self.headers
        if not self.head_done or not lengthless:
            raise WorkerLost()
        self.complete = True

    def take(self) -> bytes:
        """The part of the body that came since the last time."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        return body

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.head_done = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.complete = True


def connect(address: str, *, seconds: float) -> socket.socket:
    """A connected socket, non-blocking for a Unix path, for `http://host:port` with `seconds` to connect.

    Raises QueueFull when the peer's backlog is full, NotReached when nobody listens.
    """
    try:
        if address.startswith("http://"):
            parts = urlsplit(address)
            return socket.create_connection((parts.hostname or "", parts.port or 80), timeout=min(10.0, seconds))
        if address.startswith("https://"):
            raise NotReached(
                f"{address} wants TLS, which calls between local endpoints do not use. Check the manifest."
            )
        return _unix(address)
    except BlockingIOError as error:
        raise QueueFull(f"Too many calls wait for the endpoint at {address}. Try again in a second.") from error
    except TimeoutError as error:
        raise NotReached(f"{address} does not answer. `flash status` shows what is up.") from error
    except OSError as error:
        raise _not_reached(address, error) from error


async def exchange(address: str, request: bytes, *, seconds: float = PEER_WAIT_S) -> tuple[Response, bytes]:
    """Send a request and read the whole answer. Cancelling closes the connection, which cancels the call.

    Raises QueueFull, NotReached, WorkerLost (the connection ended without an answer), WaitTimedOut.
    """
    try:
        async with asyncio.timeout(seconds):
            with await _open(address, seconds) as peer:
                response = Response()
                await _send(peer, request)
                while not response.complete:
                    response.feed(await _receive(peer))
                return response, response.take()
    except TimeoutError as error:
        raise _too_long(address, seconds) from error


def exchange_blocking(address: str, request: bytes, *, seconds: float = PEER_WAIT_S) -> tuple[Response, bytes]:
    """The same for synchronous code; an exception raised by a signal handler closes the connection as well."""
    until = monotonic() + seconds
    with connect(address, seconds=seconds) as peer:
        response = Response()
        _send_blocking(peer, request, address, until, seconds)
        while not response.complete:
            response.feed(_receive_blocking(peer, address, until, seconds))
        return response, response.take()


async def pieces(address: str, request: bytes, *, seconds: float) -> AsyncGenerator[tuple[Response, bytes], None]:
    """The answer's body as it comes; `seconds` limits each wait. Closing the iterator closes the connection."""
    with await _open(address, seconds) as peer:
        response = Response()
        await _send(peer, request)
        while not response.complete:
            try:
                async with asyncio.timeout(seconds):
                    response.feed(await _receive(peer))
            except TimeoutError as error:
                raise _too_long(address, seconds) from error
            if response.head_done:
                yield response, response.take()


def pieces_blocking(address: str, request: bytes, *, seconds: float) -> Iterator[tuple[Response, bytes]]:
    """The same for synchronous code."""
    with connect(address, seconds=seconds) as peer:
        response = Response()
        _send_blocking(peer, request, address, monotonic() + seconds, seconds)
        while not response.complete:
            response.feed(_receive_blocking(peer, address, monotonic() + seconds, seconds))
            if response.head_done:
                yield response, response.take()


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


def _unix(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        peer.setblocking(False)  # a full backlog must say so and not block
        peer.connect(path)
    except BaseException:
        peer.close()
        raise
    return peer


async def _open(address: str, seconds: float) -> socket.socket:
    parts = urlsplit(address) if address.startswith("http:") else None
    if parts is None:
        return connect(address, seconds=seconds)
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        family, kind, protocol, _, where = found[0]
        peer = socket.socket(family, kind, protocol)
        try:
            peer.setblocking(False)
            await loop.sock_connect(peer, where)
        except BaseException:
            peer.close()
            raise
    except OSError as error:
        if isinstance(error, TimeoutError):
            raise
        raise _not_reached(address, error) from error
    return peer


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


async def _receive(peer: socket.socket) -> bytes:
    try:
        return await asyncio.get_running_loop().sock_recv(peer, _READ_BYTES)
    except ConnectionError:
        return b""


def _send_blocking(peer: socket.socket, request: bytes, address: str, until: float, seconds: float) -> None:
    peer.settimeout(max(0.001, until - monotonic()))
    try:
        peer.sendall(request)
    except TimeoutError as error:
        raise _too_long(address, seconds) from error
    except OSError:
        return  # as above


def _receive_blocking(peer: socket.socket, address: str, until: float, seconds: float) -> bytes:
    left = until - monotonic()
    if left <= 0:
        raise _too_long(address, seconds)
    peer.settimeout(left)
    try:
        return peer.recv(_READ_BYTES)
    except TimeoutError as error:
        raise _too_long(address, seconds) from error
    except ConnectionError:
        return b""


def _not_reached(address: str, error: OSError) -> NotReached:
    return NotReached(f"{address} cannot be reached ({error.strerror}). `flash status` shows what is up.")


def _too_long(address: str, seconds: float) -> WaitTimedOut:
    return WaitTimedOut(f"{address} gave no answer within {seconds:.0f} s. The call was taken back.")
