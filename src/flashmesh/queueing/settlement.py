"""How a call ends: its record, its answer to everyone who waits, and its closing line in the log."""

from collections.abc import Callable

from flashmesh.executions.items import ItemBuffer
from flashmesh.executions.record import Execution, Outcome
from flashmesh.executions.states import Event, Status
from flashmesh.executions.store import Store
from flashmesh.functions.errors import FlashmeshError
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.calls import Call
from flashmesh.queueing.ports import Clock, EventLog, Reply
from flashmesh.wire.failures import describe, pack, unpack
from flashmesh.wire.frames import Error, PeerCall, Result

_EVENTS = {"TIMEOUT": Event.TIME_OUT, "CANCELLED": Event.CANCEL}


def error_frame(execution: str, error: FlashmeshError, *, attempt: int = 0, ran: bool = False) -> Error:
    """The answer for a call that failed on our side."""
    return Error(execution, error.code, attempt, 0, ran, 0, 0, pack_error(error))


def pack_error(error: FlashmeshError) -> bytes:
    return pack(describe(error, code=error.code))


class Settlement:
    """Ends calls. Each of its methods ends `call` for good, once; a call that has ended is left alone."""

    def __init__(self, *, store: Store, clock: Clock, log: EventLog, ended: Callable[[Call], None]) -> None:
        """`ended` is told of each call right after its closing line, before those who watch it."""
        self._store = store
        self._clock = clock
        self._log = log
        self._ended = ended

    def succeed(self, call: Call, frame: Result) -> None:
        """The worker's answer. A generator's items, where they were collected, become the answer's list."""
        execution = call.execution
        payload, items = frame.payload, execution.items
        if items is None and frame.items >= 0 and not payload and not call.stream:
            items = execution.items = ItemBuffer()  # a generator that yielded nothing
        outcome = Outcome(event=Event.SUCCEED, result=payload, result_type=frame.content_type, run_us=frame.run_us)
        self._store.finish(execution, execution.attempt, outcome, at=self._clock.wall())
        if items is not None:
            payload = items.as_list(frame.content_type) if items.complete else b""
        if call.reply is not None or call.waiters:
            answer = Result(
                call.frame.execution,
                execution.attempt,
                0,
                frame.content_type,
                frame.run_us,
                execution.queue_us,
                execution.cold_us,
                frame.items,
                0,
                payload,
            )
            call.answer(answer)
            if call.waiters:
                self._tell_waiters(call)
        self._close(call)

    def fail(self, call: Call, frame: Error) -> None:
        """A worker's ERROR, or one of ours, as the final word."""
        execution = call.execution
        if execution.ended:
            return
        message = unpack(frame.payload).message if frame.payload else ""
        now = self._clock.now()
        if call.started_at is None:
            execution.queue_us = int((now - call.submitted_at) * 1e6)
            run_us = 0
        else:
            run_us = frame.run_us or int((now - call.started_at) * 1e6)
        outcome = Outcome(
            event=_EVENTS.get(frame.code, Event.FAIL),
            result=frame.payload,
            error_code=frame.code,
            error_message=message,
            run_us=run_us,
        )
        self._store.finish(execution, execution.attempt, outcome, at=self._clock.wall())
        call.answer(Error(call.frame.execution, frame.code, execution.attempt, 0, frame.ran, run_us, 0, frame.payload))
        self._tell_waiters(call)
        self._close(call)

    def raise_into(self, call: Call, error: FlashmeshError, *, ran: bool) -> None:
        """End the call with an error of ours."""
        self.fail(call, error_frame(call.frame.execution, error, attempt=call.execution.attempt, ran=ran))

    def _tell_waiters(self, call: Call) -> None:
        for reply, execution in call.waiters or ():
            answer_from_record(reply, execution, call.execution)

    def _close(self, call: Call) -> None:
        call.stop_timer()
        execution = call.execution
        fields: dict[str, object] = {
            "execution": execution.id,
            "trace": call.frame.meta.get("trace", ""),
            "function": execution.function,
            "endpoint": execution.endpoint,
            "worker": execution.worker,
            "route": "link",
            "queue_ms": execution.queue_us / 1000,
            "cold_ms": execution.cold_us / 1000,
            "run_ms": execution.run_us / 1000,
            "outcome": execution.status.lower(),
            "attempt": execution.attempt,
        }
        if execution.error_code:
            fields["code"] = execution.error_code
        self._log("invocation", fields)
        self._ended(call)
        if call.watchers:
            call.tell_watchers()


def peer_fields(endpoint: str, worker: str, call: PeerCall) -> dict[str, object]:
    """The closing line of a call that a worker took from a peer."""
    fields: dict[str, object] = {
        "execution": call.execution,
        "parent": call.parent,
        "trace": call.trace,
        "function": call.function,
        "endpoint": endpoint,
        "worker": worker,
        "route": "peer",
        "queue_ms": call.queue_us / 1000,
        "cold_ms": 0.0,
        "run_ms": call.run_us / 1000,
        "outcome": call.outcome,
        "attempt": 1,
    }
    if call.code:
        fields["code"] = call.code
    return fields


def output(execution: Execution) -> tuple[bytes, str]:
    """A successful execution's result and its media type; a generator's items as one list while all are kept."""
    if execution.items is not None and execution.items.complete:
        return execution.items.as_list(execution.result_type), execution.result_type
    return execution.result, execution.result_type


def answer_from_record(reply: Reply, execution_id: ExecutionId, execution: Execution) -> None:
    """Tell a second caller, under the id it chose, how the execution its idempotency key names has ended."""
    if execution.status is not Status.SUCCESS:
        reply.send(
            Error(
                execution_id,
                execution.error_code,
                execution.attempt,
                0,
                execution.started_at is not None,
                execution.run_us,
                0,
                execution.result,
            )
        )
        return
    payload, media = output(execution)
    reply.send(
        Result(
            execution_id,
            execution.attempt,
            0,
            media,
            execution.run_us,
            execution.queue_us,
            execution.cold_us,
            -1 if execution.items is None else execution.items.total,
            0,
            payload,
        )
    )
