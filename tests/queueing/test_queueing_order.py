"""Priorities, purges, and what an endpoint counts."""

import pytest
from queueing_fixtures import Bench, make_call

from flashmesh.executions.record import Execution
from flashmesh.functions.errors import QueueFull
from flashmesh.kit.ids import EndpointName, ExecutionId
from flashmesh.queueing.queues import SHARE, EndpointQueue
from flashmesh.wire.frames import Cancel, PeerCall, Summary

M = EndpointName("m")


def order(bench: Bench) -> list[str]:
    worker = bench.worker()
    ran = []
    while worker.inbox:
        frame = worker.begin()
        ran.append(frame.execution)
        worker.succeed(frame)
    return ran


def test_urgent_calls_go_first_within_their_kind() -> None:
    """An urgent async call passes other async calls, not the sync ones somebody waits for."""
    bench = Bench(workers_max=1)
    bench.call("a1", kind="async")
    bench.call("a2", kind="async", priority=1)
    bench.call("s1")
    bench.call("s2", priority=1)
    assert order(bench) == ["s2", "s1", "a2", "a1"]


def test_urgent_calls_never_starve_the_others() -> None:
    """After SHARE of them an ordinary call has its turn."""
    bench = Bench(workers_max=1, queue_size=100)
    for number in range(2):
        bench.call(f"n{number}", kind="async")
    for number in range(3 * SHARE):
        bench.call(f"u{number}", kind="async", priority=1)
    ran = order(bench)
    assert (ran.index("n0"), ran.index("n1")) == (SHARE, 2 * SHARE + 1)


def test_functions_of_an_endpoint_take_turns() -> None:
    """A hundred calls of one do not stand before the first of another, whoever waits for them."""
    for kind in ("sync", "async"):
        bench = Bench(workers_max=1)
        for number in range(5):
            bench.call_function("m.f", f"f{number}", kind=kind)
        for number in range(2):
            bench.call_function("m.g", f"g{number}", kind=kind)
        assert order(bench) == ["f0", "g0", "f1", "g1", "f2", "f3", "f4"]


def test_what_comes_back_is_first_whatever_function_had_its_turn() -> None:
    queue = EndpointQueue()
    first, second, third = (make_call(name, function=f"m.{name[0]}") for name in ("f1", "g1", "f2"))
    for call in (first, second, third):
        queue.push(call)
    queue.take(first)
    queue.push_front(first)
    assert [call.id for call in queue.peek(3)] == ["f1", "g1", "f2"]


def test_a_function_is_not_refused_because_calls_of_another_fill_the_queue() -> None:
    bench = Bench(workers_max=1, queue_size=3)
    for number in range(3):
        bench.call_function("m.f", f"f{number}")
    with pytest.raises(QueueFull):
        bench.call_function("m.f", "f3")
    bench.call_function("m.g", "g0")
    with pytest.raises(QueueFull):
        bench.call_function("m.g", "g1")
    assert order(bench)[:2] == ["f0", "g0"]


def test_an_urgent_call_comes_back_to_the_head_of_the_urgent_ones() -> None:
    """What was not run keeps its place."""
    queue = EndpointQueue()
    calls = [make_call(name) for name in ("n", "u1", "u2")]
    for call in calls[1:]:
        call.urgent = True
    queue.push(calls[0])
    queue.push(calls[2])
    queue.push_front(calls[1])
    assert [call.id for call in queue.peek(3)] == ["u1", "u2", "n"]
    assert queue.drain() == [calls[1], calls[2], calls[0]]


