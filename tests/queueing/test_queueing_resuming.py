"""Going on after the server, or a link, was gone: nothing accepted is lost, nothing completes twice."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from queueing_fixtures import Bench, FakeWorker, SlowStore, plan_of

from flashmesh.executions.store import StoreUnavailable
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId, FunctionId
from flashmesh.queueing.outcomes import RESUME_S
from flashmesh.wire.frames import Ack, Cancel, Invoke


def dead(bench: Bench) -> Bench:
    """The server after a kill -9, with its endpoints declared and its store read."""
    after = bench.restart(workers_max=2)
    after.restore()
    return after


# The server


def test_what_waited_when_the_server_died_runs_in_its_order_under_its_attempt() -> None:
    """With priorities, limits and payloads as they were."""
    before = Bench()
    before.call("e1", kind="async", payload=b"[1]", deadline_ms=700)
    before.call("e2", kind="async")
    before.call("e3", kind="async", priority=1)
    after = dead(before)
    worker = after.worker(slots=3)
    assert [frame.execution for frame in worker.inbox] == ["e3", "e1", "e2"]
    frame = next(frame for frame in worker.inbox if frame.execution == "e1")
    assert (frame.payload, frame.attempt, frame.deadline_ms) == (b"[1]", 1, 700)
    worker.run_all()
    assert after.status("e1") == "SUCCESS"


def test_a_worker_goes_on_with_the_call_it_runs_under_its_attempt() -> None:
    """No second run; the record goes on where it was."""
    before = Bench()
    before.call("e1", kind="async")
    frame = before.worker().begin()
    before.clock.advance(1.0)
    after = dead(before)
    worker = after.worker(running=[frame])
    other = after.worker("w2")
    after.clock.advance(2 * RESUME_S)
    assert (worker.inbox, other.inbox, after.status("e1")) == ([], [], "RUNNING")
    worker.succeed(frame, b"once")
    execution = after.dispatcher.execution(ExecutionId("e1"))
    assert (execution.result, execution.attempt, execution.worker) == (b"once", 1, worker.id)


def test_an_outcome_that_a_worker_held_while_the_server_was_away_counts() -> None:
    """It is taken over and acknowledged; nothing runs again."""
    before = Bench()
    before.call("e1", kind="async")
    frame = before.worker().begin()
    after = dead(before)
    worker = after.worker(held=[frame])
    worker.answer(frame, b"held")
    after.clock.advance(2 * RESUME_S)
    assert (after.status("e1"), worker.acked, worker.inbox) == ("SUCCESS", ["e1"], [])


def test_a_running_call_that_no_worker_claims_runs_again_as_the_next_attempt() -> None:
    """After RESUME_S, and before what came later."""
    before = Bench(workers_max=1)
    worker = before.worker()
    before.call("e1", kind="async")
    worker.begin()
    before.call("e2", kind="async")
    after = before.restart(workers_max=1)
    after.restore()
    after.call("block", kind="sync")
    fresh = after.worker("w9")
    blocking = fresh.begin()
    after.clock.advance(RESUME_S)
    fresh.succeed(blocking)
    assert [(frame.execution, frame.attempt) for frame in fresh.inbox] == [("e1", 2)]
    fresh.run_all()
    assert (after.status("e1"), after.status("e2")) == ("SUCCESS", "SUCCESS")


def test_a_call_whose_start_was_not_stored_yet_is_found_by_its_worker() -> None:
    """The store says QUEUED, the worker says that it runs: it is right, and nobody else gets it."""
    before = Bench()
    before.call("e1", kind="async")
    sent = before.worker().inbox[0]
    after = dead(before)
    worker = after.worker(running=[sent])
    assert (worker.inbox, after.status("e1"), after.waiting()) == ([], "RUNNING", 0)


def test_a_worker_that_claims_what_is_not_its_to_run_is_told_to_stop() -> None:
    """Unknown, or of a past attempt that another worker repeats; its outcome is acknowledged and not used."""
    before = Bench(retries=3)
    before.call("e1", kind="async")
    frame = before.worker().begin()
    after = dead(before)
    after.clock.advance(RESUME_S)
    fresh = after.worker("w2")
    second = fresh.begin()
    assert second.attempt == 2
    unknown = Invoke("nobody", "m.f", 1)
    stale = after.worker("w1", slots=2, running=[frame, unknown])
    assert stale.told(Cancel) == [Cancel("e1", attempt=1), Cancel("nobody", attempt=1)]
    stale.succeed(frame, b"stale")
    after.clock.advance(0)
    assert (after.status("e1"), stale.acked) == ("RUNNING", ["e1"])
    fresh.succeed(second, b"fresh")
    assert after.dispatcher.execution(ExecutionId("e1")).result == b"fresh"


def test_a_worker_that_returns_too_late_does_not_go_on() -> None:
    """Its attempt is over: the next one waits for a worker, and may go to this one."""
    before = Bench()
    before.call("e1", kind="async")
    frame = before.worker().begin()
    after = dead(before)
    after.clock.advance(RESUME_S)
    late = after.worker(slots=2, running=[frame])
    assert late.told(Cancel) == [Cancel("e1", attempt=1)]
    assert [(sent.execution, sent.attempt) for sent in late.inbox] == [("e1", 2)]


def test_of_two_workers_that_claim_a_call_one_has_it() -> None:
    """The other is told to stop, and what it answers is left aside."""
    before = Bench()
    before.call("e1", kind="async")
    frame = before.worker().begin()
    after = dead(before)
    one, other = after.worker("w1", running=[frame]), after.worker("w2", running=[frame])
    assert (one.told(Cancel), other.told(Cancel)) == ([], [Cancel("e1", attempt=1)])
    other.succeed(frame, b"other")
    one.succeed(frame, b"one")
    assert after.dispatcher.execution(ExecutionId("e1")).result == b"one"


def test_a_call_taken_back_before_the_server_died_is_claimed_under_its_later_number() -> None:
    """The worker that had it second says so, and its answer counts."""
    before = Bench()
    before.call("e1", kind="async")
    frame = before.worker().begin()
    moved = Invoke("e1", "m.f", frame.attempt + 1)
    after = dead(before)
    worker = after.worker(running=[moved])
    worker.succeed(moved, b"moved")
    assert after.dispatcher.execution(ExecutionId("e1")).result == b"moved"


def test_calls_of_endpoints_that_are_not_served_any_more_fail() -> None:
    """They say what to do."""
    before = Bench()
    before.call("e1", kind="async")
    before.call("e2", kind="async")
    before.worker().begin()
    after = before.restart(name=EndpointName("other"), functions=frozenset({FunctionId("other.f")}))
    after.restore()
    for name in ("e1", "e2"):
        execution = after.dispatcher.execution(ExecutionId(name))
        assert (execution.status, execution.error_code) == ("ERROR", "ENDPOINT_UNAVAILABLE")


def test_a_call_cancelled_before_anybody_claims_it_never_runs_again() -> None:
    """Whether its worker comes back, and is stopped, or is gone."""
    for returns in (True, False):
        before = Bench(workers_max=1)
        before.call("e1", kind="async")
        frame = before.worker().begin()
        before.call("e2", kind="async")
        after = dead(before)
        after.dispatcher.cancel(ExecutionId("e1"))
        worker = after.worker(running=[frame] if returns else [])
        assert [sent.execution for sent in worker.sent if isinstance(sent, Cancel)] == ["e1"] * returns
        after.clock.advance(RESUME_S)
        assert after.status("e1") == "CANCELLED"
        assert [sent.execution for sent in worker.inbox] == ([] if returns else ["e2"])  # it is still stopping


def test_a_restored_call_keeps_its_run_time_limit() -> None:
    """Counted from its start, not from the restart."""
    before = Bench(execution_timeout_ms=10_000)
    before.call("e1", kind="async")
    frame = before.worker().begin()
    before.clock.advance(8)
    after = before.restart(execution_timeout_ms=10_000)
    after.restore()
    after.worker(running=[frame])
    after.clock.advance(6.9)
    assert after.status("e1") == "RUNNING"
    after.clock.advance(0.2)
    assert after.status("e1") == "TIMEOUT"


def test_a_long_backlog_is_restored_whole() -> None:
    before = Bench()
    for number in range(10_000):
        before.call(f"e{number}", kind="async")
    after = before.restart()
    after.dispatcher.restore(after.store.unfinished())
    assert after.waiting() == 10_000


# The link


def test_a_worker_whose_link_broke_comes_back_with_its_call() -> None:
    """On another machine a connection may break under a worker that lives: it has RESUME_S to return."""
    bench = Bench()
    worker = bench.worker(remote=True)
    bench.call("e1")
    frame = worker.begin()
    worker.die(None)
    bench.clock.advance(RESUME_S - 0.1)
    again = bench.worker(remote=True, running=[frame])
    bench.clock.advance(2 * RESUME_S)
    assert bench.status("e1") == "RUNNING"
    again.succeed(frame, b"kept")
    assert bench.client.result("e1") == b"kept"


def test_a_worker_that_comes_back_without_its_call_has_lost_it() -> None:
    """The attempt is over at once."""
    bench = Bench()
    worker = bench.worker(remote=True)
    bench.call("e1", kind="async")
    worker.begin()
    worker.die(None)
    bench.worker(remote=True)
    assert bench.status("e1") == "QUEUED"
    assert bench.dispatcher.execution(ExecutionId("e1")).attempt == 2


def test_a_new_link_of_a_worker_ends_its_old_one() -> None:
    """Its machine was faster to dial again than the network to report the break."""
    bench = Bench()
    worker = bench.worker(remote=True)
    bench.call("e1")
    frame = worker.begin()
    again = bench.worker(remote=True, running=[frame])
    assert worker.closed
    bench.dispatcher.worker_lost(worker.worker)
    again.succeed(frame, b"kept")
    assert bench.client.result("e1") == b"kept"
    assert len(bench.dispatcher.status()["endpoints"][0]["processes"]) == 1


def test_an_outcome_is_acknowledged_only_after_its_commit() -> None:
    """A commit that fails leaves it with the worker, until a later one succeeds."""
    bench = Bench(SlowStore)
    assert isinstance(bench.store, SlowStore)
    worker = bench.worker()
    bench.call("e1", kind="async")
    bench.store.commit()
    worker.run_all()
    bench.clock.advance(0.1)
    assert worker.told(Ack) == []
    bench.store.commit(StoreUnavailable())
    bench.clock.advance(2.0)
    assert worker.told(Ack) == []
    bench.store.commit()
    bench.clock.advance(0)
    assert worker.acked == ["e1"]


def test_an_outcome_that_comes_again_before_its_commit_is_not_acknowledged_early() -> None:
    """The link broke between the outcome and its commit: the worker has to go on holding it."""
    bench = Bench(SlowStore)
    assert isinstance(bench.store, SlowStore)
    worker = bench.worker(remote=True)
    bench.call("e1", kind="async")
    bench.store.commit()
    frame = worker.begin()
    worker.succeed(frame)
    worker.die(None)
    again = bench.worker(remote=True, held=[frame])
    again.answer(frame)
    bench.clock.advance(0.1)
    assert again.acked == []
    bench.store.commit()
    bench.clock.advance(0)
    assert again.acked == ["e1"]


def test_a_worker_that_leaves_keeps_its_link_until_its_last_outcome_is_acknowledged() -> None:
    """Closing before would take the outcome along if the server died before its commit."""
    bench = Bench(SlowStore, workers_max=1)
    assert isinstance(bench.store, SlowStore)
    worker = bench.worker()
    bench.call("e1", kind="async")
    bench.store.commit()
    frame = worker.begin()
    bench.dispatcher.declare(plan_of(build=BuildId("b2")))
    bench.dispatcher.template_lost(EndpointName("m"))
    worker.succeed(frame)
    assert not worker.closed
    bench.store.commit()
    bench.clock.advance(0)
    assert (worker.acked, worker.closed) == (["e1"], True)


class RestartMachine(RuleBasedStateMachine):
    """Async calls, workers that go on over deaths of the server, and workers that die, in any order."""

    @initialize()
    def begin(self) -> None:
        self.bench = Bench(workers_max=2, max_retries=100)
        self.count = 0
        self.accepted: set[str] = set()
        self.runs: dict[str, list[Invoke]] = {}
        self.workers: dict[str, FakeWorker] = {}
        self.held: dict[str, list[Invoke]] = {}
        self.results: dict[str, bytes] = {}

    @rule()
    def call(self) -> None:
        self.count += 1
        self.bench.call(f"e{self.count}", kind="async")
        self.accepted.add(f"e{self.count}")

    @precondition(lambda self: len(self.workers) < 2)
    @rule()
    def arrive(self) -> None:
        self.count += 1
        name = f"w{self.count}"
        self.workers[name] = self.bench.worker(name, slots=2)
        self.held[name] = []

    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        for worker in self.workers.values():
            if worker.inbox and worker.free and data.draw(st.booleans()):
                worker.begin()

    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        for name, worker in self.workers.items():
            for frame in list(worker.running.values()):
                if data.draw(st.booleans()):
                    self.held[name].append(frame)
                    worker.succeed(frame, b"%d" % frame.attempt)
            self.forget(name)

    def forget(self, name: str) -> None:
        self.bench.clock.advance(0)
        acked = set(self.workers[name].acked)
        self.held[name] = [frame for frame in self.held[name] if frame.execution not in acked]

    @rule(data=st.data(), answered=st.booleans())
    def kill_the_server(self, data: st.DataObject, answered: bool) -> None:
        ended = {
            name: execution.result
            for name in self.accepted
            if (execution := self.bench.store.get(ExecutionId(name))).ended
        }
        self.results.update(ended)
        after = self.bench.restart(workers_max=2, max_retries=100)
        for name in ended:
            after.store._executions[ExecutionId(name)] = self.bench.store.get(ExecutionId(name))
        self.bench = after
        after.restore()
        before, self.workers = self.workers, {}
        for name, worker in before.items():
            running = list(worker.running.values())
            if answered and running:  # it ends while nobody listens
                self.held[name].append(running.pop())
            back = self.bench.worker(name, slots=2, running=running, held=self.held[name])
            self.workers[name] = back
            for frame in self.held[name]:
                back.answer(frame, b"%d" % frame.attempt)
            self.forget(name)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def kill_a_worker(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.workers)))
        self.workers.pop(name).die()
        self.held.pop(name)

    @rule(seconds=st.sampled_from([0.1, 3.0, 60.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)

    def teardown(self) -> None:
        """With patient workers everything accepted ends well, and what had ended has not changed."""
        if not hasattr(self, "bench"):
            return
        for worker in self.workers.values():
            worker.die()
        last = self.bench.worker("last", slots=2)
        for _ in range(200):
            self.bench.clock.advance(60)
            if not last.run_all() and not self.bench.dispatcher.in_flight:
                break
        for name in self.accepted:
            execution = self.bench.store.get(ExecutionId(name))
            assert execution.status == "SUCCESS", (name, execution)
            assert execution.result == self.results.get(name, execution.result), "an ended execution has changed"


TestRestartMachine = RestartMachine.TestCase
TestRestartMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
