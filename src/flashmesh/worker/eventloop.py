"""A selectors loop with timers and signals, for processes that fork: no threads, no asyncio, standard library only."""

from __future__ import annotations

import heapq
import os
import selectors
import signal
import time
from itertools import count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Timer:
    """A call planned for `at` (monotonic seconds). `cancel` may be called any number of times."""

    __slots__ = ("_callback", "at")

    def __init__(self, at: float, callback: Callable[[], None]) -> None:
        self.at = at
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self._callback = None

    @property
    def pending(self) -> bool:
        return self._callback is not None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


class EventLoop:
    """Runs callbacks for readable (and, where asked, writable) descriptors, timers and signals, one at a time."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._signals: dict[int, Callable[[], None]] = {}
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._running = False
        self.watch(self._wake_read, self._on_signal_bytes)

    def watch(self, fd: int, reader: Callable[[], None], writer: Callable[[], None] | None = None) -> None:
        """Call `reader` while `fd` is readable, and `writer` while it is writable. Replaces an earlier watch."""
        events = selectors.EVENT_READ if writer is None else selectors.EVENT_READ | selectors.EVENT_WRITE
        known = self._selector.get_map().get(fd)
        if known is None:
            self._selector.register(fd, events, (reader, writer))
        elif (known.events, known.data) != (events, (reader, writer)):
            self._selector.modify(fd, events, (reader, writer))

    def unwatch(self, fd: int) -> None:
        """Before `fd` is closed. Nothing happens when it is not watched."""
        if fd in self._selector.get_map():
            self._selector.unregister(fd)

    def watches(self, fd: int) -> bool:
        return fd in self._selector.get_map()

    def later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay, callback)
        heapq.heappush(self._timers, (timer.at, next(self._order), timer))
        return timer

    def on_signal(self, number: int, callback: Callable[[], None]) -> None:
        """Main thread only. The callback runs as an ordinary event, not inside the signal handler."""
        self._signals[number] = callback
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(number, _nothing)

    def run(self) -> None:
        """Until `stop`. A callback's exception ends it: these processes are restarted rather than left half-working."""
        self._running = True
        while self._running:
            self.turn(self._until_next_timer())

    def turn(self, timeout: float | None) -> None:
        """Wait for events up to `timeout` seconds (None: for ever) and run what is due."""
        watched = self._selector.get_map()
        for key, events in self._selector.select(timeout):
            # an earlier callback of this turn may have dropped or changed the watch
            current = watched.get(key.fd)
            if current is not None and events & selectors.EVENT_READ:
                current.data[0]()
                current = watched.get(key.fd)
            if current is not None and events & selectors.EVENT_WRITE and current.data[1] is not None:
                current.data[1]()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2].fire()

    def stop(self) -> None:
        self._running = False

    def fds(self) -> set[int]:
        """The loop's own descriptors, for whoever closes everything else."""
        selector_fd = getattr(self._selector, "fileno", None)
        return {self._wake_read, self._wake_write} | ({selector_fd()} if selector_fd is not None else set())

    def _until_next_timer(self) -> float | None:
        while self._timers and not self._timers[0][2].pending:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _on_signal_bytes(self) -> None:
        try:
            numbers = os.read(self._wake_read, 4096)
        except BlockingIOError:
            return
        for number in dict.fromkeys(numbers):
            callback = self._signals.get(number)
            if callback is not None:
                callback()


def _nothing(number: int, frame: object) -> None:
    """The wake-up descriptor carries the news; the handler only has to exist."""
