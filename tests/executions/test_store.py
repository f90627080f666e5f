"""The contract of the execution store, run over every implementation."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.record import Execution, Outcome, StaleAttempt
from flashmesh.executions.states import FINAL, Event, IllegalTransition, Status
from flashmesh.executions.store import Retention, Store
from flashmesh.functions.errors import DuplicateExecution, ExecutionNotFound, IdempotencyConflict
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

Factory = Callable[[Callable[[], float], Retention], Store]


def memory(now: Callable[[], float], retention: Retention) -> Store:
    return MemoryStore(now=now, retention=retention)


STORES: dict[str, Factory] = {"memory": memory}


@pytest.fixture(params=STORES.values(), ids=STORES.keys())
def make(request: pytest.FixtureRequest) -> Factory:
    return request.param  # type: ignore[no-any-return]


class Wall:
    """UTC seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def new(number: int | str, *, payload: bytes = b"{}", key: str | None = None, at: float = 0.0) -> Execution:
    return Execution(
        ExecutionId(f"e{number}"),
        FunctionId("m.f"),
        EndpointName("m"),
        "async",
        at,
        payload=payload,
        idempotency_key=key,
    )


def run(store: Store, execution: Execution, at: float, result: bytes = b"1") -> None:
    store.create(execution)
    store.start(execution, execution.attempt, at=at, worker="w", build="b")
    outcome = Outcome(event=Event.SUCCEED, result=result, result_type="application/json")
    store.finish(execution, execution.attempt, outcome, at=at)


def known(store: Store, number: int | str) -> bool:
    try:
        store.get(ExecutionId(f"e{number}"))
    except ExecutionNotFound:
        return False
    return True


def test_a_finished_execution_keeps_its_result_and_drops_its_payload(make: Factory) -> None:
    """The request's bytes are only kept while they may be needed again."""
    wall = Wall()
    store = make(wall, Retention())
    run(store, new(1, payload=b"request"), wall(), b"answer")
    record = store.get(ExecutionId("e1"))
    assert (record.status, record.result, record.payload) == (Status.SUCCESS, b"answer", b"")
    assert (record.started_at, record.ended_at, record.worker) == (wall(), wall(), "w")


def test_the_same_key_and_body_give_the_same_execution_and_another_body_is_a_conflict(make: Factory) -> None:
    """An idempotency key names one call, before and after it ended."""
    wall = Wall()
    store = make(wall, Retention())
    first = new(1, key="k")
    assert store.create(first).id == "e1"
    assert store.create(new(2, key="k")).id == "e1"
    assert not known(store, 2)
    with pytest.raises(IdempotencyConflict):
        store.create(new(3, key="k", payload=b"other"))
    assert not known(store, 3)


def test_an_id_is_taken_once(make: Factory) -> None:
    """A second execution with an id that is known is refused."""
    store = make(Wall(), Retention())
    store.create(new(1))
    with pytest.raises(DuplicateExecution):
        store.create(new(1))


def test_results_are_kept_by_count_oldest_out_first(make: Factory) -> None:
    """With room for three, the fourth that ends pushes out the first; unfinished ones never go."""
    wall = Wall()
    store = make(wall, Retention(count=3))
    store.create(new("waiting"))
    for number in range(4):
        run(store, new(number), wall())
    assert [known(store, number) for number in range(4)] == [False, True, True, True]
    assert known(store, "waiting")


def test_results_are_kept_by_age(make: Factory) -> None:
    """An hour's retention forgets what ended more than an hour ago, when it is asked for."""
    wall = Wall()
    store = make(wall, Retention(age_s=3600))
    run(store, new(1, key="k"), wall())
    wall.seconds += 3600
    assert known(store, 1)
    wall.seconds += 1
    assert not known(store, 1)
    assert store.create(new(2, key="k", payload=b"other")).id == "e2"


def test_results_are_kept_by_bytes(make: Factory) -> None:
    """Ten bytes hold two results of five, not three."""
    wall = Wall()
    store = make(wall, Retention(bytes=10))
    for number in range(3):
        run(store, new(number), wall(), b"12345")
    assert [known(store, number) for number in range(3)] == [False, True, True]


