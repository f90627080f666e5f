"""What happens to calls when workers die, bodies raise and limits run out."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queueing_fixtures import Bench, FakeWorker

from flashmesh.functions.errors import QueueFull
from flashmesh.kit.ids import ExecutionId, FunctionId
from flashmesh.queueing.plan import OwnLimits
from flashmesh.wire.frames import Chunk, Credit, Discard, Invoke


def test_a_worker_killed_mid_call_fails_that_call_only_and_says_how_it_died() -> None:
    """The sync call it had begun fails; the next call runs on a fresh worker."""
    bench = Bench(workers_max=1)
    worker = bench.worker("w1")
    bench.call("e1")
    worker.begin()
    bench.call("e2")
    worker.die(-9)
    code, message = bench.client.error("e1")
    assert code == "WORKER_LOST" and "m/w1" in message and "signal 9" in message and "retries=" in message
    fresh = bench.worker("w2")
    fresh.run_all()
    assert bench.client.result("e2") == b"1"


def test_calls_a_dead_worker_had_not_begun_keep_place_and_attempt() -> None:
    """They go back to the head in their order, as attempt 1."""
    bench = Bench(workers_max=1, max_concurrency=3)
    worker = bench.worker("w1", slots=3)
    for number in range(5):
        bench.call(f"e{number}")
    worker.begin()
    worker.die()
    fresh = bench.worker("w2", slots=5)
    assert [(frame.execution, frame.attempt) for frame in fresh.inbox] == [(f"e{n}", 1) for n in range(1, 5)]


def test_calls_that_began_without_a_word_are_known_by_the_one_that_began_last() -> None:
    """It had run, those after it had not: they stand first in line again, as attempt 1."""
    bench = Bench(workers_max=1)
    worker = bench.worker("w1")
    worker.ahead = 5
    worker.say(Credit(free=worker.said))
    for number in range(5):
        bench.call(f"e{number}")
    worker.succeed(worker.begin_quietly())
    last = worker.begin_quietly()
    worker.die(begun=[last])
    assert bench.client.error("e1")[0] == "WORKER_LOST"
    fresh = bench.worker("w2")
    fresh.ahead = 5
    fresh.say(Credit(free=fresh.said))
    assert [(frame.execution, frame.attempt) for frame in fresh.inbox] == [("e2", 1), ("e3", 1), ("e4", 1)]


def test_calls_that_may_have_begun_count_as_begun_when_nobody_knows() -> None:
    """The template is gone as well: after a moment they fail rather than run twice. What is kept was announced."""
    bench = Bench(workers_max=1)
    worker = bench.worker("w1")
    worker.ahead = 5
    worker.say(Credit(free=worker.said))
    bench.call("e1")
    bench.call("e2", idempotency_key="k")
    worker.die(None)
    assert bench.status("e1") == "QUEUED"
    bench.clock.advance(1)
    assert bench.client.error("e1")[0] == "WORKER_LOST"
    fresh = bench.worker("w2")
    assert [(frame.execution, frame.attempt) for frame in fresh.inbox] == [("e2", 1)]


def test_a_worker_that_comes_back_says_what_it_had_begun() -> None:
    """Its connection broke, not the worker: what it had not begun and has forgotten is sent again."""
    bench = Bench(workers_max=1)
    worker = bench.worker("w1")
    worker.ahead = 5
    worker.say(Credit(free=worker.said))
    for number in range(3):
        bench.call(f"e{number}")
    first = worker.begin_quietly()
    worker.die(None)
    back = bench.worker("w1", held=[first], begun=[first])
    back.answer(first)
    assert bench.client.result("e0") == b"1"
    back.run_all()
    assert bench.client.result("e1") == bench.client.result("e2") == b"1"
    bench.clock.advance(0)
    assert back.acked == ["e0"]


def test_a_call_that_began_without_a_word_waited_until_it_ran() -> None:
    """Its end tells both: when it ended and how long it ran."""
    bench = Bench(workers_max=1)
    worker = bench.worker("w1")
    bench.call("e1")
    bench.clock.advance(0.5)
    worker.succeed(worker.begin_quietly(), run_ms=200)
    execution = bench.store.get(ExecutionId("e1"))
    assert (round(execution.queue_us, -3), execution.run_us) == (300_000, 200_000)


def test_an_async_call_of_a_lost_worker_is_run_again_three_times() -> None:
    """Extra attempts 2, 3 and 4, with back-off; the fourth loss is final."""
    bench = Bench(workers_max=1)
    bench.call("e1", kind="async")
    for attempt in (1, 2, 3, 4):
        worker = bench.worker(f"w{attempt}")
        bench.clock.advance(60)
        assert worker.begin().attempt == attempt
        worker.die()
    assert bench.client.error("e1")[0] == "WORKER_LOST"
    assert bench.status("e1") == "ERROR"


def test_a_sync_call_of_a_lost_worker_is_run_again_with_retries_or_an_idempotency_key() -> None:
    """Both say that running twice is acceptable."""
    for bench, meta in ((Bench(retries=1), {}), (Bench(), {"idempotency_key": "k"})):
        worker = bench.worker("w1")
        bench.call("e1", **meta)
        worker.begin()
        worker.die()
        assert bench.status("e1") == "QUEUED"
        fresh = bench.worker("w2")
        bench.clock.advance(1)
        fresh.run_all()
        assert bench.client.result("e1") == b"1"


def test_the_back_off_grows_and_a_waiting_retry_can_be_cancelled() -> None:
    """Nothing is sent before its time; a cancelled retry never is."""
    bench = Bench()
    worker, spare = bench.worker("w1"), bench.worker("w2")
    bench.call("e1", kind="async")
    if not worker.inbox:
        worker, spare = spare, worker
    worker.begin()
    worker.die()
    bench.clock.advance(0.04)
    assert (bench.status("e1"), bench.waiting(), spare.inbox) == ("QUEUED", 1, [])
    bench.dispatcher.cancel(ExecutionId("e1"))
    assert bench.status("e1") == "CANCELLED" and bench.waiting() == 0


def test_a_worker_whose_end_nobody_reports_still_fails_its_call() -> None:
    """After a quarter of a second without the template's word."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1")
    worker.begin()
    worker.die(None)
    assert bench.client.final("e1") is None
    bench.clock.advance(0.3)
    assert bench.client.error("e1")[0] == "WORKER_LOST"


