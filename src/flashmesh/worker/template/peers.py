"""The template's eye on the endpoint's sockets: a peer that nobody accepts is a reason to make a worker."""

import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flashmesh.worker.eventloop import EventLoop, Timer
from flashmesh.worker.template.demand import PATIENCE_S, SETTLE_S, Crew, Limits, settle_s, watches
from flashmesh.worker.template.generation import EXTRA_WORKERS, Generation
from flashmesh.worker.template.refusal import Refusal, Refuser


@dataclass(frozen=True, slots=True)
class View:
    """The build that makes workers now, who there is, and for re-entrant calls."""

    generation: Generation
    crew: Crew
    extra: Crew
    limits: Limits


class PeerWatch:
    """Watches only while it would act: a socket that free workers accept from is none of the template's business.

    A worker that becomes full says so, unless the table's `hush` tells it that the template watches already or would
    not act; so a stream of short calls costs the template a look per settling time, not one per call.

    Args:
        peers: the sockets that all its workers accept from.
        again: the one for re-entrant calls.
        look: the state of things now; None while no worker can be made.
        fork: make one worker; True = one for re-entrant calls.
        refusal: what to answer when no worker will.
    """

    def __init__(
        self,
        loop: EventLoop,
        *,
        peers: Sequence[socket.socket],
        again: socket.socket,
        look: Callable[[], View | None],
        fork: Callable[[bool], None],
        refusal: Refusal,
    ) -> None:
        self._loop = loop
        self._peers = peers
        self._again = again
        self._look = look
        self._fork = fork
        self._refuse_peers = [Refuser(loop, peer, refusal) for peer in peers]
        self._refuse_again = Refuser(loop, again, refusal)
        self._forks = 0
        self._settling: Timer | None = None
        self._settling_again: Timer | None = None
        self._patience: Timer | None = None

    def attend(self) -> None:
        """Somebody came, left, is ready or is full: watch what must be watched now."""
        view = self._look()
        if view is None:
            return
        self._attend_peer(view)
        if view.generation.spec.cuda_devices is not None:
            self._loop.watch(self._again.fileno(), self._refuse_again.accept)
        elif watches(view.extra, Limits(maximum=EXTRA_WORKERS)):
            if not _pending(self._settling_again):
                self._loop.watch(self._again.fileno(), self._on_again)
        else:
            self._loop.unwatch(self._again.fileno())
            self._look_again_later(view.extra)

    def rest(self, *, refuse: bool) -> None:
        """No workers can be made now: leave peers in the backlog, or refuse them."""
        listeners = [*zip(self._peers, self._refuse_peers, strict=True), (self._again, self._refuse_again)]
        for listener, refuser in listeners:
            if refuse:
                self._loop.watch(listener.fileno(), refuser.accept)
            else:
                self._loop.unwatch(listener.fileno())

    def _attend_peer(self, view: View) -> None:
        table = view.generation.table
        if watches(view.crew, view.limits):
            table.hush = True
            if not _pending(self._settling):
                for peer in self._peers:
                    self._loop.watch(peer.fileno(), self._on_peer)
            return
        self._look_away()
        self._look_again_later(view.crew)
        # at the maximum nothing would follow from being told, except that JOB replaces whoever is taken
        hushed, table.hush = table.hush, view.crew.live >= view.limits.maximum and not view.limits.one_shot
        if hushed and not table.hush:
            again = self._look()
            if again is not None and watches(again.crew, again.limits):  # full just before it was asked to say so
                self._attend_peer(again)

    def _look_again_later(self, crew: Crew) -> None:
        """A worker that is slow to start must not make later peers wait for it alone."""
        if crew.starting and not crew.free and not _pending(self._patience):
            self._patience = self._loop.later(PATIENCE_S, self.attend)

    def _look_away(self) -> None:
        for peer in self._peers:
            self._loop.unwatch(peer.fileno())

    def _on_peer(self) -> None:
        self._look_away()
        view = self._look()
        if view is not None:
            self._settling = self._loop.later(settle_s(view.crew, self._forks), self._settled)

    def _settled(self) -> None:
        view = self._look()
        if view is None:
            return
        waiting = _readable(*self._peers)
        if waiting and watches(view.crew, view.limits):
            self._forks += 1
            self._fork(False)
            return
        if not waiting:
            self._forks = 0
        self.attend()

    def _on_again(self) -> None:
        self._loop.unwatch(self._again.fileno())
        self._settling_again = self._loop.later(SETTLE_S, self._settled_again)

    def _settled_again(self) -> None:
        view = self._look()
        if view is None:
            return
        if _readable(self._again) and watches(view.extra, Limits(maximum=EXTRA_WORKERS)):
            self._fork(True)
        else:
            self.attend()


def _pending(timer: Timer | None) -> bool:
    return timer is not None and timer.pending


def _readable(*listeners: socket.socket) -> bool:
    return bool(select.select(listeners, [], [], 0)[0])