def test_an_idempotency_key_outlives_count_and_bytes(make: Factory) -> None:
    """Its execution loses the result under pressure, and is still the one the key names."""
    wall = Wall()
    store = make(wall, Retention(count=1, bytes=10))
    run(store, new(1, key="k"), wall(), b"12345678")
    for number in range(2, 5):
        run(store, new(number), wall(), b"12345678")
    run(store, new(5, key="l"), wall(), b"12345678")
    again = store.create(new(9, key="k"))
    assert (again.id, again.status, again.result, again.result_evicted) == ("e1", Status.SUCCESS, b"", True)


def test_executions_are_listed_newest_first_and_filtered(make: Factory) -> None:
    """Function and status narrow the list; the limit cuts it."""
    wall = Wall()
    store = make(wall, Retention())
    for number in range(3):
        run(store, new(number), wall())
    store.create(new(3))
    assert [one.id for one in store.recent()] == ["e3", "e2", "e1", "e0"]
    assert [one.id for one in store.recent(status=Status.SUCCESS, limit=2)] == ["e2", "e1"]
    assert store.recent(function="m.other") == []
    assert [one.id for one in store.unfinished()] == ["e3"]


class StoreMachine(RuleBasedStateMachine):
    """Enqueue, start, retry, finish, late answers and time, against the simplest model there is."""

    executions = Bundle("executions")
    factory: Factory = staticmethod(memory)

    def __init__(self) -> None:
        super().__init__()
        self.wall = Wall()
        self.retention = Retention(count=5, age_s=100, bytes=200)
        self.store = self.factory(self.wall, self.retention)
        self.numbers = iter(range(1_000_000))
        self.model: dict[ExecutionId, tuple[Status, int]] = {}
        self.keys: dict[str, bytes] = {}

    @rule(target=executions, payload=st.sampled_from([b"a", b"b"]), key=st.sampled_from([None, "k", "l"]))
    def enqueue(self, payload: bytes, key: str | None) -> Execution:
        execution = new(next(self.numbers), payload=payload, key=key, at=self.wall())
        try:
            taken = self.store.create(execution)
        except IdempotencyConflict:
            assert key is not None
            taken = next(one for one in self.store.recent(limit=10**6) if one.idempotency_key == key)
        self.model.setdefault(taken.id, (taken.status, taken.attempt))
        return taken

    def _apply(self, execution: Execution, event: Event, attempt: int, change: Callable[[], None]) -> None:
        status, current = self.model[execution.id]
        try:
            change()
        except StaleAttempt:
            assert attempt != current
        except IllegalTransition:
            assert status in FINAL or (status, event) in {
                (Status.QUEUED, Event.SUCCEED),
                (Status.QUEUED, Event.REQUEUE),
                (Status.RUNNING, Event.START),
            }
        else:
            assert attempt == current and status not in FINAL
            self.model[execution.id] = (execution.status, execution.attempt)
        assert (execution.status, execution.attempt) == self.model[execution.id]

    @rule(execution=executions, attempt=st.integers(1, 3))
    def start(self, execution: Execution, attempt: int) -> None:
        self._apply(
            execution,
            Event.START,
            attempt,
            lambda: self.store.start(execution, attempt, at=self.wall(), worker="w", build="b"),
        )

    @rule(execution=executions, attempt=st.integers(1, 3))
    def retry(self, execution: Execution, attempt: int) -> None:
        self._apply(execution, Event.REQUEUE, attempt, lambda: self.store.requeue(execution, attempt))

    @rule(
        execution=executions,
        attempt=st.integers(1, 3),
        event=st.sampled_from([Event.SUCCEED, Event.FAIL, Event.TIME_OUT, Event.CANCEL]),
        size=st.integers(0, 90),
    )
    def finish(self, execution: Execution, attempt: int, event: Event, size: int) -> None:
        outcome = Outcome(event=event, result=b"x" * size)
        self._apply(execution, event, attempt, lambda: self.store.finish(execution, attempt, outcome, at=self.wall()))

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.wall.seconds += seconds

    @invariant()
    def nothing_unfinished_is_lost_and_the_bounds_hold(self) -> None:
        listed = self.store.recent(limit=10**6)
        unfinished = {name for name, (status, _) in self.model.items() if status not in FINAL}
        assert {one.id for one in self.store.unfinished()} == unfinished
        ended = [one for one in listed if one.ended]
        assert len([one for one in ended if one.idempotency_key is None]) <= self.retention.count
        assert sum(len(one.result) for one in ended) <= self.retention.bytes
        assert all((one.ended_at or 0) >= self.wall() - self.retention.age_s for one in ended)


TestMemoryStoreMachine = StoreMachine.TestCase
TestMemoryStoreMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