def test_a_worker_killed_for_its_calls_limit_makes_that_call_a_timeout() -> None:
    """The kill two seconds after the limit is not a lost worker."""
    bench = Bench(execution_timeout_ms=1000)
    worker = bench.worker()
    bench.call("e1")
    worker.begin()
    bench.clock.advance(3)
    worker.die()
    assert bench.status("e1") == "TIMEOUT"


def test_user_exceptions_are_final_unless_the_function_declares_retries() -> None:
    """Async or not: without `retries=` a raised exception is the answer."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", kind="async")
    worker.fail(worker.begin(), ValueError("no"))
    assert bench.client.error("e1") == ("USER_ERROR", "no")


def test_only_exceptions_named_by_retry_on_are_retried_and_built_in_bases_count() -> None:
    """`retry_on=(OSError,)` covers ConnectionError, not ValueError."""
    bench = Bench(retries=1, retry_on=("builtins.OSError",))
    worker = bench.worker()
    bench.call("e1")
    worker.fail(worker.begin(), ConnectionError("away"))
    assert bench.status("e1") == "QUEUED"
    bench.clock.advance(1)
    frame = worker.begin()
    assert frame.attempt == 2
    worker.fail(frame, ConnectionError("away"))
    assert bench.client.error("e1") == ("USER_ERROR", "away")
    bench.call("e2")
    worker.fail(worker.begin(), ValueError("no"))
    assert bench.status("e2") == "ERROR"


def test_a_run_time_limit_is_retried_only_when_declared() -> None:
    """TIMEOUT is final without `retries=`."""
    plain, declared = Bench(execution_timeout_ms=100), Bench(execution_timeout_ms=100, retries=1)
    for bench in (plain, declared):
        worker = bench.worker()
        bench.call("e1")
        worker.fail(worker.begin(), TimeoutError("limit"), "TIMEOUT")
    assert (plain.status("e1"), declared.status("e1")) == ("TIMEOUT", "QUEUED")


def test_retries_of_one_function_are_not_another_ones() -> None:
    """Two functions on one endpoint: only the one that declared `retries=` is repeated, and within its own limit."""
    own = {FunctionId("m.g"): OwnLimits(execution_timeout_ms=100, retries=1)}
    bench = Bench(own=own, max_concurrency=2)
    worker = bench.worker(slots=2)
    for name in "fg":
        bench.call_function(f"m.{name}", name)
        frame = worker.begin()
        assert frame.deadline_ms == (100 if name == "g" else 0)
        worker.fail(frame, ValueError("no"))
    assert (bench.status("f"), bench.status("g")) == ("ERROR", "QUEUED")


def test_bad_arguments_end_the_call_and_are_never_retried() -> None:
    """The worker decides; VALIDATION_ERROR is final even for a function with retries."""
    bench = Bench(retries=5)
    worker = bench.worker()
    bench.call("e1", kind="async")
    worker.fail(worker.begin(), ValueError("x: int expected"), "VALIDATION_ERROR")
    assert bench.status("e1") == "ERROR"
    assert bench.client.error("e1")[0] == "VALIDATION_ERROR"


def test_an_answer_to_an_attempt_that_is_over_changes_nothing() -> None:
    """The first attempt timed out here and was tried again; its late RESULT is left aside."""
    bench = Bench(execution_timeout_ms=1000, retries=1)
    worker = bench.worker("w1", slots=2)
    bench.call("e1")
    late = worker.begin()
    bench.clock.advance(7)
    assert (worker.inbox, bench.waiting()) == ([], 1)  # not to the process that overran it
    other = bench.worker("w2")
    second = other.begin()
    assert second.attempt == 2
    worker.succeed(late, b"late")
    assert bench.client.final("e1") is None
    other.succeed(second, b"second")
    assert bench.client.result("e1") == b"second"
    assert (worker.worker.free, other.worker.free) == (2, 1)


# Generators


def test_an_async_generators_items_are_kept_and_answered_as_one_list() -> None:
    """The worker is asked to stream; whoever waits gets the list."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", kind="async")
    frame = worker.begin()
    assert frame.meta["stream"] is True
    for number in range(3):
        worker.item(frame, b"%d" % number)
    worker.succeed(frame, b"", items=3)
    assert bench.client.result("e1") == b"[0,1,2]"


