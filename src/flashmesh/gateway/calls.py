"""Calls from HTTP into the dispatcher, and their answers back: callbacks only, no task per call.

A face makes an `Invoke` frame and a `Waiting` (or an `Accepting`) of its own that knows how to answer its client, and
hands both over. Whoever waits is told once: how the call ended, or that the wait is over while the call goes on. What a
wait costs is a dictionary entry: waits of equal length stand in one line and share one timer.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from flashmesh.executions.record import Execution
from flashmesh.functions.errors import ExecutionNotFound, FlashmeshError, ResultEvicted, ValidationError
from flashmesh.gateway.identities import new_execution_id
from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.dispatcher import Dispatcher
from flashmesh.queueing.ports import Clock, Timer
from flashmesh.wire.frames import AnyFrame, Error, Invoke, Result

_FINAL: Final = (Result, Error)
MAX_LINES: Final = 16
"""Lengths of waits that have a line of their own; any other wait has its own timer."""
CANCEL_WAIT_S: Final = 2.5
"""How long a cancel waits for a running execution to stop: it is stopped by force after 2 s, and RunPod's client gives
up after 3."""


class EvictedResult(ResultEvicted):
    """The result of this execution was dropped to make room. Call the function again."""

    def __init__(self, execution: str) -> None:
        super().__init__(f"the result of execution {execution} was dropped to make room. Call the function again")
        self.execution = execution


class NotRetried(ValidationError):
    """This execution cannot be run again."""

    code = "NOT_RETRIED"
    status = 409


class Waiting:
    """A client that waits for a call's end: the dispatcher's `Reply` for it. A face subclasses it."""

    __slots__ = ("_early", "_line", "_timer", "execution", "since")

    only_the_end: Final = True
    execution: Execution
    since: float
    """When it was accepted, on the monotonic clock."""

    def __init__(self) -> None:
        self._early: Result | Error | None = None
        self._line: _Line | None = None
        self._timer: Timer | None = None

    def ended(self, frame: Result | Error) -> None:
        """The call has ended. `execution` is its record; the frame may bear another id if it is a replay."""
        raise NotImplementedError

    def still_going(self) -> None:
        """The wait is over, the call is not."""
        raise NotImplementedError

    def send(self, frame: AnyFrame) -> None:
        """What the dispatcher says of the call."""
        if not isinstance(frame, _FINAL):
            return
        line = self._line
        if line is not None:
            line.waiting.pop(self, None)
            self._line = None
        elif self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif not hasattr(self, "execution"):
            self._early = frame  # it ended before `submit` returned
            return
        else:
            return  # the wait was over before
        self.ended(frame)

    def _over(self) -> None:
        self._line = self._timer = None
        self.still_going()


class Accepting:
    """A client that waits until its call is durably accepted. A face subclasses it."""

    __slots__ = ("_early", "_refusal", "execution")

    execution: Execution

    def __init__(self) -> None:
        self._early = False
        self._refusal: FlashmeshError | None = None

    def accepted(self) -> None:
        """The store has `execution`."""
        raise NotImplementedError

    def refused(self, error: FlashmeshError) -> None:
        """Nothing was accepted after all."""
        raise NotImplementedError

    def __call__(self, error: FlashmeshError | None) -> None:
        if not hasattr(self, "execution"):
            self._early, self._refusal = True, error
        elif error is None:
            self.accepted()
        else:
            self.refused(error)


class _Line:
    """Waits of one length, in the order they end in, behind one timer."""

    __slots__ = ("_clock", "_seconds", "_timer", "waiting")

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._timer: Timer | None = None
        self.waiting: dict[Waiting, float] = {}

    def add(self, waiting: Waiting, now: float) -> None:
        self.waiting[waiting] = now + self._seconds
        if self._timer is None:
            self._timer = self._clock.call_later(self._seconds, self._look)

    def _look(self) -> None:
        """End what is due; come back when the next one is."""
        self._timer = None
        now = self._clock.now()
        while self.waiting:
            first = next(iter(self.waiting))
            due = self.waiting[first]
            if due > now:
                self._timer = self._clock.call_later(due - now, self._look)
                return
            del self.waiting[first]
            first._over()


class Calls:
    """Both the hot routes and the ASGI application call through one of these. Everything on the event loop."""

    def __init__(self, *, dispatcher: Dispatcher, clock: Clock) -> None:
        self.dispatcher = dispatcher
        self.clock = clock
        self._lines: dict[float, _Line] = {}
        self.refusal = dispatcher.refusal
        """Whether a sync call of a function need not even be read: see `Dispatcher.refusal`."""
        self._submit = dispatcher.submit
        self._now = clock.now

    def wait_for(self, frame: Invoke, waiting: Waiting, wait_s: float) -> None:
        """Submit a sync call. `waiting` is told once: `ended`, or after `wait_s` seconds `still_going`.

        Raises whatever `Dispatcher.submit` raises; nothing was accepted then. EvictedResult: the idempotency key names
        an execution whose result is not kept any more.
        """
        now = waiting.since = self._now()
        execution = self._submit(frame, waiting, kind="sync")
        waiting.execution = execution
        early = waiting._early
        if early is not None:
            if execution.result_evicted:
                raise EvictedResult(execution.id)
            waiting.ended(early)
            return
        line = self._lines.get(wait_s)
        if line is None:
            if len(self._lines) >= MAX_LINES:
                waiting._timer = self.clock.call_later(wait_s, waiting._over)
                return
            line = self._lines[wait_s] = _Line(self.clock, wait_s)
        waiting._line = line
        line.add(waiting, now)

    def accept(self, frame: Invoke, accepting: Accepting) -> None:
        """Submit an async call. `accepting` is told once the store has it, or that it could not be stored.

        Raises whatever `Dispatcher.submit` raises; nothing was accepted then.
        """
        execution = accepting.execution = self._submit(frame, None, kind="async", accepted=accepting)
        if execution.id == frame.execution and (policy := frame.meta.get("policy")):
            self._arm(execution, policy, age_s=0.0)
        if accepting._early:
            accepting(accepting._refusal)

    def retry(self, execution: ExecutionId, accepting: Accepting) -> None:
        """Run an ended execution's request again, as a new execution that names the old one.

        The store has kept its request, also over a restart, unless it succeeded.

        Raises ExecutionNotFound; NotRetried: it has not ended, or its request is not kept; and as `accept`.
        """
        old = self.dispatcher.execution(execution)
        if not old.ended:
            raise NotRetried(f"execution {old.id} has not ended. Cancel it first, or wait", field="id")
        payload = self.dispatcher.store.payload(old)
        if payload is None:
            raise NotRetried(
                f"the request of execution {old.id} is not kept: it succeeded, or had to make room. Send it again",
                field="id",
            )
        meta = {key: value for key, value in old.meta.items() if key not in ("idempotency_key", "mode", "stream")}
        frame = Invoke(
            new_execution_id(),
            old.function,
            content_type=old.content_type,
            accept=old.accept,
            deadline_ms=old.deadline_ms,
            meta={**meta, "mode": "async", "retried_from": old.id},
            payload=payload,
        )
        self.accept(frame, accepting)

    def cancel(self, execution: ExecutionId, told: Callable[[Execution], None]) -> None:
        """Stop an execution; `told` gets it when it has ended, or after CANCEL_WAIT_S. Raises ExecutionNotFound."""
        record = self.dispatcher.cancel(execution)
        self.until(record, lambda: record.ended, CANCEL_WAIT_S, lambda: told(record))

    def until(
        self, execution: Execution, condition: Callable[[], bool], wait_s: float, told: Callable[[], None]
    ) -> None:
        """Call `told` once: when `condition` holds after something happened to the execution, or when time is up."""
        if wait_s <= 0 or execution.ended or condition():
            told()
            return
        _Watch(self, execution.id, condition, told).start(wait_s)

    def resume(self, executions: Iterable[Execution]) -> None:
        """Arm the time limits of jobs that were accepted before a restart."""
        for execution in executions:
            policy = execution.meta.get("policy")
            if policy and not execution.ended:
                self._arm(execution, policy, age_s=max(0.0, self.clock.wall() - execution.created_at))

    def _arm(self, execution: Execution, policy: Mapping[str, Any], *, age_s: float) -> None:
        ttl_ms = policy.get("ttl")
        if ttl_ms:
            self._cancel_after(execution.id, max(0.0, ttl_ms / 1000 - age_s))

    def _cancel_after(self, execution: ExecutionId, seconds: float) -> None:
        def expire() -> None:
            try:
                self.dispatcher.cancel(execution)  # nothing happens to one that has ended
            except ExecutionNotFound:
                pass

        self.clock.call_later(seconds, expire)


class _Watch:
    """One wait for something to happen to an execution."""

    def __init__(
        self, calls: Calls, execution: ExecutionId, condition: Callable[[], bool], told: Callable[[], None]
    ) -> None:
        self._calls = calls
        self._execution = execution
        self._condition = condition
        self._told: Callable[[], None] | None = told
        self._unwatch: Callable[[], None] | None = None
        self._timer: Timer | None = None

    def start(self, wait_s: float) -> None:
        self._unwatch = self._calls.dispatcher.watch(self._execution, self._look)
        if self._unwatch is None:
            self._end()
        else:
            self._timer = self._calls.clock.call_later(wait_s, self._end)

    def _look(self) -> None:
        if self._condition():
            self._end()

    def _end(self) -> None:
        told, self._told = self._told, None
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if told is not None:
            told()
