"""A template's connection to its session: redialled for ever, since the session pipe, not this, says when to stop."""

import random
from collections import deque
from collections.abc import Callable
from typing import Final

from flashmesh.functions.errors import LinkLost, LinkProtocolError
from flashmesh.wire.connection import BlockingLink
from flashmesh.wire.frames import AnyFrame, Hello, Log, Ready
from flashmesh.worker.eventloop import EventLoop, Timer

REDIAL_S: Final = (0.05, 0.25)
"""Jittered between these, so that a hundred processes do not come back in one instant."""
_KEPT: Final = 1000


class SessionLink:
    """Sends while there is a session; what matters (READY, WORKER_GONE) waits for the next one otherwise.

    Args:
        hello: makes the first frame of each connection.
        on_frame: called with each frame that comes.
    """

    def __init__(
        self, loop: EventLoop, path: str, *, hello: Callable[[], Hello], on_frame: Callable[[AnyFrame], None]
    ) -> None:
        self._loop = loop
        self._path = path
        self._hello = hello
        self._on_frame = on_frame
        self._link: BlockingLink | None = None
        self._redial: Timer | None = None
        self._waiting: deque[AnyFrame] = deque(maxlen=_KEPT)
        self._ready: Ready | None = None
        self._closed = False

    def dial(self) -> None:
        try:
            self._link = BlockingLink.connect(self._path, self._hello(), blocking=False)
        except LinkLost:
            self._lost()
            return
        self._loop.watch(self._link.fileno(), self._on_readable)
        if self._ready is not None:
            self._put(self._ready)
        while self._waiting and self._link is not None:
            self._put(self._waiting.popleft())

    def send(self, frame: AnyFrame) -> None:
        """Now or after the next dial. The last READY is repeated on every connection."""
        if isinstance(frame, Ready):
            self._ready = frame
            if self._link is None:
                return
        if self._link is None:
            self._waiting.append(frame)
        else:
            self._put(frame)

    def send_log(self, log: Log) -> bool:
        """Only if it can leave at once: lines wait in the outlet, where the oldest may be dropped."""
        if self._link is None or self._link.pending:
            return False
        self._put(log)
        return True

    def flush(self) -> None:
        """What the kernel takes. Before the process ends."""
        if self._link is not None:
            try:
                self._link.flush()
            except LinkLost:
                pass  # nobody is left to hear it

    def close(self) -> None:
        self._closed = True
        self._drop()

    def _put(self, frame: AnyFrame) -> None:
        link = self._link
        if link is None:
            return
        try:
            link.send(frame)
        except LinkLost:
            self._lost()
            return
        self._watch(link)

    def _watch(self, link: BlockingLink) -> None:
        self._loop.watch(link.fileno(), self._on_readable, self._on_writable if link.pending else None)

    def _on_readable(self) -> None:
        link = self._link
        while link is not None and link is self._link:
            try:
                frames = link.pump()
            except (LinkLost, LinkProtocolError):
                self._lost()
                return
            for frame in frames:
                self._on_frame(frame)
            if not frames:
                return

    def _on_writable(self) -> None:
        link = self._link
        if link is None:
            return
        try:
            link.flush()
        except LinkLost:
            self._lost()
            return
        self._watch(link)

    def _lost(self) -> None:
        self._drop()
        if not self._closed and (self._redial is None or not self._redial.pending):
            self._redial = self._loop.later(random.uniform(*REDIAL_S), self.dial)

    def _drop(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._loop.unwatch(link.fileno())
            link.close()
