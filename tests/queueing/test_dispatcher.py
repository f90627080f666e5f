"""A call's way through the dispatcher, in virtual time, with fakes at its ports."""

import pytest
from queueing_fixtures import Bench, FakeClient, plan_of

from flashmesh.functions.errors import (
    DuplicateExecution,
    EndpointUnavailable,
    EnvironmentFailed,
    FunctionNotFound,
    IdempotencyConflict,
    ImportFailed,
    QueueFull,
)
from flashmesh.kit.ids import BuildId, EndpointName, ExecutionId, FunctionId, WorkerId
from flashmesh.wire.frames import Cancel, Credit, Drain, Invoke, Result, Started

M = EndpointName("m")


# A call that goes well


def test_a_calls_payload_and_result_pass_as_the_bytes_they_are() -> None:
    """The worker gets the client's bytes under attempt 1, the client the worker's bytes under its own id."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", payload=b'{"odd":   1}')
    frame = worker.begin()
    assert (frame.payload, frame.attempt, frame.build) == (b'{"odd":   1}', 1, "b1")
    worker.succeed(frame, b"[1,  2]")
    assert bench.client.result("e1") == b"[1,  2]"
    assert bench.status("e1") == "SUCCESS"


def test_the_first_call_starts_a_template_and_asks_for_one_worker() -> None:
    """Nothing is started before it is needed; a second call does not start it twice."""
    bench = Bench()
    assert bench.source.ensured == []
    bench.call("e1")
    assert (bench.source.ensured, bench.source.scaled) == (["m"], [("m", 1)])
    bench.call("e2")
    assert (bench.source.ensured, bench.source.scaled[-1]) == (["m"], ("m", 2))


def test_a_call_is_not_running_before_its_worker_has_begun_it() -> None:
    """QUEUED until STARTED; then RUNNING, and the client is told by whom."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1")
    assert bench.status("e1") == "QUEUED"
    worker.begin()
    assert bench.status("e1") == "RUNNING"
    assert bench.client.frames == [Started("e1", 1, worker.id, False)]


def test_queue_cold_and_run_time_are_told_apart() -> None:
    """One second for a worker to come up is cold start, half a second behind another call is queue."""
    bench = Bench(workers_max=1)
    bench.call("e1")
    bench.call("e2")
    bench.clock.advance(1.0)
    worker = bench.worker()
    first = worker.begin(cold=True)
    bench.clock.advance(0.5)
    worker.succeed(first, run_ms=500)
    worker.succeed(worker.begin())
    one, two = bench.client.final("e1"), bench.client.final("e2")
    assert isinstance(one, Result) and isinstance(two, Result)
    assert (one.cold_us, one.queue_us, one.run_us) == (1_000_000, 0, 500_000)
    assert (two.cold_us, two.queue_us) == (1_000_000, 500_000)


def test_a_worker_gets_as_many_calls_as_it_has_slots() -> None:
    """Two slots: the third call waits for a RESULT."""
    bench = Bench(workers_max=1, max_concurrency=2)
    worker = bench.worker(slots=2)
    for number in range(3):
        bench.call(f"e{number}")
    assert [frame.execution for frame in worker.inbox] == ["e0", "e1"]
    worker.succeed(worker.begin())
    assert [frame.execution for frame in worker.inbox] == ["e1", "e2"]


def test_a_peer_call_that_takes_the_last_slot_stops_the_session_from_sending() -> None:
    """CREDIT 0 closes the worker, CREDIT 1 opens it again."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    worker.say(Credit(free=0))
    bench.call("e1")
    assert worker.inbox == []
    worker.say(Credit(free=1))
    assert [frame.execution for frame in worker.inbox] == ["e1"]


def test_a_busy_answer_puts_the_call_back_at_the_head_under_the_same_attempt() -> None:
    """A slot that a peer took meanwhile costs the call nothing but a little time."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1")
    bench.call("e2")
    worker.busy(worker.inbox[0], free=0)
    worker.say(Credit(free=1))
    frame = worker.begin()
    assert (frame.execution, frame.attempt) == ("e1", 1)


# Limits


def test_a_full_queue_is_refused_with_the_time_to_come_back() -> None:
    """Sync calls beyond `queue_size` raise QueueFull; its retry_after grows with run time and queue."""
    bench = Bench(queue_size=20, workers_max=1)
    worker = bench.worker()
    bench.call("first")
    worker.succeed(worker.begin(), run_ms=10_000)
    bench.call("running")
    for number in range(20):
        bench.call(f"e{number}")
    with pytest.raises(QueueFull) as full:
        bench.call("late")
    assert full.value.retry_after == 20.0
    assert bench.waiting() == 20