def test_purging_cancels_what_waits_and_nothing_else() -> None:
    """Sync, async and in back-off alike; the running call goes on."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("again", kind="async")
    worker.begin()
    worker.die()
    worker = bench.worker("w2")
    bench.call("runs")
    frame = worker.begin()
    bench.call("s")
    bench.call("a", kind="async")
    assert bench.dispatcher.purge(M) == 3
    assert [bench.status(name) for name in ("again", "s", "a", "runs")] == ["CANCELLED"] * 3 + ["RUNNING"]
    assert (bench.waiting(), worker.told(Cancel)) == (0, [])
    worker.succeed(frame)
    assert bench.dispatcher.purge(M) == 0
    assert bench.dispatcher.purge(EndpointName("none")) == 0


def test_a_call_may_allow_fewer_or_more_retries_than_its_endpoint() -> None:
    """`max_retries` of the call counts, nought included."""
    for own, attempts in ((0, 1), (1, 2), (5, 6)):
        bench = Bench(workers_max=1, max_retries=3)
        bench.call("e1", kind="async", max_retries=own)
        for number in range(attempts):
            assert bench.status("e1") == "QUEUED"
            worker = bench.worker(f"w{number}")
            bench.clock.advance(60)
            worker.begin()
            worker.die()
        assert bench.status("e1") == "ERROR"


def test_health_tells_jobs_and_workers_by_state() -> None:
    """In RunPod's words; the counters last for the life of the process."""
    bench = Bench(workers_max=2, retries=1)
    bench.worker("w1")
    bench.worker("w2")
    bench.call("good")
    health = bench.dispatcher.health(M)
    assert (health["workers"]["ready"], health["workers"]["running"], health["workers"]["idle"]) == (2, 1, 1)
    assert (health["jobs"]["inQueue"], health["jobs"]["inProgress"]) == (1, 0)


def test_ended_and_retried_calls_are_counted_per_endpoint() -> None:
    """Success, failure, cancel and retry each have a counter; status shows them."""
    bench = Bench(workers_max=1, retries=1)
    worker = bench.worker()
    ended: list[Execution] = []
    bench.dispatcher.on_ended.append(ended.append)
    bench.call("good")
    worker.run_all()
    bench.call("bad")
    worker.fail(worker.begin(), ValueError("no"))
    bench.clock.advance(1)
    worker.fail(worker.begin(), ValueError("no"))
    bench.call("runs")
    worker.begin()
    bench.call("gone")
    bench.dispatcher.cancel(ExecutionId("gone"))
    jobs = bench.dispatcher.health(M)["jobs"]
    assert jobs == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 0, "retried": 1}
    assert bench.dispatcher.status()["endpoints"][0]["cancelled"] == 1
    assert bench.dispatcher.running_of(M) == 1
    assert [(execution.id, str(execution.status)) for execution in ended] == [
        ("good", "SUCCESS"),
        ("bad", "ERROR"),
        ("gone", "CANCELLED"),
    ]


def test_a_retry_by_a_client_names_the_execution_it_repeats() -> None:
    """The record says so."""
    bench = Bench()
    assert bench.call("e2", kind="async", retried_from="e1").retried_from == "e1"
    assert bench.call("e3").retried_from is None


def test_calls_of_peers_are_logged_counted_and_told() -> None:
    """One closing line each with the route `peer`; their run time counts for scaling."""
    bench = Bench()
    worker = bench.worker()
    told: list[int] = []
    bench.dispatcher.on_summary.append(lambda endpoint, name, summary: told.append(len(summary.calls)))
    calls = [
        PeerCall("p1", "m.f", "e0", "trace", 1, 2000, 40_000),
        PeerCall("p2", "m.f", outcome="error", code="USER_ERROR"),
    ]
    worker.say(Summary(calls, dropped=3))
    lines = [fields for name, fields in bench.events if name == "invocation"]
    assert [(line["execution"], line["route"], line["outcome"]) for line in lines] == [
        ("p1", "peer", "success"),
        ("p2", "peer", "error"),
    ]
    assert (lines[0]["parent"], lines[0]["queue_ms"], lines[0]["run_ms"]) == ("e0", 2.0, 40.0)
    assert told == [2]
    assert ("summary_dropped", {"endpoint": "m", "worker": worker.id, "calls": 3}) in bench.events
    status = bench.dispatcher.status()["endpoints"][0]
    assert status["peer_calls"] == 2 and status["mean_run_ms"] is not None
