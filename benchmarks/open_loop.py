"""A load that does not wait: requests leave on a schedule whatever the answers, as those of many users do.

Each request has a connection of its own, and its latency counts from the moment it was due: a server (or a client) that
falls behind cannot make the load lighter, nor hide that it did.
"""

import dataclasses
import select
import socket
import time
from collections import Counter

from benchmarks.measure import percentile

MOST_CONNECTIONS = 4000
_GRACE_S = 2.0
"""How long after the last request answers are waited for."""
_TICK_S = 0.0005
_BURST = 32
"""Requests that leave before answers are looked for again, however many are due."""


@dataclasses.dataclass(slots=True)
class OpenLoad:
    """What came of it."""

    offered: float
    """Requests per second that were really sent."""
    seconds: float
    statuses: Counter[int] = dataclasses.field(default_factory=Counter)
    latencies: list[float] = dataclasses.field(default_factory=list)
    """Seconds, of the answers 200, from when each request was due."""
    without_retry_after: int = 0
    """Answers 429 that do not say when to try again."""
    unanswered: int = 0
    """Requests whose connection broke or stayed silent."""
    unsent: int = 0
    """Requests that found all connections waiting for answers."""
    in_time: int = 0
    """Answers 200 that came while requests were still being sent."""
    late_s: float = 0.0
    """The longest that a request left after it was due: the client's own fault."""

    @property
    def goodput(self) -> float:
        """Answers 200 per second, those not counted that only came once the load was over."""
        return self.in_time / self.seconds

    @property
    def p99_s(self) -> float:
        """Of the accepted ones."""
        return percentile(self.latencies or [0.0], 0.99)


class _Sender:
    def __init__(self, port: int, request: bytes, idle: int) -> None:
        self._port = port
        self._request = request
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._over = 0.0
        self._due: dict[int, float] = {}
        self._parts: dict[int, bytes] = {}
        for _ in range(idle):
            self._idle.append(self._connect())

    def _connect(self) -> int:
        made = socket.create_connection(("127.0.0.1", self._port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._sockets[made.fileno()] = made
        self._epoll.register(made.fileno(), select.EPOLLIN)
        return made.fileno()

    def run(self, rate: float, seconds: float) -> OpenLoad:
        begin = time.perf_counter()
        total, sent = int(rate * seconds), 0
        result = OpenLoad(0.0, seconds)
        self._over = begin + seconds
        while sent < total or (self._due and time.perf_counter() < begin + seconds + _GRACE_S):
            now = time.perf_counter()
            owed = min(total, int((now - begin) * rate) + 1, sent + _BURST)
            while sent < owed:
                self._send(begin + sent / rate, result)
                sent += 1
            result.late_s = max(
                result.late_s, time.perf_counter() - (begin + (sent - 1) / rate) if sent < total else 0.0
            )
            behind = sent < total and (time.perf_counter() - begin) * rate > sent
            for fd, _ in self._epoll.poll(0 if behind else _TICK_S):
                self._receive(fd, result)
        result.offered = (sent - result.unsent) / seconds
        result.unanswered += len(self._due)
        return result

    def _send(self, due: float, result: OpenLoad) -> None:
        if self._idle:
            fd = self._idle.pop()
        elif len(self._sockets) < MOST_CONNECTIONS:
            fd = self._connect()
        else:
            result.unsent += 1
            return
        self._due[fd] = due
        try:
            self._sockets[fd].send(self._request)
        except OSError:
            self._drop(fd, result)

    def _receive(self, fd: int, result: OpenLoad) -> None:
        try:
            data = self._parts.pop(fd, b"") + self._sockets[fd].recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop(fd, result)
            return
        end = data.find(b"\r\n\r\n")
        head = data[:end].lower()
        if end < 0 or len(data) < end + 4 + int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            self._parts[fd] = data
            return
        status = int(data[9:12])
        result.statuses[status] += 1
        due = self._due.pop(fd)
        if status == 200:
            now = time.perf_counter()
            result.latencies.append(now - due)
            result.in_time += now < self._over
        elif status == 429 and b"\r\nretry-after:" not in head:
            result.without_retry_after += 1
        self._idle.append(fd)

    def _drop(self, fd: int, result: OpenLoad) -> None:
        if self._due.pop(fd, None) is not None:
            result.unanswered += 1
        elif fd in self._idle:
            self._idle.remove(fd)
        self._epoll.unregister(fd)
        self._sockets.pop(fd).close()

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()
        self._epoll.close()


def open_loop(port: int, request: bytes, *, rate: float, seconds: float, idle: int = 600) -> OpenLoad:
    """Send `rate` requests per second for so long.

    Args:
        idle: connections to open before the clock starts; more are opened as they are needed.
    """
    sender = _Sender(port, request, idle)
    try:
        return sender.run(rate, seconds)
    finally:
        sender.close()