def test_the_async_backlog_is_bounded_apart_by_count_and_bytes() -> None:
    """A full backlog refuses async calls and leaves sync ones alone."""
    bench = Bench(backlog=3, backlog_bytes=100, queue_size=5)
    for number in range(3):
        bench.call(f"a{number}", kind="async")
    with pytest.raises(QueueFull, match="backlog"):
        bench.call("a3", kind="async")
    bench.call("s1")
    other = Bench(backlog=10, backlog_bytes=10)
    other.call("a0", kind="async", payload=b"12345678")
    with pytest.raises(QueueFull):
        other.call("a1", kind="async", payload=b"12345678")


def test_waiting_sync_calls_are_bounded_by_bytes_too() -> None:
    """A thousand that wait with their megabytes would be gigabytes. The first may be of any size."""
    bench = Bench(queue_size=100, queue_bytes=20)
    bench.call("s0", payload=b"x" * 50)
    with pytest.raises(QueueFull) as full:
        bench.call("s1", payload=b"x")
    assert full.value.reason == "bytes"
    bench.call("a0", kind="async", payload=b"x" * 50)
    bench.worker().run_all()
    bench.call("s2", payload=b"x" * 15)
    assert bench.status("s0") == "SUCCESS"


def test_an_unknown_function_is_refused_with_the_nearest_name() -> None:
    """The message names what was probably meant."""
    with pytest.raises(FunctionNotFound, match=r"Did you mean m\.[fg]\?"):
        Bench().call_function("m.ff", "e1")


def test_an_execution_id_serves_once() -> None:
    """A second call under a known id is refused and changes nothing."""
    bench = Bench()
    bench.call("e1")
    with pytest.raises(DuplicateExecution):
        bench.call("e1")
    assert bench.waiting() == 1


def test_a_call_past_its_limit_that_nobody_stopped_is_ended_by_the_backstop() -> None:
    """The template enforces the limit; five seconds later the session does, and a late answer changes nothing."""
    bench = Bench(execution_timeout_ms=1000)
    worker = bench.worker()
    bench.call("e1")
    frame = worker.begin()
    assert frame.deadline_ms == 1000
    bench.clock.advance(5.9)
    assert bench.status("e1") == "RUNNING"
    bench.clock.advance(0.2)
    assert bench.status("e1") == "TIMEOUT"
    assert bench.client.error("e1")[0] == "TIMEOUT"
    assert bench.source.cancelled == ["e1"] and worker.told(Cancel) == [Cancel("e1", "timeout")]
    worker.succeed(frame)
    assert bench.status("e1") == "TIMEOUT"


def test_the_tighter_of_the_callers_and_the_functions_limit_counts() -> None:
    """A caller can shorten a limit, not lengthen it."""
    bench = Bench(execution_timeout_ms=1000, max_concurrency=3)
    worker = bench.worker(slots=3)
    for name, asked in (("e1", 200), ("e2", 5000), ("e3", 0)):
        bench.call(name, deadline_ms=asked)
    assert [frame.deadline_ms for frame in worker.inbox] == [200, 1000, 1000]


# Idempotency


def test_the_same_key_and_body_run_once_and_both_callers_are_answered() -> None:
    """The second caller gets the first call's answer under its own id, whether it asks before or after the end."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", idempotency_key="k")
    assert bench.call("e2", idempotency_key="k").id == "e1"
    worker.succeed(worker.begin(), b"42")
    assert bench.call("e3", idempotency_key="k").id == "e1"
    assert [bench.client.result(name) for name in ("e1", "e2", "e3")] == [b"42"] * 3
    assert worker.inbox == []
    with pytest.raises(IdempotencyConflict):
        bench.call("e4", idempotency_key="k", payload=b"other")


def test_a_failure_is_also_the_answer_of_its_idempotency_key() -> None:
    """A call that failed is not run again by a repeated request."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1", idempotency_key="k")
    worker.fail(worker.begin(), ValueError("no"))
    bench.call("e2", idempotency_key="k")
    assert bench.client.error("e1") == bench.client.error("e2") == ("USER_ERROR", "no")


# Cancel


def test_cancelling_a_waiting_call_ends_it_at_once_and_it_never_runs() -> None:
    """It leaves the queue; the next one takes its place."""
    bench = Bench(workers_max=1)
    bench.call("e1")
    bench.call("e2")
    bench.dispatcher.cancel(ExecutionId("e1"))
    assert bench.client.error("e1")[0] == "CANCELLED"
    worker = bench.worker()
    assert [frame.execution for frame in worker.inbox] == ["e2"]


