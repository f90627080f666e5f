"""The contract of the execution store, run over every implementation."""

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, precondition, rule

from flashmesh.executions.items import ItemBuffer
from flashmesh.executions.memory import MemoryStore
from flashmesh.executions.record import Execution, Kind, Outcome, StaleAttempt
from flashmesh.executions.sqlite.database import Durability
from flashmesh.executions.sqlite.store import SqliteStore
from flashmesh.executions.states import FINAL, Event, IllegalTransition, Status
from flashmesh.executions.store import Retention, Store, StoreUnavailable
from flashmesh.functions.errors import DuplicateExecution, ExecutionNotFound, IdempotencyConflict
from flashmesh.kit.ids import EndpointName, ExecutionId, FunctionId

Factory = Callable[[Callable[[], float], Retention], Store]


def memory(now: Callable[[], float], retention: Retention) -> Store:
    return MemoryStore(now=now, retention=retention)


@dataclasses.dataclass
class Sqlite:
    """Makes stores over one file; `window` 0: what has ended leaves memory as soon as it is written."""

    path: Path
    loop: asyncio.AbstractEventLoop
    window: int | None = None
    durability: Durability = "full"
    made: list[SqliteStore] = dataclasses.field(default_factory=list)

    def __call__(self, now: Callable[[], float], retention: Retention) -> SqliteStore:
        window = None if self.window is None else Retention(count=self.window)
        store = SqliteStore(
            self.path, loop=self.loop, now=now, retention=retention, window=window, durability=self.durability
        )
        self.made.append(store)
        return store

    def again(self, store: SqliteStore, now: Callable[[], float], retention: Retention) -> SqliteStore:
        """Another store on the same file, after the first one was closed."""
        store.close()
        self.made.remove(store)
        return self(now, retention)


class Eager:
    """Has everything written before the next call, so that what is read comes from the disk."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> object:
        self._store.sync()
        return getattr(self._store, name)


STORES = ("memory", "sqlite", "sqlite-normal", "sqlite-from-disk")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Sqlite]:
    with asyncio.Runner() as runner:
        maker = Sqlite(tmp_path / "executions.db", runner.get_loop())
        yield maker
        for store in maker.made:
            store.close()


@pytest.fixture(params=STORES)
def make(request: pytest.FixtureRequest) -> Factory:
    if request.param == "memory":
        return memory
    maker: Sqlite = request.getfixturevalue("sqlite")
    if request.param == "sqlite-normal":
        maker.durability = "normal"
    if request.param == "sqlite-from-disk":
        maker.window = 0
        return lambda now, retention: Eager(maker(now, retention))  # type: ignore[return-value]
    return maker


class Wall:
    """UTC seconds that pass when told."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def new(
    number: int | str,
    *,
    payload: bytes = b"{}",
    key: str | None = None,
    at: float = 0.0,
    kind: Kind = "async",
    function: str = "m.f",
) -> Execution:
    return Execution(
        ExecutionId(f"e{number}"),
        FunctionId(function),
        EndpointName("m"),
        kind,
        at,
        payload=payload,
        idempotency_key=key,
    )


def run(store: Store, execution: Execution, at: float, result: bytes = b"1") -> None:
    store.create(execution)
    store.start(execution, execution.attempt, at=at, worker="w", build="b")
    outcome = Outcome(event=Event.SUCCEED, result=result, result_type="application/json")
    store.finish(execution, execution.attempt, outcome, at=at)


def fail(store: Store, execution: Execution, at: float, event: Event = Event.FAIL, result: bytes = b"") -> None:
    store.create(execution)
    store.start(execution, execution.attempt, at=at, worker="w", build="b")
    store.finish(execution, execution.attempt, Outcome(event=event, result=result, error_code="X"), at=at)


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
    assert store.payload(record) is None


@pytest.mark.parametrize("event", [Event.FAIL, Event.TIME_OUT, Event.CANCEL])
@pytest.mark.parametrize("payload", [b"request", b"", b"p" * 100_000])
def test_what_did_not_succeed_keeps_its_payload_for_a_retry(make: Factory, payload: bytes, event: Event) -> None:
    """An empty payload is one, too."""
    wall = Wall()
    store = make(wall, Retention())
    fail(store, new(1, payload=payload), wall(), event)
    assert store.payload(store.get(ExecutionId("e1"))) == payload


def test_kept_payloads_count_in_the_bytes(make: Factory) -> None:
    """Ten bytes hold one failed call of five with an error of four, not two."""
    wall = Wall()
    store = make(wall, Retention(bytes=10))
    for number in range(2):
        fail(store, new(number, payload=b"12345"), wall(), result=b"1234")
    assert [known(store, number) for number in range(2)] == [False, True]


