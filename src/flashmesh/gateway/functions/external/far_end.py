"""One worker of an external function as the dispatcher sees it: takes INVOKEs, says STARTED, RESULT or ERROR.

The base of every adapter. It keeps the books (free slots, run-time limits, who has been answered); how a call is
carried to the function is its `carrier`'s. Nothing is answered from inside `send`: the dispatcher is in the middle of a
decision then. STARTED alone is said at once, as it decides nothing.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

from flashmesh.functions.errors import Cancelled, FlashmeshError, TimedOut
from flashmesh.kit.ids import BuildId, EndpointName, WorkerId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.outcomes import BUSY
from flashmesh.queueing.slots import Worker
from flashmesh.wire.failures import describe, pack
from flashmesh.wire.frames import (
    JSON,
    PROTOCOL_VERSION,
    AnyFrame,
    Cancel,
    Credit,
    Drain,
    Error,
    Hello,
    Invoke,
    Result,
    Started,
)


class Flight:
    """One call at the function."""

    __slots__ = ("answered", "began_ns", "detached", "handle", "invoke", "timer")

    def __init__(self, invoke: Invoke) -> None:
        self.invoke = invoke
        self.began_ns = time.perf_counter_ns()
        self.timer: asyncio.TimerHandle | None = None
        self.handle: object = None
        """What the carrier needs to stop it."""
        self.detached = False
        """The function said 202: it completes later, by a request of its own."""
        self.answered = False


class Carrier(Protocol):
    """Carries calls to the function."""

    def begin(self, far_end: "FarEnd", flight: Flight) -> bool:
        """Start; later exactly one of `far_end.succeed` and `far_end.fail`, never from inside this call.

        False: it cannot take calls any more, and the function was not asked. It drains then.
        """
        ...

    def stop(self, far_end: "FarEnd", flight: Flight) -> None:
        """It is about to be failed: see to it that the function stops working on it, and say nothing of it any more."""
        ...

    def leave(self, far_end: "FarEnd") -> None:
        """The dispatcher has no more use for this far end, and nothing is in flight."""
        ...


class FarEnd:
    """A WorkerPort. `slots` calls are in flight at most; what comes beyond waits here (a dispatcher may prefetch)."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        loop: asyncio.AbstractEventLoop,
        endpoint: EndpointName,
        build: BuildId,
        id: WorkerId,
        slots: int,
        carrier: Carrier,
        pid: int = 0,
    ) -> None:
        self.id = id
        self.endpoint = endpoint
        self.pid = pid
        self.slots = slots
        self.flights: dict[str, Flight] = {}
        """By execution."""
        self.loop = loop
        self.succeeded = 0
        self.last_used = loop.time()
        self._dispatcher = dispatcher
        self._build = build
        self._carrier = carrier
        self._worker: Worker | None = None
        self._early: list[AnyFrame] = []
        self._waiting: deque[Invoke] = deque()
        self._gone = False
        self._left = False
        self._inside = False
        """The dispatcher is in the middle of handing out calls."""

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.flights))

    @property
    def idle(self) -> bool:
        return not self.flights and not self._waiting

    def ready(self) -> bool:
        """Offer the slots to the dispatcher. False: the function is no longer served."""
        hello = Hello(PROTOCOL_VERSION, "worker", self.endpoint, self._build, self.id, self.pid)
        self._worker = self._dispatcher.worker_ready(hello, self.slots, self)
        early, self._early = self._early, []
        for frame in early:  # sent before the dispatcher had told us who we are
            self.send(frame)
        return self._worker is not None

    # What the dispatcher says

    def send(self, frame: AnyFrame) -> None:
        if self._worker is None:
            self._early.append(frame)
        elif isinstance(frame, Invoke):
            self._inside = True
            self._invoke(frame)
            self._inside = False
        elif isinstance(frame, Cancel):
            self._cancel(frame)

    def close(self) -> None:
        """It is draining, and nothing of the dispatcher's is in flight."""
        if not self._left:
            self._left = True
            self.loop.call_soon(self._carrier.leave, self)  # the dispatcher is still in the middle of something

    def _invoke(self, frame: Invoke) -> None:
        if self._gone or frame.execution in self.flights or not self.free:
            self._waiting.append(frame)  # the last attempt of the same call may still be landing
            return
        flight = self.flights[frame.execution] = Flight(frame)
        if not self._carrier.begin(self, flight):
            del self.flights[frame.execution]
            self.loop.call_soon(self._give_back, frame)
            return
        self.tell(Started(frame.execution, frame.attempt, self.id))
        if frame.deadline_ms:
            flight.timer = self.loop.call_later(frame.deadline_ms / 1000, self._overran, flight)

    def _give_back(self, frame: Invoke) -> None:
        self.tell(Error(frame.execution, BUSY, frame.attempt, self.free, ran=False))

    def _cancel(self, frame: Cancel) -> None:
        flight = self.flights.get(frame.execution)
        if flight is not None:
            self.loop.call_soon(self._cancelled, flight)
            return
        for waiting in self._waiting:
            if waiting.execution == frame.execution:
                self._waiting.remove(waiting)
                self.loop.call_soon(self._refuse, waiting)
                return

    def _cancelled(self, flight: Flight) -> None:
        if not flight.answered:
            self._carrier.stop(self, flight)
            self.fail(flight, Cancelled())

    def _refuse(self, frame: Invoke) -> None:
        self.tell(_error(frame, Cancelled(), self.free, ran=False, run_us=0))

    def _overran(self, flight: Flight) -> None:
        limit = flight.invoke.deadline_ms
        error = TimedOut(f"{flight.invoke.function} ran longer than its limit of {limit} ms and was stopped")
        self._carrier.stop(self, flight)
        self.fail(flight, error)

    # What the carrier says

    def succeed(self, flight: Flight, content_type: str, payload: bytes) -> None:
        """The call's answer. No effect on one that was answered before."""
        if self._land(flight):
            self.succeeded += 1
            frame = flight.invoke
            self.tell(
                Result(frame.execution, frame.attempt, self.free, content_type, _since_us(flight), 0, 0, -1, 0, payload)
            )
        self._next()

    def fail(self, flight: Flight, error: FlashmeshError, *, ran: bool = True) -> None:
        """The call failed; `ran` False = it certainly never reached the function."""
        if self._land(flight):
            self.tell(_error(flight.invoke, error, self.free, ran=ran, run_us=_since_us(flight)))
        self._next()

    def detach(self, flight: Flight) -> None:
        """It answers later by `:complete`, or never: its time limit still counts."""
        flight.detached = True

    def complete(self, flight: Flight, outcome: "bytes | FlashmeshError") -> None:
        """It answered by a request of its own. One whose HTTP answer is still to come keeps its slot until then."""
        if flight.answered:
            return
        lingers = not flight.detached
        if not lingers:
            del self.flights[flight.invoke.execution]
        flight.answered = True
        frame, run_us = flight.invoke, _since_us(flight)
        if isinstance(outcome, FlashmeshError):
            self.tell(_error(frame, outcome, self.free, ran=True, run_us=run_us))
        else:
            self.tell(Result(frame.execution, frame.attempt, self.free, JSON, run_us, 0, 0, -1, 0, outcome))
        if not lingers:
            self._drop_timer(flight)
        self._next()

    def _land(self, flight: Flight) -> bool:
        """Take it off the books. Whether the dispatcher is still to be told."""
        if self.flights.get(flight.invoke.execution) is not flight:
            return False
        del self.flights[flight.invoke.execution]
        self.last_used = self.loop.time()
        self._drop_timer(flight)
        if flight.answered:
            self.tell(Credit("", self.free))
            return False
        flight.answered = True
        return True

    def _drop_timer(self, flight: Flight) -> None:
        if flight.timer is not None:
            flight.timer.cancel()
            flight.timer = None

    def _next(self) -> None:
        while self._waiting and self.free and not self._gone:
            if self._waiting[0].execution in self.flights:
                break
            self._invoke(self._waiting.popleft())

    # The slots themselves

    def resize(self, slots: int) -> None:
        """More or fewer calls at a time; those in flight beyond it finish."""
        self.slots = slots
        self.tell(Credit("", self.free))
        self._next()

    def drain(self, reason: str) -> None:
        """Take nothing more. `close` follows when what is in flight has been answered."""
        if self._inside:
            self.loop.call_soon(self.tell, Drain(reason))
        else:
            self.tell(Drain(reason))

    def gone(self, status: int, reason: str) -> None:
        """The function's process ended: what it had begun is the dispatcher's to repeat. `status` as from waitpid."""
        self._gone = self._left = True
        for flight in self.flights.values():
            self._drop_timer(flight)
            flight.answered = True
        self.flights.clear()
        self._waiting.clear()
        self._dispatcher.worker_gone(self.endpoint, self.id, status, reason)

    def tell(self, frame: AnyFrame) -> None:
        if self._worker is not None and not self._gone:
            self._dispatcher.worker_frame(self._worker, frame)


def _since_us(flight: Flight) -> int:
    return (time.perf_counter_ns() - flight.began_ns) // 1000


def _error(frame: Invoke, error: FlashmeshError, free: int, *, ran: bool, run_us: int) -> Error:
    return Error(frame.execution, error.code, frame.attempt, free, ran, run_us, 0, pack(describe(error)))