def test_cancelling_a_running_call_tells_worker_and_template_and_waits_for_the_word() -> None:
    """The state changes when the body has stopped; the slot serves the next call."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1")
    bench.call("e2")
    frame = worker.begin()
    bench.dispatcher.cancel(ExecutionId("e1"))
    assert (worker.told(Cancel), bench.source.cancelled) == ([Cancel("e1", "cancel")], ["e1"])
    assert bench.status("e1") == "RUNNING"
    worker.fail(frame, RuntimeError("stopped"), "CANCELLED")
    assert bench.status("e1") == "CANCELLED"
    assert worker.begin().execution == "e2"


def test_a_cancelled_call_whose_worker_must_be_killed_is_cancelled_and_not_lost() -> None:
    """Death after a cancel is the cancel's doing."""
    bench = Bench(retries=3)
    worker = bench.worker()
    bench.call("e1", kind="async")
    worker.begin()
    bench.dispatcher.cancel(ExecutionId("e1"))
    worker.die()
    assert bench.status("e1") == "CANCELLED"


def test_a_cancel_nobody_answers_takes_effect_after_five_seconds() -> None:
    """The record does not wait for ever."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1")
    worker.begin()
    bench.dispatcher.cancel(ExecutionId("e1"))
    bench.clock.advance(5.1)
    assert bench.status("e1") == "CANCELLED"


def test_cancelling_what_has_ended_changes_nothing() -> None:
    """A terminal state stays."""
    bench = Bench()
    worker = bench.worker()
    bench.call("e1")
    worker.run_all()
    assert bench.dispatcher.cancel(ExecutionId("e1")).status == "SUCCESS"


# Endpoints that fail, change and go


def test_an_import_failure_fails_what_waits_and_what_comes_until_the_next_update() -> None:
    """File, line and reason reach the callers; saving the file again serves again."""
    bench = Bench()
    bench.call("e1", kind="async")
    error = {"file": "m.py", "line": 3, "reason": "NameError: name 'x' is not defined"}
    bench.dispatcher.template_ready(M, {"state": "import_failed", "build": "b1", "error": error})
    code, message = bench.client.error("e1")
    assert code == "IMPORT_FAILED" and "m.py:3" in message and "NameError" in message
    with pytest.raises(ImportFailed, match=r"m\.py:3"):
        bench.call("e2")
    bench.dispatcher.declare(plan_of(build=BuildId("b2")))
    bench.call("e3")
    assert bench.source.ensured == ["m", "m"]


def test_a_new_build_that_does_not_import_leaves_the_old_one_serving() -> None:
    """The problem is shown in status; only functions the old build lacks fail."""
    bench = Bench()
    worker = bench.worker(build="b1")
    bench.dispatcher.declare(
        plan_of(build=BuildId("b2"), functions=frozenset({FunctionId("m.f"), FunctionId("m.new")}))
    )
    bench.call_function("m.new", "n1")
    assert worker.inbox == []
    bench.dispatcher.template_ready(M, {"state": "import_failed", "build": "b2", "error": {"reason": "boom"}})
    assert bench.client.error("n1")[0] == "IMPORT_FAILED"
    bench.call("e1")
    worker.run_all()
    assert bench.client.result("e1") == b"1"
    assert "boom" in bench.dispatcher.status()["endpoints"][0]["error"]["message"]


def test_once_a_worker_of_the_new_build_is_ready_old_ones_get_no_more_calls() -> None:
    """What was saved is what runs; what the old workers run finishes there."""
    bench = Bench(workers_max=3)
    old = bench.worker("old", build="b1")
    bench.call("e1")
    running = old.begin()
    bench.dispatcher.declare(plan_of(build=BuildId("b2"), workers_max=3))
    new = bench.worker("new", build="b2")
    old.succeed(running)
    bench.call("e2")
    assert bench.client.result("e1") == b"1"
    assert ([frame.execution for frame in new.inbox], old.inbox) == (["e2"], [])


def test_a_failed_environment_fails_the_waiting_calls_and_the_next_call_tries_again() -> None:
    """The installer's message reaches the callers; it is not remembered against later ones."""
    bench = Bench()
    bench.call("e1")
    bench.dispatcher.fail_endpoint(M, EnvironmentFailed("no such package: nope"))
    assert bench.client.error("e1") == ("ENVIRONMENT_FAILED", "no such package: nope")
    bench.call("e2")
    assert bench.source.ensured == ["m", "m"]


def test_async_calls_of_an_endpoint_that_did_not_start_are_tried_again_three_times() -> None:
    """With back-off; then they fail with the reason."""
    bench = Bench()
    bench.call("e1", kind="async")
    for expected in (1, 2, 3):
        assert len(bench.source.ensured) == expected
        bench.dispatcher.fail_endpoint(M, EndpointUnavailable("no template"))
        assert bench.status("e1") == "QUEUED"
        bench.clock.advance(40)
    bench.dispatcher.fail_endpoint(M, EndpointUnavailable("no template"))
    assert bench.client.error("e1") == ("ENDPOINT_UNAVAILABLE", "no template")


