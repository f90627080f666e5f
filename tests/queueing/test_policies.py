"""The pure decisions around the queue: how many workers, who may wait, what is retried, and the queue itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from queueing_fixtures import make_call, plan_of

from flashmesh.functions.errors import QueueFull
from flashmesh.kit.ids import FunctionId
from flashmesh.queueing.admission import admit, retry_after_s
from flashmesh.queueing.calls import Call
from flashmesh.queueing.queues import EndpointQueue
from flashmesh.queueing.retry import (
    after_exception,
    after_failed_start,
    after_lost_worker,
    after_timeout,
    backoff_s,
)
from flashmesh.queueing.scaling import PATIENCE_S, Demand, wanted_workers


def demand(waiting: int, running: int = 0, workers: int = 0, wait_s: float = 0.0, mean: float | None = None) -> Demand:
    return Demand(waiting=waiting, running=running, workers=workers, oldest_wait_s=wait_s, mean_run_s=mean)


# Workers


def test_without_calls_the_minimum_is_wanted_and_nobody_is_sent_away() -> None:
    """Idle workers leave by themselves."""
    assert wanted_workers(demand(0), plan_of(workers_min=1)).workers == 1
    assert wanted_workers(demand(0, workers=2), plan_of()).workers == 2


def test_long_calls_get_a_worker_each_up_to_the_maximum() -> None:
    """As soon as they wait; the same while nobody knows how long they run."""
    plan = plan_of(workers_max=4)
    assert wanted_workers(demand(3, running=1, workers=1, mean=1.0), plan).workers == 4
    assert wanted_workers(demand(2), plan).workers == 2
    assert wanted_workers(demand(100, mean=1.0), plan).workers == 4


def test_concurrency_counts() -> None:
    """Ten calls at four a worker are three workers."""
    assert wanted_workers(demand(10, mean=1.0), plan_of(workers_max=9, max_concurrency=4)).workers == 3


def test_short_calls_get_another_worker_only_after_waiting() -> None:
    """Two milliseconds, doubled per worker; until then it says when to look again."""
    plan = plan_of(workers_max=4)
    early = wanted_workers(demand(30, 1, 1, PATIENCE_S, mean=0.001), plan)
    assert early.workers == 1 and early.look_again_s == pytest.approx(PATIENCE_S)
    assert wanted_workers(demand(30, 1, 1, 2 * PATIENCE_S, mean=0.001), plan).workers == 2
    assert wanted_workers(demand(30, 2, 2, 2 * PATIENCE_S, mean=0.001), plan).workers == 2


def test_job_mode_wants_a_process_per_call() -> None:
    """However short the calls are."""
    assert wanted_workers(demand(3, mean=0.001), plan_of(workers_max=9, mode="JOB")).workers == 3


@given(
    st.builds(
        Demand,
        waiting=st.integers(0, 500),
        running=st.integers(0, 50),
        workers=st.integers(0, 12),
        oldest_wait_s=st.floats(0, 10),
        mean_run_s=st.none() | st.floats(0, 100),
    ),
    st.integers(0, 12),
    st.integers(1, 12),
    st.integers(1, 8),
)
def test_workers_never_exceed_the_maximum_and_a_waiting_call_always_wants_one(
    load: Demand, low: int, high: int, concurrency: int
) -> None:
    """For any load and any limits."""
    wanted = wanted_workers(load, plan_of(workers_min=low, workers_max=high, max_concurrency=concurrency))
    assert min(low, high) <= wanted.workers <= high
    if load.waiting:
        assert wanted.workers >= 1


# Admission


def test_retry_after_is_when_a_tenth_of_the_queue_has_run() -> None:
    """Between one second and a minute."""
    plan = plan_of(workers_max=2, max_concurrency=5)
    assert retry_after_s(plan, 1000, 1.0) == 10.0
    assert retry_after_s(plan, 10, 0.001) == 1.0
    assert retry_after_s(plan, 10**6, 10.0) == 60.0
    assert retry_after_s(plan, 10**6, None) == 1.0


def test_a_queue_of_size_nought_still_lets_one_call_wait_for_the_first_worker() -> None:
    """Otherwise an endpoint that scales to zero could never be called."""
    queue, plan = EndpointQueue(), plan_of(queue_size=0)
    admit(plan, queue, function=FunctionId("m.f"), sync=True, size_bytes=0, mean_run_s=None)
    queue.push(make_call("c"))
    with pytest.raises(QueueFull):
        admit(plan, queue, function=FunctionId("m.f"), sync=True, size_bytes=0, mean_run_s=None)


# Retries


@given(st.integers(1, 1000), st.floats(0, 1))
def test_the_back_off_is_jittered_and_bounded(attempt: int, chance: float) -> None:
    """Never shorter than half of its step, never longer than half a minute."""
    step = min(30.0, 0.1 * 2 ** min(attempt - 1, 16))
    assert step / 2 <= backoff_s(attempt, chance) <= step


def test_max_retries_counts_extra_attempts() -> None:
    """Three: attempts one to three may be followed by another, the fourth not."""
    plan = plan_of(max_retries=3)
    lost = [after_lost_worker(plan, "async", attempt=n, keyed=False, yielded=False) for n in (1, 2, 3, 4)]
    assert lost == [True, True, True, False]
    assert [after_failed_start(plan, "async", failures=n) for n in (1, 3, 4)] == [True, True, False]
    assert not after_failed_start(plan, "sync", failures=1)


def test_a_sync_call_is_repeated_only_when_that_is_known_to_be_acceptable() -> None:
    """An idempotency key or declared retries; never after items were yielded."""
    plain, declared = plan_of(), plan_of(retries=1)
    assert not after_lost_worker(plain, "sync", attempt=1, keyed=False, yielded=False)
    assert after_lost_worker(plain, "sync", attempt=1, keyed=True, yielded=False)
    assert after_lost_worker(declared, "sync", attempt=1, keyed=False, yielded=False)
    assert not after_lost_worker(declared, "sync", attempt=1, keyed=True, yielded=True)


def test_exceptions_are_matched_by_name_and_built_in_base() -> None:
    """A user's class by its full name; without `retry_on` every exception counts."""
    plan = plan_of(retries=1, retry_on=("shop.OutOfStock", "builtins.OSError"))
    matched = {
        name: after_exception(plan, name, attempt=1, yielded=False)
        for name in ("shop.OutOfStock", "builtins.TimeoutError", "ConnectionError", "builtins.ValueError", "a.OSError2")
    }
    assert list(matched.values()) == [True, True, True, False, False]
    assert after_exception(plan_of(retries=1), "any.Thing", attempt=1, yielded=False)
    assert not after_exception(plan_of(), "any.Thing", attempt=1, yielded=False)


