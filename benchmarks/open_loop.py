"""A load that does not wait: requests leave on a schedule whatever the answers, as those of many users do.

Each request has a connection of its own while it is under way, and its latency counts from the moment it was due: a
server (or a client) that falls behind cannot make the load lighter, nor hide that it did. What such a load may be
compared with, `closed_rate`, is found by the same client: it takes part of the machine, and takes it then as well.
"""

import dataclasses
import resource
import select
import socket
import time
from collections import Counter

from benchmarks.measure import percentile

CONNECTIONS = 4000
"""Opened before the clock starts. To connect meanwhile would measure something else: when a listening socket's backlog
is full for a moment, the kernel tries again after a second, in which this client would neither send nor read."""
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
    client_share: float = 0.0
    """Of one core, what the client took."""

    @property
    def goodput(self) -> float:
        """Answers 200 per second, those not counted that only came once the load was over."""
        return self.in_time / self.seconds

    @property
    def p99_s(self) -> float:
        """Of the accepted ones."""
        return percentile(self.latencies or [0.0], 0.99)


class _Sender:
    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._idle: list[int] = []
        self._over = 0.0
        self._due: dict[int, float] = {}
        self._parts: dict[int, bytes] = {}
        self._lengths: dict[bytes, int] = {}
        """Status → bytes of the last whole answer with it: one of as many is whole too, and need not be parsed."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, CONNECTIONS + 100)), hard))
        for _ in range(CONNECTIONS):
            self._connect()

    def _connect(self) -> None:
        made = socket.create_connection(("127.0.0.1", self._port))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setblocking(False)
        self._sockets[made.fileno()] = made
        self._epoll.register(made.fileno(), select.EPOLLIN)
        self._idle.append(made.fileno())

    def open(self, rate: float, seconds: float) -> OpenLoad:
        """So many requests per second, whatever the answers."""
        used, begin = time.process_time(), time.perf_counter()
        total, sent = int(rate * seconds), 0
        result = OpenLoad(0.0, seconds)
        self._over = begin + seconds
        while sent < total or (self._due and time.perf_counter() < begin + seconds + _GRACE_S):
            now = time.perf_counter()
            owed = min(total, int((now - begin) * rate) + 1, sent + _BURST)
            while sent < owed:
                self._send(begin + sent / rate, result)
                sent += 1
            if sent < total:
                now = time.perf_counter()
                result.late_s = max(result.late_s, now - (begin + (sent - 1) / rate))
                result.client_share = (time.process_time() - used) / (now - begin)
            behind = sent < total and (now - begin) * rate > sent
            self._answers(0 if behind else _TICK_S, result)
        result.offered = (sent - result.unsent) / seconds
        result.unanswered += len(self._due)
        return result

    def closed(self, under_way: int, seconds: float) -> OpenLoad:
        """The next request leaves when an answer came, so many are under way at a time."""
        begin = now = time.perf_counter()
        result = OpenLoad(0.0, seconds)
        self._over = begin + seconds
        while now < self._over:
            while len(self._due) < under_way:
                self._send(now, result)
            self._answers(_GRACE_S, result)
            now = time.perf_counter()
        result.offered = result.statuses.total() / seconds
        return result

    def _answers(self, wait_s: float, result: OpenLoad) -> None:
        for fd, _ in self._epoll.poll(wait_s):
            self._receive(fd, result)

    def _send(self, due: float, result: OpenLoad) -> None:
        if not self._idle:
            result.unsent += 1
            return
        fd = self._idle.pop()
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
        if self._lengths.get(data[9:12]) != len(data) and not self._is_whole(data):
            self._parts[fd] = data
            return
        status = int(data[9:12])
        result.statuses[status] += 1
        due = self._due.pop(fd)
        if status == 200:
            now = time.perf_counter()
            result.latencies.append(now - due)
            result.in_time += now < self._over
        elif status == 429 and b"\r\nretry-after:" not in data:
            result.without_retry_after += 1
        self._idle.append(fd)

    def _is_whole(self, data: bytes) -> bool:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = data[:end].lower()
        if len(data) < end + 4 + int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]):
            return False
        self._lengths[data[9:12]] = len(data)
        return True

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


def open_loop(port: int, request: bytes, *, rate: float, seconds: float) -> OpenLoad:
    """Send `rate` requests per second for so long."""
    sender = _Sender(port, request)
    try:
        return sender.open(rate, seconds)
    finally:
        sender.close()


def closed_rate(port: int, request: bytes, *, under_way: int, seconds: float) -> float:
    """Answers 200 per second that this client gets when it has so many requests under way at a time, with as many open
    connections as `open_loop` has."""
    sender = _Sender(port, request)
    try:
        return sender.closed(under_way, seconds).goodput
    finally:
        sender.close()
