"""From a call that was taken to one that is accepted for good: async ones wait for their record to be durable."""

from collections.abc import Callable, MutableMapping

from flashmesh.executions.record import Execution
from flashmesh.executions.store import Store, StoreUnavailable
from flashmesh.functions.errors import EndpointUnavailable
from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.queueing.calls import Accepted, Call
from flashmesh.queueing.lane import Lane
from flashmesh.queueing.ports import Clock, Reply
from flashmesh.queueing.settlement import Settlement, answer_from_record, error_frame


def no_longer_served(endpoint: EndpointName) -> EndpointUnavailable:
    """Why what waits for an endpoint that was taken away fails."""
    return EndpointUnavailable(f"{endpoint} is no longer part of the project. `flash status` lists what is served")


class Acceptance:
    """Works on the dispatcher's own calls. `join` gives a call its place in line."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        settlement: Settlement,
        calls: MutableMapping[ExecutionId, Call],
        join: Callable[[Lane, Call, float], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._settlement = settlement
        self._calls = calls
        self._join = join

    def commit(self, lane: Lane, call: Call, accepted: Accepted | None) -> None:
        """Let an async call join its queue when its record is durable; until then it only counts in the backlog."""
        call.uncommitted = True
        if accepted is not None:
            call.accepted = {call.execution.id: accepted}
        self._store.when_durable(lambda error: self._committed(lane, call, error))
        if call.uncommitted:
            lane.queue.reserve(call)
            call.reserved = True

    def _committed(self, lane: Lane, call: Call, error: StoreUnavailable | None) -> None:
        call.uncommitted = False
        if call.reserved:
            lane.queue.release(call)
        told, call.accepted = call.accepted, None
        if error is not None:
            self._undo(call, error, told or {})
        elif not call.execution.ended:
            wrong = no_longer_served(lane.plan.name) if lane.withdrawn else lane.failure
            if wrong is not None:
                self._settlement.raise_into(call, wrong, ran=False)
            else:
                now = call.enqueued_at = self._clock.now()
                if lane.queue.paused:
                    lane.queue.push(call)
                else:
                    self._join(lane, call, now)
        if told is not None:
            for accepted in told.values():
                accepted(error)

    def _undo(self, call: Call, error: StoreUnavailable, told: dict[ExecutionId, Accepted]) -> None:
        """The store has forgotten it: so does everything here. Those in `told` hear of it otherwise."""
        self._calls.pop(call.execution.id, None)
        if call.execution.id not in told:
            call.answer(error_frame(call.frame.execution, error))
        for reply, execution in call.waiters or ():
            if execution not in told:
                reply.send(error_frame(execution, error))
        if call.watchers:
            call.tell_watchers()

    def attach(self, known: Execution, under: ExecutionId, reply: Reply | None, accepted: Accepted | None) -> None:
        """A call was sent again under another id: its answer is that of the first, and so is its acceptance."""
        call = self._calls.get(known.id)
        if accepted is not None:
            if call is not None and call.uncommitted:
                call.accepted = {**(call.accepted or {}), under: accepted}
            else:
                self._store.when_durable(accepted)
        if reply is None:
            return
        if call is None or known.ended:
            answer_from_record(reply, under, known)
        else:
            call.waiters = [*(call.waiters or ()), (reply, under)]
