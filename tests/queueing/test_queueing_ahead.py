"""Calls that wait at a worker behind those it runs, and how they come back from there."""

from queueing_fixtures import Bench, FakeWorker

from flashmesh.kit.ids import ExecutionId
from flashmesh.queueing.assign import AHEAD_BYTES
from flashmesh.queueing.recall import RECALL_S
from flashmesh.wire.frames import JSON, Ack, Cancel, Credit, Discard, Result


def eager(bench: Bench, name: str = "w1", ahead: int = 3) -> FakeWorker:
    """A worker that asks for calls ahead."""
    worker = bench.worker(name)
    worker.ahead = ahead
    worker.say(Credit(free=worker.said))
    return worker


def waiting(worker: FakeWorker) -> list[str]:
    return [frame.execution for frame in worker.inbox]


def test_a_worker_is_sent_as_many_calls_as_it_asks_for() -> None:
    """One that runs and three that wait; each end makes room for one more."""
    bench = Bench(workers_max=1)
    worker = eager(bench)
    for number in range(6):
        bench.call(f"e{number}")
    assert waiting(worker) == ["e0", "e1", "e2", "e3"]
    frame = worker.begin()
    assert len(worker.inbox) == 3
    worker.succeed(frame)
    assert waiting(worker) == ["e1", "e2", "e3", "e4"]


def test_an_idle_worker_comes_before_a_place_behind_a_running_call() -> None:
    """However many calls the busy one asks for."""
    bench = Bench(workers_max=3)
    busy = eager(bench, "w1", ahead=50)
    bench.call("e0")
    busy.begin()
    idle = bench.worker("w2")
    bench.call("e1")
    bench.call("e2")
    assert (waiting(idle), waiting(busy)) == (["e1"], ["e2"])


def test_a_large_call_waits_for_a_free_slot() -> None:
    """Megabytes do not pile up in a worker's memory."""
    bench = Bench(workers_max=1)
    worker = eager(bench)
    bench.call("e0")
    bench.call("big", payload=b"x" * (AHEAD_BYTES + 1))
    assert waiting(worker) == ["e0"]
    worker.run_all()
    assert bench.client.result("big") == b"1"


def test_what_waits_behind_a_call_that_runs_long_goes_elsewhere_as_another_attempt() -> None:
    """The worker is told to leave it; an answer of the first attempt changes nothing."""
    bench = Bench(workers_max=2)
    slow = eager(bench)
    for number in range(3):
        bench.call(f"e{number}")
    slow.begin()
    bench.clock.advance(RECALL_S / 2)
    assert slow.told(Discard) == []
    bench.clock.advance(RECALL_S)
    assert slow.told(Discard) == [Discard("e1", 1), Discard("e2", 1)]
    other = bench.worker("w2")
    frame = other.begin()
    assert (frame.execution, frame.attempt) == ("e1", 2)
    late = next(sent for sent in slow.inbox if sent.execution == "e1")
    slow.answer(late, b"late")
    assert bench.client.final("e1") is None
    other.succeed(frame, b"right")
    assert bench.client.result("e1") == b"right"
    assert bench.dispatcher.execution(ExecutionId("e2")).attempt == 1, "moving is no retry"


def test_a_worker_that_was_idle_for_long_has_its_time_for_what_it_is_sent() -> None:
    """The first call is sent now: what waits behind it does so from now on."""
    bench = Bench(workers_max=2)
    worker = eager(bench)
    bench.clock.advance(60)
    for number in range(3):
        bench.call(f"e{number}")
    bench.clock.advance(RECALL_S - 0.002)
    assert worker.told(Discard) == []


def test_a_worker_whose_calls_were_taken_back_gets_none_ahead_until_one_has_ended() -> None:
    """Else they would be back behind the slow one at once."""
    bench = Bench(workers_max=2)
    slow = eager(bench)
    bench.call("e0")
    bench.call("e1")
    running = slow.begin()
    bench.clock.advance(2 * RECALL_S)
    slow.inbox.clear()
    assert bench.waiting() == 1
    slow.succeed(running)
    assert waiting(slow) == ["e1"]


def test_calls_are_not_taken_back_where_no_other_worker_can_be() -> None:
    """They would only come back to the same one."""
    bench = Bench(workers_max=1)
    slow = eager(bench)
    bench.call("e0")
    bench.call("e1")
    slow.begin()
    bench.clock.advance(1.0)
    assert slow.told(Discard) == []


def test_a_call_begun_a_moment_before_it_was_taken_back_is_stopped_there() -> None:
    """STARTED and DISCARD have passed each other: its slot is booked as taken, its run is not wanted."""
    bench = Bench(workers_max=2)
    slow = eager(bench)
    bench.call("e0")
    bench.call("e1")
    first = slow.begin()
    bench.clock.advance(2 * RECALL_S)
    del slow.running[first.execution]
    stale = slow.begin()
    assert slow.told(Cancel) == [Cancel("e1", attempt=1)]
    assert slow.worker.reported == 2, "a slot and what may wait, less the two it has begun"
    assert bench.status("e1") == "QUEUED"
    slow.running[first.execution] = first
    slow.succeed(stale, b"stale")
    assert bench.client.final("e1") is None


def test_a_result_may_say_which_call_begins_in_its_slot() -> None:
    """That call runs from then on, with nothing else said, and the slot counts as taken."""
    bench = Bench(workers_max=1)
    worker = eager(bench)
    bench.call("e0")
    bench.call("e1")
    first, second = worker.begin(), worker.inbox.pop(0)
    del worker.running[first.execution]
    free = worker.said
    worker.running[second.execution] = second
    worker.say(
        Result(
            first.execution, 1, free, JSON, 1000, payload=b"1", begins=second.execution, begins_attempt=second.attempt
        )
    )
    assert (bench.status("e0"), bench.status("e1")) == ("SUCCESS", "RUNNING")
    assert worker.worker.free == worker.said
    worker.succeed(second, b"2")
    assert bench.client.result("e1") == b"2"


def test_a_cancelled_call_that_waits_behind_a_slow_one_does_not_wait_for_it() -> None:
    """It ends when it is taken back."""
    bench = Bench(workers_max=2)
    slow = eager(bench)
    bench.call("e0")
    bench.call("e1")
    slow.begin()
    bench.dispatcher.cancel(ExecutionId("e1"))
    bench.clock.advance(2 * RECALL_S)
    assert bench.status("e1") == "CANCELLED"


def test_calls_that_waited_at_a_worker_that_dies_keep_place_and_attempt() -> None:
    """None of them had begun."""
    bench = Bench(workers_max=1)
    worker = eager(bench)
    for number in range(4):
        bench.call(f"e{number}")
    worker.begin()
    worker.die()
    fresh = bench.worker("w2", slots=3)
    assert [(frame.execution, frame.attempt) for frame in fresh.inbox] == [("e1", 1), ("e2", 1), ("e3", 1)]


def test_outcomes_of_calls_whose_record_lasts_are_acknowledged_together() -> None:
    """Async and keyed ones, once per turn of the loop; sync ones are nobody's to keep."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("a", kind="async")
    bench.call("k", idempotency_key="k")
    bench.call("s")
    worker.run_all()
    assert worker.told(Ack) == []
    bench.clock.advance(0)
    assert [sorted(frame.executions) for frame in worker.told(Ack)] == [["a", "k"]]