def test_an_unread_buffer_gives_the_generator_no_credits() -> None:
    """A reader that stopped after its first look: 1000 unread items are the end of credits until it takes some."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", kind="async")
    frame = worker.begin()
    worker.item(frame, b"0")
    items = bench.store.get(ExecutionId("e1")).items
    assert items is not None
    items.take()
    allowed, sent = 64, 1
    while sent < allowed + worker.credits("e1") and sent < 5000:
        worker.item(frame, b"x")
        sent += 1
    assert 1000 <= sent <= 1000 + 65
    items.take()
    bench.dispatcher.items_taken(ExecutionId("e1"))
    assert allowed + worker.credits("e1") > sent


def test_large_items_get_their_credits_back_by_bytes() -> None:
    """Three items of 100 KiB fill the worker's window; each must come back before 32 items are counted."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", kind="async")
    frame = worker.begin()
    for number in range(1, 6):
        worker.item(frame, b"x" * 100_000)
        assert worker.credits("e1") == number


def test_a_list_that_grows_beyond_its_bound_fails_and_says_to_stream() -> None:
    """Item 10 001 stops the generator."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", kind="async")
    frame = worker.begin()
    for _ in range(10_001):
        worker.item(frame, b"1")
    assert bench.source.cancelled == ["e1"]
    worker.fail(frame, RuntimeError("stopped"), "CANCELLED")
    code, message = bench.client.error("e1")
    assert code == "PAYLOAD_TOO_LARGE" and "Stream it" in message


def test_a_streamed_calls_items_go_straight_to_its_reader_and_its_credits_to_the_worker() -> None:
    """Nothing is kept in between; a reader that leaves cancels the call."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", stream=True)
    frame = worker.begin()
    worker.item(frame, b"1")
    assert [f.data for f in bench.client.frames if isinstance(f, Chunk)] == [b"1"]
    bench.dispatcher.credit(ExecutionId("e1"), 16)
    assert Credit("e1", 0, 16) in worker.sent
    bench.dispatcher.reader_gone(ExecutionId("e1"))
    assert bench.source.cancelled == ["e1"]


def test_a_generator_that_has_yielded_is_not_retried() -> None:
    """Its reader has seen items; a second run would repeat them."""
    bench = Bench(retries=3)
    worker = bench.worker()
    bench.call("e1", kind="async")
    frame = worker.begin()
    worker.item(frame, b"1")
    worker.die()
    assert bench.client.error("e1")[0] == "WORKER_LOST"


