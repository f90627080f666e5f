"""A dispatcher that hands out no async calls any more, because its program is about to end."""

import pytest
from queueing_fixtures import Bench, FakeWorker, SlowStore, plan_of

from flashmesh.kit.ids import EndpointName, FunctionId
from flashmesh.queueing.recall import RECALL_S
from flashmesh.wire.frames import Credit, Discard


def sent(worker: FakeWorker) -> list[str]:
    return [frame.execution for frame in worker.inbox]


@pytest.mark.parametrize("urgent", [0, 1])
def test_async_calls_keep_their_place_and_sync_ones_go_on(urgent: int) -> None:
    """A worker that becomes free runs the sync call behind them, and then nothing."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    running = bench.call("runs", kind="async")
    frame = worker.begin()
    for number in range(2):
        bench.call(f"a{number}", kind="async", priority=urgent)
    bench.call("s")
    bench.dispatcher.pause()
    worker.succeed(frame)
    assert running.ended
    assert sent(worker) == ["s"]
    assert worker.run_all() == 1
    assert [bench.status(name) for name in ("a0", "a1", "s")] == ["QUEUED", "QUEUED", "SUCCESS"]
    assert [call.id for call in bench.dispatcher.unfinished()] == ["a0", "a1"]


def test_sync_calls_are_not_made_to_share_with_calls_that_stay() -> None:
    """However many pass."""
    bench = Bench(workers_max=1, queue_size=100)
    bench.call("a", kind="async")
    for number in range(30):
        bench.call(f"s{number}")
    bench.dispatcher.pause()
    assert bench.worker().run_all() == 30


def test_no_worker_is_made_for_calls_that_stay() -> None:
    bench = Bench(workers_max=4)
    bench.dispatcher.pause()
    for number in range(4):
        bench.call(f"a{number}", kind="async")
    assert (bench.source.ensured, bench.source.scaled) == ([], [])
    bench.call("s")
    assert bench.source.scaled == [(EndpointName("m"), 1)]


def test_a_call_whose_record_becomes_durable_meanwhile_stays_too() -> None:
    bench = Bench(store=SlowStore, workers_max=1)
    worker = bench.worker()
    bench.call("a", kind="async")
    bench.dispatcher.pause()
    bench.store.commit()
    assert sent(worker) == []
    assert bench.waiting() == 1


def test_what_waits_at_the_only_worker_behind_a_long_call_is_taken_back() -> None:
    """Else it would begin when that call ends."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    worker.ahead = 1
    worker.say(Credit(free=worker.said))
    for name in ("runs", "a"):
        bench.call(name, kind="async")
    frame = worker.begin()
    assert sent(worker) == ["a"]
    bench.dispatcher.pause()
    bench.clock.advance(RECALL_S + 0.001)
    assert worker.told(Discard) == [Discard("a", 1)]
    worker.inbox.clear()
    worker.succeed(frame)
    assert sent(worker) == []
    assert bench.status("a") == "QUEUED"


def test_a_running_call_that_loses_its_worker_stays_and_whoever_drains_is_told() -> None:
    """It runs again after the restart, not now."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("a", kind="async")
    worker.begin()
    told: list[str] = []
    bench.dispatcher.on_requeued.append(lambda execution: told.append(execution.id))
    bench.dispatcher.pause()
    worker.die()
    assert told == ["a"]
    other = bench.worker("w2")
    bench.clock.advance(60)
    assert sent(other) == []
    after = bench.restart(workers_max=1)
    after.restore()
    assert after.worker("w3").run_all() == 1


def test_an_endpoint_that_is_declared_later_is_paused_as_well() -> None:
    bench = Bench()
    bench.dispatcher.pause()
    bench.dispatcher.declare(plan_of(name=EndpointName("n"), functions=frozenset({FunctionId("n.f")})))
    bench.call_function("n.f", "a", kind="async")
    assert sent(bench.worker(endpoint="n")) == []