def test_a_key_that_outlives_its_result_keeps_no_payload(make: Factory) -> None:
    wall = Wall()
    store = make(wall, Retention(bytes=10))
    fail(store, new(1, payload=b"1234567", key="k"), wall())
    fail(store, new(2, payload=b"1234567", key="l"), wall())
    assert [store.payload(store.get(ExecutionId(name))) for name in ("e1", "e2")] == [None, b"1234567"]


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


@pytest.mark.parametrize("hours", [-30, 30])
@pytest.mark.parametrize("key", ["k", None])
def test_ages_are_not_told_by_a_clock_that_somebody_sets(make: Factory, hours: int, key: str | None) -> None:
    """Records bear the clock's times, wrong or right; how long they are kept is a matter of time that passed."""
    passed = Wall()
    store = make(passed, Retention(age_s=3600))
    run(store, new(1, key=key), passed())
    run(store, new(2), passed() + hours * 3600)
    passed.seconds += 3600
    run(store, new(3), passed() + hours * 3600)
    assert [known(store, number) for number in (1, 2, 3)] == [True, True, True]
    assert [one.id for one in store.recent()] == ["e3", "e2", "e1"]
    passed.seconds += 1
    assert [known(store, number) for number in (1, 2, 3)] == [False, False, True]
    assert [one.id for one in store.recent()] == ["e3"]


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


def test_the_list_is_paged_by_the_last_execution_of_the_page_before(make: Factory) -> None:
    """Pages follow one another without gap or repetition, while new executions come in between."""
    wall = Wall()
    store = make(wall, Retention())
    for number in range(10):
        execution = new(number, function="m.f" if number % 2 else "m.g")
        run(store, execution, wall())
    seen: list[str] = []
    last: ExecutionId | None = None
    while page := store.recent(limit=3, after=last):
        seen += [one.id for one in page]
        last = page[-1].id
        store.create(new(f"-later-{len(seen)}"))
    assert seen == [f"e{number}" for number in reversed(range(10))]
    assert [one.id for one in store.recent(function="m.g", limit=2, after=ExecutionId("e5"))] == ["e4", "e2"]
    with pytest.raises(ExecutionNotFound):
        store.recent(after=ExecutionId("never"))


def test_keys_belong_to_one_function(make: Factory) -> None:
    """Two functions may be called with one key."""
    store = make(Wall(), Retention())
    store.create(new(1, key="k", function="m.f"))
    assert store.create(new(2, key="k", function="m.g")).id == "e2"


def test_a_memory_store_says_at_once_that_it_is_as_durable_as_it_gets() -> None:
    """Nothing has to be waited for."""
    told: list[StoreUnavailable | None] = []
    store = MemoryStore()
    store.create(new(1))
    store.when_durable(told.append)
    assert told == [None]


def test_a_call_that_was_collected_can_be_read_item_by_item_after_it_ended(make: Factory) -> None:
    """What was handed out before is not handed out again, wherever the record has been in between."""
    wall = Wall()
    store = make(wall, Retention())
    execution = new(1)
    store.create(execution)
    store.start(execution, 1, at=wall(), worker="w", build="b")
    execution.items = ItemBuffer()
    for item in (b"1", b"2", b"3"):
        execution.items.add(item)
    assert execution.items.take(limit=1) == ([b"1"], 1)
    store.finish(execution, 1, Outcome(event=Event.SUCCEED, result_type="application/json"), at=wall())
    store.recent()
    items = store.get(ExecutionId("e1")).items
    assert items is not None and items.as_list("application/json") == b"[1,2,3]"
    assert items.take(limit=1) == ([b"2"], 2)
    store.recent()
    items = store.get(ExecutionId("e1")).items
    assert items is not None and items.take() == ([b"3"], 3)


