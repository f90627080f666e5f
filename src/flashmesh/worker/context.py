"""What a worker process is given besides its spec: who it is, its descriptors, its record, its line to the template."""

import dataclasses
import os
from typing import TYPE_CHECKING, Any

from flashmesh.worker.records import WorkerRecord

if TYPE_CHECKING:
    from flashmesh.worker.loader import Loaded

READY = b"R"
FULL = b"F"
DEADLINE = b"D"
LEAVING = b"L"


@dataclasses.dataclass(slots=True, kw_only=True)
class WorkerContext:
    """Made fresh for each worker, after the fork (or exec) hygiene is done.

    The worker's duties towards its template, besides the record:
      - `announce_ready` once, when start-up hooks are over and it is about to say READY on the link;
      - `set_free` whenever its number of free slots changes (the template watches the peer socket only while nobody
        has a free slot);
      - `tell_deadline` after `record.set_running` with a deadline that the endpoint's own limit does not imply;
      - SIGTERM means: accept nothing more, finish what runs, leave with status 0. Anybody may send it, so its handler
        calls `tell_leaving`, also while synchronous user code runs: the template then sees to the drain limit;
      - SIGUSR1 means: `record.requests()` says which running calls must end, and why.
    """

    index: int
    """Which record and which place in the generation; reused once the worker is gone."""
    worker_id: str
    """`<endpoint>/<generation>.<index>-<pid>`."""
    generation: int
    record: WorkerRecord
    listen_fd: int
    """The endpoint's listening socket for peers. For a `reentrant` worker the socket for re-entrant calls."""
    reentrant_fd: int | None
    """Listening socket for re-entrant calls, to be accepted over the limit where an async body allows it. None where
    that is forbidden (GPU), and for `reentrant` workers, whose `listen_fd` it is."""
    notify_fd: int
    """Write end of a non-blocking pipe to the template."""
    session_fd: int
    """Read end of the session pipe: EOF = the session is gone."""
    loaded: "Loaded | None"
    """The user's modules, imported before the fork. None in a spawned worker, which loads them itself."""
    ahead: Any = None
    """What the program's `get_ready` returned, in a child that was forked ahead."""
    one_shot: bool = False
    """JOB mode: leave (status 0) after one call."""
    reentrant: bool = False
    """An extra worker for re-entrant calls: takes them from `listen_fd` only, none from the link; leaves when idle."""
    tcp_fd: int | None = None
    """The endpoint's listening TCP socket, for those who cannot reach `listen_fd`; None where there is none, and for
    `reentrant` workers."""
    may_idle_out: bool = True
    """Leave (status 0) after `idle_timeout_s` without a call."""

    def __post_init__(self) -> None:
        self.record.on_leaving = lambda: self._tell(LEAVING)

    def announce_ready(self, free: int) -> None:
        """Start-up is over and `free` slots may be used."""
        self.record.set_ready(free)
        self._tell(READY)

    def set_free(self, free: int) -> None:
        """Publish the number of free slots. Wakes the template when none is left and it is not watching already."""
        self.record.set_free(free)
        if free == 0 and not self.record.hushed():
            self._tell(FULL)

    def tell_deadline(self) -> None:
        """A running call has a deadline the template cannot know of without looking."""
        self._tell(DEADLINE)

    def tell_leaving(self) -> None:
        """A SIGTERM came. Safe in a signal handler."""
        self.record.set_leaving(drain=True)

    def _tell(self, word: bytes) -> None:
        try:
            os.write(self.notify_fd, word)
        except (BlockingIOError, BrokenPipeError):
            pass  # a full pipe will wake the template anyway; a closed one means it is gone, which ends us by itself