def test_workers_that_end_before_they_are_ready_make_the_endpoint_fail_with_the_reason() -> None:
    """Three in a row, a start-up hook that raises for instance."""
    bench = Bench(workers_max=1)
    bench.call("e1")
    for number in range(3):
        bench.dispatcher.worker_gone(M, WorkerId(f"m/1.{number}-1"), 256, "the worker_start hook raised")
        bench.clock.advance(1)
    code, message = bench.client.error("e1")
    assert code == "ENDPOINT_UNAVAILABLE" and "worker_start hook raised" in message


def test_a_template_that_ends_is_asked_for_again_when_calls_wait() -> None:
    """And only then."""
    bench = Bench()
    bench.dispatcher.template_lost(M)
    assert bench.source.ensured == []
    bench.call("e1")
    bench.dispatcher.template_lost(M)
    assert bench.source.ensured == ["m", "m"]
    assert bench.source.scaled == [("m", 1), ("m", 1)]


def test_withdrawing_an_endpoint_fails_what_waits_and_lets_what_runs_finish() -> None:
    """A deleted file's functions are unknown at once; the call in its worker still answers."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1")
    frame = worker.begin()
    bench.call("e2")
    bench.dispatcher.withdraw(M)
    assert bench.client.error("e2")[0] == "ENDPOINT_UNAVAILABLE"
    worker.succeed(frame)
    assert bench.client.result("e1") == b"1"
    with pytest.raises(FunctionNotFound):
        bench.call("e3")


def test_a_draining_worker_gets_no_more_calls_and_is_closed_when_it_is_done() -> None:
    """DRAIN with a call in flight waits for that call."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1")
    frame = worker.begin()
    worker.say(Drain())
    bench.call("e2")
    assert not worker.closed
    worker.succeed(frame)
    assert worker.closed and worker.inbox == []


# What is said about calls


def test_every_invocation_ends_in_one_closing_line_without_payloads() -> None:
    """Success, failure and cancel alike: ids, times and outcome, never bytes of the caller."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1", payload=b'"secret"', trace="00-abc")
    worker.succeed(worker.begin(), b'"secret"')
    bench.call("e2", payload=b'"secret"')
    worker.fail(worker.begin(), ValueError("secret"))
    bench.call("e3")
    bench.call("e4")
    bench.dispatcher.cancel(ExecutionId("e4"))
    lines = {fields["execution"]: fields for name, fields in bench.events if name == "invocation"}
    assert {name: line["outcome"] for name, line in lines.items()} == {
        "e1": "success",
        "e2": "error",
        "e4": "cancelled",
    }
    assert set(lines["e1"]) == {
        "execution", "trace", "function", "endpoint", "worker", "route",
        "queue_ms", "cold_ms", "run_ms", "outcome", "attempt",
    }  # fmt: skip
    assert lines["e1"]["trace"] == "00-abc"
    assert "secret" not in str(bench.events)


def test_status_shows_endpoints_queues_and_workers() -> None:
    """Plain values, for `flash status`."""
    bench = Bench(workers_max=1)
    worker = bench.worker()
    bench.call("e1")
    bench.call("e2")
    worker.begin()
    (endpoint,) = bench.dispatcher.status()["endpoints"]
    assert (endpoint["name"], endpoint["state"], endpoint["queued"], endpoint["running"]) == ("m", "ready", 1, 1)
    assert endpoint["workers"] == 1
    assert endpoint["processes"] == [
        {"id": "m/w1", "pid": 4000, "build": "b1", "state": "busy", "free": 0, "running": ["e1"]}
    ]


def test_a_dispatcher_at_rest_has_no_timers_and_no_calls() -> None:
    """Nothing polls: when everything has ended, nothing is scheduled."""
    bench = Bench(execution_timeout_ms=1000, workers_max=1)
    worker = bench.worker()
    for number in range(20):
        bench.call(f"e{number}")
    worker.run_all()
    bench.clock.advance(10)
    assert bench.clock.pending == 0
    assert bench.dispatcher._calls == {} and worker.worker.calls == {}


def test_a_second_client_may_wait_while_the_first_has_gone() -> None:
    """An execution goes on without whoever sent it."""
    bench = Bench()
    worker = bench.worker()
    other = FakeClient()
    bench.call("e1", idempotency_key="k")
    bench.dispatcher.submit(Invoke("e2", "m.f", meta={"idempotency_key": "k"}, payload=b"{}"), other)
    worker.succeed(worker.begin(), b"7")
    assert other.result("e2") == b"7"
