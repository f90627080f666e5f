"""A keep-alive HTTP client for measuring: little work per request, the same for product and floor."""

import asyncio
import json
import socket
import time
from typing import Any, cast

Latencies = list[float]


def request_bytes(path: str, body: bytes, *, token: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    if token:
        head += f"\r\nAuthorization: Bearer {token}"
    return f"{head}\r\n\r\n".encode() + body


def one_at_a_time(port: int, request: bytes, seconds: float) -> Latencies:
    """Latencies in seconds of requests sent one after the other on one connection."""
    latencies: Latencies = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < until:
            connection.sendall(request)
            _read_answer(connection)
            latencies.append(time.perf_counter() - begin)
    return latencies


def _read_answer(connection: socket.socket) -> bytes:
    """The whole answer. Raises for one that is not 200."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        data += piece
    if not data.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"not a 200: {data[:400]!r}")
    while not _is_whole(data, data.index(b"\r\n\r\n")):
        data += connection.recv(65536)
    return data


def _is_whole(data: bytes, head_end: int) -> bool:
    """Whether an answer whose head ends at `head_end` is there to its end."""
    lowered = data[:head_end].lower()
    start = lowered.find(b"content-length:")
    if start < 0:
        return data.endswith(b"0\r\n\r\n")  # in chunks
    end = lowered.find(b"\r\n", start)
    return len(data) - head_end - 4 >= int(lowered[start + 15 : end if end > 0 else None])


class _Lane(asyncio.Protocol):
    """One connection that always has one request under way."""

    def __init__(self, request: bytes, until: float, done: asyncio.Future[None], accepted: int) -> None:
        self.request = request
        self._good = b"HTTP/1.1 %d" % accepted
        self.until = until
        self.done = done
        self.latencies: Latencies = []
        self.refused = 0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transports are not subclasses
        self._send()

    def _send(self) -> None:
        self._begin = time.perf_counter()
        if self._begin >= self.until:
            self.transport.close()
            return
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0 or not _is_whole(self._buffer, head_end):
            return
        if self._buffer.startswith(self._good):
            self.latencies.append(time.perf_counter() - self._begin)
        else:
            self.refused += 1
        self._buffer = b""
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def many_at_once(
    port: int, request: bytes, seconds: float, connections: int, *, accepted: int = 200
) -> tuple[float, Latencies, int]:
    """(requests per second, latencies in seconds, answers of another status than `accepted`) over so many
    connections."""

    async def run() -> tuple[float, Latencies, int]:
        loop = asyncio.get_running_loop()
        begin = time.perf_counter()
        lanes = [_Lane(request, begin + seconds, loop.create_future(), accepted) for _ in range(connections)]
        for lane in lanes:
            await loop.create_connection(lambda lane=lane: lane, "127.0.0.1", port)
        await asyncio.gather(*(lane.done for lane in lanes))
        latencies = [latency for lane in lanes for latency in lane.latencies]
        return len(latencies) / (time.perf_counter() - begin), latencies, sum(lane.refused for lane in lanes)

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def output(port: int, request: bytes) -> Any:
    """What a function answers: `output` of one call."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        return json.loads(_read_answer(connection).partition(b"\r\n\r\n")[2])["output"]


def some(port: int, request: bytes, count: int, *, pause_s: float = 0.0) -> Latencies:
    """Latencies in seconds of `count` requests, one after the other on one connection, `pause_s` apart."""
    latencies: Latencies = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            time.sleep(pause_s)
            begin = time.perf_counter()
            connection.sendall(request)
            _read_answer(connection)
            latencies.append(time.perf_counter() - begin)
    return latencies