class StoreMachine(RuleBasedStateMachine):
    """Enqueue, start, retry, finish, late answers and time, against the simplest model there is."""

    executions = Bundle("executions")
    restarts = False
    loop: asyncio.AbstractEventLoop
    window = Retention()
    """Bounds of what is never written, for stores that write."""

    def __init__(self) -> None:
        super().__init__()
        self.wall = Wall()
        self.retention = Retention(count=5, age_s=100, bytes=200)
        self.numbers = iter(range(1_000_000))
        self.model: dict[ExecutionId, tuple[Status, int]] = {}
        self.live: dict[ExecutionId, Execution] = {}
        self.sent: dict[ExecutionId, bytes] = {}
        self.store = self.open()

    def open(self) -> Store:
        return MemoryStore(now=self.wall, retention=self.retention)

    @rule(
        target=executions,
        payload=st.sampled_from([b"", b"a", b"b" * 20]),
        key=st.sampled_from([None, "k", "l"]),
        kind=st.sampled_from(["sync", "async", "async"]),
    )
    def enqueue(self, payload: bytes, key: str | None, kind: Kind) -> ExecutionId:
        execution = new(next(self.numbers), payload=payload, key=key, at=self.wall(), kind=kind)
        try:
            taken = self.store.create(execution)
        except IdempotencyConflict:
            assert key is not None
            taken = next(one for one in self.store.recent(limit=10**6) if one.idempotency_key == key)
        self.model.setdefault(taken.id, (taken.status, taken.attempt))
        self.live.setdefault(taken.id, taken)
        self.sent.setdefault(taken.id, payload)
        return taken.id

    def _apply(self, name: ExecutionId, event: Event, attempt: int, change: Callable[[Execution], None]) -> None:
        if name not in self.live:
            return  # it was promised to nobody, and a restart forgot it
        execution = self.live[name]
        status, current = self.model[name]
        try:
            change(execution)
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
            self.model[name] = (execution.status, execution.attempt)
        assert (execution.status, execution.attempt) == self.model[name]

    @rule(execution=executions, attempt=st.integers(1, 3))
    def start(self, execution: ExecutionId, attempt: int) -> None:
        self._apply(
            execution,
            Event.START,
            attempt,
            lambda one: self.store.start(one, attempt, at=self.wall(), worker="w", build="b"),
        )

    @rule(execution=executions, attempt=st.integers(1, 3))
    def retry(self, execution: ExecutionId, attempt: int) -> None:
        self._apply(execution, Event.REQUEUE, attempt, lambda one: self.store.requeue(one, attempt))

    @rule(
        execution=executions,
        attempt=st.integers(1, 3),
        event=st.sampled_from([Event.SUCCEED, Event.FAIL, Event.TIME_OUT, Event.CANCEL]),
        size=st.integers(0, 90),
    )
    def finish(self, execution: ExecutionId, attempt: int, event: Event, size: int) -> None:
        outcome = Outcome(event=event, result=b"x" * size)
        self._apply(execution, event, attempt, lambda one: self.store.finish(one, attempt, outcome, at=self.wall()))

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.wall.seconds += seconds

    @precondition(lambda self: self.restarts)
    @rule()
    def restart(self) -> None:
        assert isinstance(self.store, SqliteStore)
        keys = {one.id: one.idempotency_key for one in self.live.values()}
        self.store.close()
        self.store = self.open()
        for name, execution in list(self.live.items()):
            if execution.kind == "sync" and keys[name] is None:
                del self.live[name], self.model[name]
        self.live.update({one.id: one for one in self.store.unfinished()})

    @precondition(lambda self: self.restarts)
    @rule()
    def the_loop_turns(self) -> None:
        """What was said goes to the writer, and what it has done by now is heard of."""
        self.loop.run_until_complete(asyncio.sleep(0))

    @precondition(lambda self: self.restarts)
    @rule()
    def everything_is_written(self) -> None:
        assert isinstance(self.store, SqliteStore)
        self.store.sync()

    @invariant()
    def nothing_unfinished_is_lost_and_the_bounds_hold(self) -> None:
        listed = self.store.recent(limit=10**6)
        unfinished = {name for name, (status, _) in self.model.items() if status not in FINAL}
        assert {one.id for one in self.store.unfinished()} == unfinished
        assert all((one.status, one.attempt) == self.model[one.id] for one in self.store.unfinished())
        ended = [self.store.get(one.id) for one in listed if one.ended]
        assert all((one.status, one.attempt) == self.model[one.id] for one in ended)
        assert all((one.ended_at or 0) >= self.wall() - self.retention.age_s for one in ended)
        assert len({one.id for one in listed}) == len(listed)
        assert [one.row for one in listed] == sorted((one.row for one in listed), reverse=True)
        unwritten = [one for one in ended if self.restarts and one.kind == "sync" and one.idempotency_key is None]
        assert len(unwritten) <= self.window.count
        kept = [one for one in ended if one not in unwritten]
        assert len([one for one in kept if one.idempotency_key is None]) <= self.retention.count
        payloads = {one.id: self.store.payload(one) for one in ended}
        for one in ended:
            gone = one.status is Status.SUCCESS or one.result_evicted
            assert payloads[one.id] == (None if gone else self.sent[one.id])
        assert sum(len(one.result) + len(payloads[one.id] or b"") for one in kept) <= self.retention.bytes


class SqliteStoreMachine(StoreMachine):
    """The same with closing and opening again in between, and hardly any room in memory."""

    restarts = True
    window = Retention(count=2)
    durability: Durability = "full"

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.loop = asyncio.new_event_loop()
        super().__init__()

    def open(self) -> Store:
        return SqliteStore(
            Path(self.directory.name) / "executions.db",
            loop=self.loop,
            now=self.wall,
            retention=self.retention,
            window=self.window,
            durability=self.durability,
        )

    def teardown(self) -> None:
        assert isinstance(self.store, SqliteStore)
        self.store.close()
        self.loop.close()
        self.directory.cleanup()


TestMemoryStoreMachine = StoreMachine.TestCase
TestMemoryStoreMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSqliteStoreMachine = SqliteStoreMachine.TestCase
TestSqliteStoreMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