def test_a_time_limit_is_retried_when_declared_and_not_excluded() -> None:
    """`retry_on=(ValueError,)` leaves time limits out."""
    assert after_timeout(plan_of(retries=1), attempt=1, yielded=False)
    assert not after_timeout(plan_of(retries=1, retry_on=("builtins.ValueError",)), attempt=1, yielded=False)
    assert not after_timeout(plan_of(), attempt=1, yielded=False)


# The queue


class QueueMachine(RuleBasedStateMachine):
    """Pushes, requeues, back-offs, takes and removals against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = EndpointQueue()
        self.waiting: dict[str, Call] = {}
        self.now = 0.0
        self.count = 0

    def _new(self, kind: str, function: str) -> Call:
        self.count += 1
        call = make_call(f"c{self.count}", function=function, kind=kind, payload=b"x" * (self.count % 7))
        self.waiting[call.id] = call
        return call

    @rule(
        kind=st.sampled_from(["sync", "async"]),
        how=st.sampled_from(["push", "front", "later"]),
        function=st.sampled_from(["m.f", "m.g", "m.h"]),
    )
    def arrive(self, kind: str, how: str, function: str) -> None:
        call = self._new(kind, function)
        if how == "push":
            self.queue.push(call)
        elif how == "front":
            self.queue.push_front(call)
        else:
            self.queue.push_later(call, self.now + 5)

    @rule()
    def take(self) -> None:
        for call in self.queue.peek(1):
            assert call is self.queue.first()
            self.queue.take(call)
            del self.waiting[call.id]

    @rule(limit=st.integers(1, 10))
    def take_many(self, limit: int) -> None:
        """What is taken one by one comes in the order that was shown at once."""
        for call in self.queue.peek(limit):
            assert call is self.queue.first()
            self.queue.take(call)
            del self.waiting[call.id]

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.waiting:
            call = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
            self.queue.remove(call)

    @rule(seconds=st.integers(1, 4))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.queue.ripen(self.now)
        due = self.queue.next_due()
        assert due is None or due > self.now

    @invariant()
    def counts_are_right_and_nothing_is_lost_or_doubled(self) -> None:
        calls = list(self.waiting.values())
        assert len(self.queue) == len(calls)
        assert self.queue.waiting_sync == sum(call.kind == "sync" for call in calls)
        assert self.queue.async_bytes == sum(call.size_bytes for call in calls if call.kind == "async")
        assert self.queue.sync_bytes == sum(call.size_bytes for call in calls if call.kind == "sync")
        seen = self.queue.peek(len(calls))
        for function in ("m.f", "m.g", "m.h"):
            waits = any(call.execution.function == function and call.kind == "sync" for call in seen)
            assert self.queue.waits(FunctionId(function), sync=True) == waits
        assert len(seen) == self.queue.ready == len({call.id for call in seen})
        assert {call.id for call in seen} <= set(self.waiting)
        assert all(call.queued for call in calls)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