class DispatcherMachine(RuleBasedStateMachine):
    """Calls, answers, deaths, cancels and time in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(workers_max=3, max_concurrency=2, queue_size=6, execution_timeout_ms=4000, retries=1)
        self.accepted: set[str] = set()
        self.workers: list[FakeWorker] = []
        self.count = 0

    @rule(kind=st.sampled_from(["sync", "async"]), keyed=st.booleans())
    def submit(self, kind: str, keyed: bool) -> None:
        self.count += 1
        name = f"e{self.count}"
        meta = {"idempotency_key": f"k{self.count % 3}"} if keyed else {}
        try:
            self.bench.call(name, kind=kind, **meta)
        except QueueFull:
            return
        self.accepted.add(name)

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def worker_arrives(self) -> None:
        self.count += 1
        self.workers.append(self.bench.worker(f"w{self.count}", slots=2))

    def _pick(self, data: st.DataObject) -> FakeWorker | None:
        return data.draw(st.sampled_from(self.workers)) if self.workers else None

    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        worker = self._pick(data)
        if worker and worker.inbox and worker.free:
            worker.begin()

    @rule(data=st.data(), how=st.sampled_from(["result", "user", "timeout", "cancelled"]))
    def answer(self, data: st.DataObject, how: str) -> None:
        worker = self._pick(data)
        if worker and worker.running:
            frame: Invoke = next(iter(worker.running.values()))
            if how == "result":
                worker.succeed(frame)
            elif how == "user":
                worker.fail(frame, ValueError("x"))
            else:
                worker.fail(frame, TimeoutError(), "TIMEOUT" if how == "timeout" else "CANCELLED")

    @rule(data=st.data())
    def busy(self, data: st.DataObject) -> None:
        worker = self._pick(data)
        if worker and worker.inbox:
            worker.busy(worker.inbox[0], free=worker.free)

    @rule(data=st.data(), reported=st.booleans())
    def die(self, data: st.DataObject, reported: bool) -> None:
        worker = self._pick(data)
        if worker:
            self.workers.remove(worker)
            worker.die(-9 if reported else None)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.accepted:
            name = data.draw(st.sampled_from(sorted(self.accepted)))
            try:
                self.bench.dispatcher.cancel(ExecutionId(name))
            except LookupError:
                assert self.bench.store.recent(limit=10**6)  # attached to another execution by its key

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    @invariant()
    def slots_and_queues_keep_their_bounds(self) -> None:
        for worker in self.workers:
            assert len(worker.inbox) + len(worker.running) <= 2
        lane = self.bench.dispatcher._lanes["m"]  # type: ignore[index]
        held = [call for worker in lane.slots.workers.values() for call in worker.calls]
        assert len(held) == len(set(held)), "a call is with two workers"
        assert all(worker.worker.free <= worker.free for worker in self.workers), "more is promised than there is"
        queued = lane.queue.peek(lane.queue.ready)
        for call in queued:
            assert call.queued and not call.execution.ended and call.worker is None
        assert len({call.id for call in queued}) == len(queued) and not {call.id for call in queued} & set(held)
        assert all(wanted <= 3 for _, wanted in self.bench.source.scaled)

    def teardown(self) -> None:
        """Whatever happened: with patient workers every accepted call is answered exactly once."""
        for worker in list(self.workers):
            worker.die()
        self.workers = [self.bench.worker("last", slots=2)]
        for _ in range(400):
            self.bench.clock.advance(10)
            if not self.workers[0].run_all() and not self.bench.waiting():
                break
        for name in self.accepted:
            assert self.bench.client.final(name) is not None, name


class QuietMachine(RuleBasedStateMachine):
    """Workers that begin calls without a word, take any time for them, and die."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(workers_max=2, queue_size=50)
        self.ran: Counter[str] = Counter()
        self.workers: list[FakeWorker] = []
        self.last: dict[str, Invoke] = {}
        self.count = 0

    @rule()
    def submit(self) -> None:
        self.count += 1
        self.bench.call(f"e{self.count}")
        self.ran[f"e{self.count}"] += 0

    @precondition(lambda self: len(self.workers) < 2)
    @rule()
    def worker_arrives(self) -> None:
        self.count += 1
        worker = self.bench.worker(f"w{self.count}")
        self.workers.append(worker)
        worker.ahead = 4
        worker.say(Credit(free=worker.said))

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def run(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        if worker.inbox and worker.free:
            self.last[worker.id] = frame = worker.begin_quietly()
            self.ran[frame.execution] += 1

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        for frame in list(worker.running.values()):
            worker.succeed(frame)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), reported=st.booleans())
    def die(self, data: st.DataObject, reported: bool) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        self.workers.remove(worker)
        last = self.last.get(worker.id)
        worker.die(-9 if reported else None, begun=[last] if last else [])

    @rule(seconds=st.sampled_from([0.01, 0.1, 1.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        for worker in self.workers:  # what was taken back is not there any more
            taken = {(frame.execution, frame.attempt) for frame in worker.told(Discard)}
            worker.inbox = [frame for frame in worker.inbox if (frame.execution, frame.attempt) not in taken]

    @invariant()
    def no_call_runs_twice(self) -> None:
        assert all(count <= 1 for count in self.ran.values()), self.ran

    def teardown(self) -> None:
        """Each call has an answer in the end, and none ran twice."""
        for worker in self.workers:
            worker.die(begun=[self.last[worker.id]] if worker.id in self.last else [])
        self.workers = []
        self.bench.clock.advance(1)
        last = self.bench.worker("last")
        while last.inbox:
            frame = last.begin()
            self.ran[frame.execution] += 1
            last.succeed(frame)
        self.no_call_runs_twice()
        for name in self.ran:
            assert self.bench.client.final(name) is not None, name


TestQuietMachine = QuietMachine.TestCase
TestQuietMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
